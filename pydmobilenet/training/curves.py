"""The curves of a run as a picture: errors, losses and the learning rate, an epoch at a time."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..text import printable
from .history import RATE_DECADES, History, differ_in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

LONGEST = 100  # characters of a title, which the picture has room for
TRAIN, TEST, RATE = "#4c78a8", "#d1495b", "#b0b0b0"  # told apart by the colour-blind too
STAR: dict[str, Any] = {"marker": "*", "color": TEST, "mec": "black", "ms": 12, "ls": "", "zorder": 3}  # the best epoch


def draw(history: History, path: str | os.PathLike[str], title: str) -> None:
    """Draw the curves as a PNG of 1440 x 540 pixels: errors on the left, losses and the learning rate on the right.

    Leaves out values that are not finite. Characters of the title that cannot be printed are escaped. Raises
    UnusableError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only the curves need it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.04, 0.11, 0.945, 0.87, wspace=0.12)  # a layout engine doubles the time
    title = printable(title)
    figure.suptitle(title if len(title) <= LONGEST else f"{title[:LONGEST]}…", parse_math=False)
    errors, losses = figure.subplots(1, 2)
    rates = losses.twinx()
    _draw_errors(errors, history)
    _draw_losses(losses, rates, history)
    epochs = history.last.epoch if history.last else 1
    margin = max(0.5, epochs / 50)
    for axes in (errors, losses, rates):
        axes.set_xlim(1 - margin, epochs + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines["top"].set_visible(False)
        axes.spines[:].set_color("lightgrey")
    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # that the font lacks: it is drawn as a box
        figure.savefig(image, format="png")
    files.write(Path(path), image.getvalue())


def _draw_errors(axes: Axes, history: History) -> None:
    lines = [
        _plot(axes, history, "train_error", TRAIN, "train"),
        _plot(axes, history, f"{history.split}_error", TEST, history.split),
    ]
    best = history.best
    if best and math.isfinite(best.error):
        label = f"best {history.split}: {best.error:.2f} % (epoch {best.epoch})"
        lines += axes.plot(best.epoch, best.error, label=label, **STAR)
    axes.set_ylim(0, max(1, 1.08 * max(_finite(lines), default=100)))
    _label(axes, "error, %", lines)


def _draw_losses(axes: Axes, rates: Axes, history: History) -> None:
    lines = [
        _plot(axes, history, "train_loss", TRAIN, "train"),
        _plot(axes, history, f"{history.split}_loss", TEST, history.split),
    ]
    values = _finite(lines)
    if differ_in_order(values):
        _logarithmic(axes, min(values), max(values))
    best = history.best
    if best and math.isfinite(best.error) and math.isfinite(best.loss):
        axes.plot(best.epoch, best.loss, **STAR)
    lines.append(_plot(rates, history, "learning_rate", RATE, "learning rate (right)"))
    values = _finite(lines[-1:])
    if differ_in_order(values, RATE_DECADES):
        _logarithmic(rates, min(values), max(values))
        rates.set_ylim(min(values) / 1.5, max(values) * 1.5)
    else:
        highest = max(values, default=0) or 1
        rates.set_ylim(-0.02 * highest, 1.08 * highest)
        rates.yaxis.set_major_formatter("{x:g}")
    rates.tick_params(which="both", colors="grey")
    axes.set_zorder(rates.get_zorder() + 1)  # the losses in front of the faint rate
    axes.patch.set_visible(False)
    _label(axes, "loss", lines)


def _logarithmic(axes: Axes, low: float, high: float) -> None:
    """Make the vertical axis logarithmic, with plain numbers: 0.1 and 0.05, which need less room than powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    few = high < 1e3 * low
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plot(axes: Axes, history: History, column: str, color: str, label: str) -> Line2D:
    values = [getattr(row, column) for row in history.rows]
    values = [value if math.isfinite(value) else math.nan for value in values]
    marker = "o" if len(values) <= 30 else ""  # a single epoch has no line, hundreds have no room for dots
    (line,) = axes.plot([row.epoch for row in history.rows], values, color=color, label=label, marker=marker, ms=4)
    return line


def _finite(lines: Iterable[Line2D]) -> list[float]:
    return [value for line in lines for value in np.asarray(line.get_ydata()).tolist() if math.isfinite(value)]


def _label(axes: Axes, title: str, lines: list[Line2D]) -> None:
    """Set the title and the legend of a panel, above it, where they hide no curve."""
    axes.set_title(title, loc="left")
    above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1, "ncol": len(lines)}
    axes.legend(handles=lines, frameon=False, handlelength=1.5, columnspacing=1.5, **above)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
