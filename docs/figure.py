#!/usr/bin/env python3
"""Draw README's figure, docs/figure.png: the published CIFAR-10 errors, and those of docs/reproduce.md."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

from pydmobilenet import catalog

DOCS = Path(__file__).resolve().parent
STYLES = {
    "resnet": ("#59626d", "o"),
    "mobilenet": ("#b45309", "s"),
    "pyd-add": ("#1d5fd1", "^"),
    "pyd-concat": ("#b0197e", "D"),
}
ROW = re.compile(r"^\| (\S+) \|(?: \S+ \|){5} (\S+) \| ([\d.]+)\u2013([\d.]+) \|", re.MULTILINE)


def measured() -> dict[str, tuple[float, float, float]]:
    """Error in % on the first 1,000 test images and its 95 % interval, by model."""
    text = (DOCS / "reproduce.md").read_text(encoding="utf-8")
    return {name: (float(error), float(low), float(high)) for name, error, low, high in ROW.findall(text)}


def draw(axes: Axes, depth: int, found: dict[str, tuple[float, float, float]]) -> None:
    """Error against parameters of the networks of a depth."""
    records = [record for record in catalog.RECORDS if record.dataset == "cifar10" and record.depth == depth]
    for family, members in groupby(records, key=lambda record: catalog.parse_name(record.model).family):
        rows = [record for record in members if record.params_m]
        color, marker = STYLES[family]
        axes.plot(
            [record.params_m for record in rows],
            [record.top1_error for record in rows],
            color=color, marker=marker, mfc="white", ls="--", lw=1, label=f"{family}, published",
        )  # fmt: skip
        points = [(record.params_m, *found[record.model]) for record in rows if record.model in found]
        costs, errors, lows, highs = zip(*points)
        bars = [[e - low for e, low in zip(errors, lows)], [high - e for e, high in zip(errors, highs)]]
        axes.errorbar(costs, errors, bars, color=color, marker=marker, elinewidth=0.6, label=f"{family}, measured")
    axes.set(xscale="log", xlabel="parameters, millions", title=f"{depth} layers", ylim=(2.5, 12), xlim=(0.05, 0.6))
    axes.set_xticks([0.06, 0.1, 0.2, 0.5], ["0.06", "0.1", "0.2", "0.5"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 4.2), dpi=125, sharey=True, layout="constrained")
    found = measured()
    draw(left, 29, found)
    draw(right, 56, found)
    left.set_ylabel("CIFAR-10 error, %")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, fontsize=9, loc="outside lower center", columnspacing=1)
    figure.savefig(DOCS / "figure.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
