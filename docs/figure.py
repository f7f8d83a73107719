#!/usr/bin/env python3
"""Draw README's figure, docs/figure.png: the published CIFAR-10 errors, and those of docs/reproduce.md."""

from __future__ import annotations

import re
from pathlib import Path

from pydmobilenet import catalog, plots

DOCS = Path(__file__).resolve().parent
ROW = re.compile(r"^\| (\S+) \|(?: \S+ \|){5} (\S+) \| ([\d.]+)\u2013([\d.]+) \|", re.MULTILINE)
KEY = "Filled: measured on the first 1,000 test images, with 95 % intervals. Hollow: published."


def measured() -> dict[str, tuple[float, float, float]]:
    """Error in % on the first 1,000 test images and its 95 % interval, by model."""
    text = (DOCS / "reproduce.md").read_text(encoding="utf-8")
    return {name: (float(error), float(low), float(high)) for name, error, low, high in ROW.findall(text)}


def main() -> None:
    points = []
    found = measured()
    for record in catalog.RECORDS:
        if record.dataset == "cifar10" and record.params_m and record.depth in (29, 56):
            points.append(plots.Point(record.model, False, record.params_m, record.top1_error))
            if record.model in found:
                error, *interval = found[record.model]
                points.append(plots.Point(record.model, True, record.params_m, error, tuple(interval)))
    with plots.drawing(9, 4.4, (0.04, 0.11, 0.99, 0.79), 2) as (figure, fields):
        figure.suptitle(KEY, fontsize=10)
        for axes, depth in zip(fields, (29, 56)):
            axes.set_title(f"CIFAR-10 error in %, {depth} layers")
            part = [point for point in points if catalog.parse_name(point.model).depth == depth]
            plots.draw_costs(axes, part, points, "parameters")
        figure.savefig(DOCS / "figure.png", metadata={"Software": None}, dpi=125)


if __name__ == "__main__":
    main()
