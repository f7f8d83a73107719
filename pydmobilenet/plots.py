"""Pictures: the curves of a run, error against cost, and a grid of a data set's images."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import catalog, files
from .data import Dataset, batches
from .data.dataset import draw as draw_order
from .text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from .training.history import History
    from .validation import Result

MAX_TITLE = 100  # characters
MAX_DOTTED = 30  # epochs with a dot each: a single epoch has no line, hundreds have no room
RATE_DECADES = 4  # of learning rates on a logarithmic axis; a cosine ends at 0
KINDS = {"error": "error, %", "loss": "loss", "learning_rate": "learning rate"}
COSTS = {"parameters": "parameters, millions", "multiply_adds": "multiply-adds, millions"}
TRAIN, HELD_OUT, RATE = "#1d5fd1", "#b45309", "#0f766e"  # distinct for the colour-blind too
INK, FAINT, LINE, PAPER = "#1b1f24", "#59626d", "#d5dae0", "#ffffff"
# Families differ by marker too.
FAMILIES = {
    "resnet": ("#59626e", "o"),
    "mobilenet": ("#b45309", "s"),
    "pyd-add": ("#1d5fd1", "^"),
    "pyd-concat": ("#b0197e", "D"),
    "wrn": ("#0f766e", "v"),
}
# report.css has a variable for each colour, with another value in dark mode.
VARIABLES = {INK: "ink", FAINT: "faint", LINE: "line", PAPER: "paper"}
VARIABLES.update((colour, family) for family, (colour, _) in FAMILIES.items())
STYLE: dict[str, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), FAINT),
    **{"axes.edgecolor": LINE, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": LINE},
    **{"axes.titlelocation": "left", "axes.titlepad": 24},  # above the legend
    **{"legend.frameon": False, "legend.fontsize": 9, "legend.borderpad": 0, "legend.borderaxespad": 0.3},
    **{"legend.handlelength": 1.5, "legend.handletextpad": 0.4, "legend.columnspacing": 1},
    **{"svg.fonttype": "none", "font.sans-serif": "DejaVu Sans"},
}
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1.5, 1.5), (6, 2, 1.5, 2))  # of curves beside each other
# Ticks of a logarithmic axis by the ratio of its ends; for the smallest ratio those of a linear one.
DIGITS = {4: (), 12: (1, 1.5, 2, 3, 5, 7), 1e3: (1, 2, 5), math.inf: (1,)}
COLUMNS, VARIANTS = 8, 3  # of `grid`: images in a row, augmented forms below each
SIDE, MARGIN, TEXT_HEIGHT, LETTER_WIDTH = 96, 6, 14, 6  # of `grid`, in pixels
PICTURES = itertools.count()  # seeds of the SVGs' ids, unique on a page


def draw(history: History, path: str | os.PathLike[str], title: str) -> None:
    """Draw the errors, losses and learning rate of a run as a PNG of 1440 x 540 pixels.

    Omits infinite and other extreme values. Raises UnusableError.
    """
    title, image = printable(title), io.BytesIO()
    with drawing(12, 4.5, (0.045, 0.11, 0.99, 0.82), len(KINDS)) as (figure, fields):
        figure.suptitle(title if len(title) <= MAX_TITLE else f"{title[:MAX_TITLE]}…", parse_math=False)
        for axes, kind in zip(fields, KINDS):
            _draw_curves(axes, history, kind)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # missing in the font: drawn as a box
            figure.savefig(image, format="png", dpi=120)
    files.write(Path(path), image.getvalue())


def curves(history: History) -> list[str]:
    """Draw the same three pictures as markup; none before the first epoch has ended."""
    texts, best = [], history.best
    for kind in KINDS if best else ():
        with drawing(4, 3.6, (0.13, 0.14, 0.98, 0.85)) as (figure, (axes,)):
            _draw_curves(axes, history, kind)
            label = f"{kind.replace('_', ' ')} of {len(history.rows)} epochs"
            texts.append(_markup(figure, label + (f"; the best is {best.epoch}" if best else "")))
    return texts


def _draw_curves(axes: Axes, history: History, kind: str) -> None:
    from matplotlib.ticker import MaxNLocator

    is_rate, epochs, best = kind == "learning_rate", len(history.rows), history.best
    lines = {kind: RATE} if is_rate else {f"train_{kind}": TRAIN, f"{history.split}_{kind}": HELD_OUT}
    shown: list[float] = []
    for column, colour in lines.items():
        values = [value if _fits(value) else math.nan for value in (getattr(row, column) for row in history.rows)]
        marker = "o" if epochs <= MAX_DOTTED else ""
        axes.plot(range(1, epochs + 1), values, color=colour, marker=marker, ms=4, label=column.partition("_")[0])
        shown += [value for value in values if math.isfinite(value)]
    if not is_rate:
        if best and _fits(getattr(best, kind)):
            text = f"best epoch, {best.epoch}" + (f": {best.error:.2f} %" if kind == "error" else "")
            star: dict[str, Any] = {"marker": "*", "ls": "", "color": HELD_OUT, "mec": INK, "ms": 12, "zorder": 3}
            axes.plot(best.epoch, getattr(best, kind), label=text, **star)
        _show_legend(axes)
    axes.set_title(KINDS[kind])
    axes.set_xlabel("epoch")
    axes.set_xlim(1 - max(0.5, epochs / 50), max(1, epochs) + max(0.5, epochs / 50))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ratio = max(shown) / min(shown) if shown and min(shown) > 0 else math.inf
    if (is_rate and 10 <= ratio <= 10**RATE_DECADES) or (kind == "loss" and 10 <= ratio < math.inf):
        _make_logarithmic(axes, "y", min(shown) / 1.5, max(shown) * 1.5)
    elif kind != "loss" or not shown:
        axes.set_ylim(0, 1.08 * max(shown, default=1) or 1)


def _fits(value: float) -> bool:
    """Return whether an axis can show a value."""
    return 1e-100 < value < 1e100 or value == 0


@dataclass(frozen=True)
class Curve:
    """The errors of a run, and how its line is drawn: a colour of report.css, and dashes in widths of the line."""

    name: str
    history: History
    colour: str
    dashes: tuple[float, ...]

    @property
    def variable(self) -> str:
        """The variable of report.css for the colour."""
        return VARIABLES[self.colour]

    @property
    def dasharray(self) -> str:
        """The dashes in SVG, for a line of width 2."""
        return " ".join(f"{2 * length:g}" for length in self.dashes)


def numbered(names: Sequence[str], histories: Sequence[History]) -> list[Curve]:
    """Give each run a line of its own, for the first 20."""
    colours = [FAMILIES[family][0] for family in ("pyd-add", "mobilenet", "pyd-concat", "wrn", "resnet")]
    looks = itertools.cycle((colour, dashes) for dashes in DASHES for colour in colours)
    return [Curve(name, history, *look) for name, history, look in zip(names, histories, looks)]


def compared_curves(curves: Sequence[Curve], title: str) -> str:
    """Draw the errors of runs by epoch, on the images that choose the best one, as markup."""
    from matplotlib.ticker import MaxNLocator

    shown: list[float] = []
    with drawing(4.8, 4, (0.09, 0.12, 0.98, 0.86)) as (figure, (axes,)):
        for curve in curves:
            rows = [row for row in curve.history.rows if _fits(row.error)]
            style: dict[str, Any] = {"color": curve.colour, "lw": 1.8, "gid": f"title {curve.name}"}
            style["ls"] = (0, curve.dashes) if curve.dashes else "-"
            marker = "o" if len(rows) == 1 else ""
            axes.plot([row.epoch for row in rows], [row.error for row in rows], marker=marker, **style)
            shown += [row.error for row in rows]
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(top=min(axes.get_ylim()[1], 100))
        if shown and 0 < min(shown) < max(shown) / 4:  # the last epochs decide
            _make_logarithmic(axes, "y", min(shown) / 1.2, max(shown) * 1.2)
        return _markup(figure, f"{title}, of {len(curves)} runs")


class Point(NamedTuple):
    """An error in % at a `cost` in millions, with its 95 % interval if measured on a part of the test set."""

    model: str
    measured: bool
    cost: float
    error: float
    interval: tuple[float, float] | None = None
    name: str = ""  # of a run, instead of the model's
    joined: bool = True  # to others of its family by a line


def costs(results: Sequence[Result], title: str) -> list[str]:
    """Draw error against each cost as markup, as `cost_plots`."""
    return [text for cost in COSTS for text in cost_plots(_points(results, cost), title, cost)]


def cost_plots(points: Sequence[Point], title: str, cost: str) -> list[str]:
    """Draw error against a cost as markup.

    Families with networks of several depths have a picture for each depth, in the same scale: in one their lines cross.
    """
    architectures = {catalog.parse_name(point.model) for point in points}
    lines = {(architecture.family, architecture.depth) for architecture in architectures}
    depths = sorted({depth for _, depth in lines})
    texts = []
    for depth in depths if len(lines) > len({family for family, _ in lines}) else [None]:
        part = [point for point in points if depth in (None, catalog.parse_name(point.model).depth)]
        if part:
            about = f"{depth} layers, top-1 error" if depth else "top-1 error"
            label = f"{title}: {about} against {COSTS[cost]}, {len(part)} points; the table has all their figures."
            with drawing(4.8, 4, (0.09, 0.12, 0.98, 0.86)) as (figure, (axes,)):
                axes.set_title(f"{about}, %")
                draw_costs(axes, part, points, cost)
                texts.append(_markup(figure, label))
    return texts


def _points(results: Iterable[Result], cost: str) -> list[Point]:
    """Return the published errors at the published costs, and the measured ones."""
    points = []
    for result in results:
        record = result.record
        published = record.params_m if cost == "parameters" else record.flops_m
        if record.published and published and record.top1_error is not None:
            points.append(Point(record.model, False, published, record.top1_error))
        if result.counts and result.complexity:
            interval = None if result.complete else result.interval
            points.append(Point(record.model, True, getattr(result.complexity, cost) / 1e6, result.error, interval))
    return points


def draw_costs(axes: Axes, part: Iterable[Point], points: Sequence[Point], cost: str) -> None:
    """Draw a part of the points, in the scale of all of them: families as lines, as in the paper."""

    def line(point: Point) -> tuple[str, int, bool]:
        architecture = catalog.parse_name(point.model)
        return architecture.family, architecture.depth, not point.measured

    for (family, _, published), group in itertools.groupby(sorted(part, key=lambda p: (line(p), p.cost)), key=line):
        members, (colour, marker) = list(group), FAMILIES[family]
        style: dict[str, Any] = {"color": colour, "zorder": 2 if published else 3}
        label = "" if family in axes.get_legend_handles_labels()[1] else family
        errors: dict[float, list[float]] = {}
        for point in members:
            if point.joined:
                errors.setdefault(point.cost, []).append(point.error)
        path = list(errors), [sum(several) / len(several) for several in errors.values()]  # of seeds, the mean
        axes.plot(*path, lw=1.5, ls="--" if published else "-", **style)
        for point in members:
            if point.interval:
                axes.plot([point.cost] * 2, point.interval, color=colour, lw=1, alpha=0.45)
            text = f"{point.name or point.model}: {point.error:.2f} % {'published' if published else 'measured'}"
            text += f", {point.cost:.4g} M"
            style.update(marker=marker, ms=7, mfc=PAPER if published else colour, ls="", gid=f"title {text}")
            axes.plot(point.cost, point.error, label=label, **style)
            label = ""
    heights = [height for point in points for height in (point.error, *(point.interval or ()))]
    axes.set_ylim(max(min(heights) - 0.5, 0), min(max(heights) + 0.5, 100))
    _make_logarithmic(axes, "x", min(point.cost for point in points) / 1.2, max(point.cost for point in points) * 1.2)
    axes.set_xlabel(COSTS[cost])
    _show_legend(axes)


@contextmanager
def drawing(
    width: float, height: float, edges: tuple[float, float, float, float], fields: int = 1
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Yield a figure of a size in inches, and its fields in a row; the style is set meanwhile."""
    from matplotlib import rc_context  # slow to import, and few commands draw
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "svg.hashsalt": str(next(PICTURES))}
    with rc_context(style):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(*edges, wspace=0.17)  # a layout engine doubles the time
        yield figure, figure.subplots(1, fields, squeeze=False)[0]


def _show_legend(axes: Axes) -> None:
    """Show the legend above the field, clear of all curves."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=5)


def _make_logarithmic(axes: Axes, name: str, low: float, high: float) -> None:
    """Make an axis logarithmic, with plain numbers as 0.05: they need less room than powers of ten."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis = getattr(axes, f"{name}axis")
    digits = next(digits for span, digits in DIGITS.items() if high < span * low)
    axis.set_major_locator(LogLocator(subs=digits) if digits else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _markup(figure: Figure, label: str) -> str:
    """Convert a figure to SVG in the page's colours, with a label for screen readers and tooltips."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r"""<g id=(["'])title (.*?)\1>""", r"<g><title>\2</title>", buffer.getvalue())
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # of groups; nothing refers to them
    text = re.sub("|".join(VARIABLES), lambda match: f"var(--{VARIABLES[match[0]]})", text)
    box, content = re.findall(r'<svg [^>]*(viewBox="[^"]*")[^>]*>(.*)', text, re.DOTALL)[0]
    return f'<figure class="plot"><svg role="img" aria-label="{escape(label)}" {box}>{content}</figure>'


def grid(dataset: Dataset, seed: int = 0) -> Image.Image:
    """Draw each image of a data set raw, with its label, and below it as augmented in three epochs."""
    from PIL import Image, ImageDraw

    rows = [dataset.images, *(_augmented(dataset, seed, epoch) for epoch in range(VARIANTS))]
    count, width = len(dataset), dataset.images.shape[2]
    side = width * max(1, round(SIDE / width))
    step, block = side + MARGIN, (VARIANTS + 1) * (side + MARGIN) + TEXT_HEIGHT + MARGIN
    columns = min(COLUMNS, count)
    picture = Image.new("RGB", (columns * step + MARGIN, -(-count // columns) * block + MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    for number in range(count):
        x, y = MARGIN + number % columns * step, MARGIN + number // columns * block
        name = printable(dataset.task.class_name(int(dataset.labels[number])))
        pen.text((x, y), shortened(name, side // LETTER_WIDTH), fill="black")
        for row, images in enumerate(rows):
            image = Image.fromarray(images[number].transpose(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(image, (x, y + TEXT_HEIGHT + row * step))
    return picture


def sample(dataset: Dataset, number: int, seed: int = 0) -> Dataset:
    """Choose so many random images, of all classes in turn."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    labels = dataset.labels[order]
    turns = np.empty(len(order), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turns[rows] = np.arange(len(rows))
    return dataset.take(order[np.lexsort((labels, turns))[:number]], dataset.split)


def shortened(name: str, length: int) -> str:
    """Shorten a name to its beginning and its end, where long names differ."""
    return name if len(name) <= length else f"{name[: length - 7]}…{name[-6:]}"


def _augmented(dataset: Dataset, seed: int, epoch: int) -> np.ndarray:
    """Return an epoch's images as uint8 in the data set's order, without the normalisation."""
    mean, std = (np.array(values)[:, None, None] for values in (dataset.task.mean, dataset.task.std))
    order = draw_order(len(dataset), seed, epoch).order
    ((images, _),) = batches(dataset, len(dataset), train=True, seed=seed, epoch=epoch)
    return np.rint((images * std + mean) * 255).astype(np.uint8)[np.argsort(order)]
