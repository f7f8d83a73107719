"""The curves of a run as pictures inside the web page: errors, losses, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from ..training.history import RATE_DECADES, Epoch, History, differ_in_order
from . import svg
from .svg import Axis

DOT = "m-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0z"
STAR = "m0-6.5l1.6 4.3 4.6.2-3.6 2.8 1.3 4.4-3.9-2.6-3.9 2.6 1.3-4.4-3.6-2.8 4.6-.2z"
ROOM = 14  # more, for numbers as 0.0001
DOTTED = 30  # so many epochs have a dot each; of more, the best one alone is marked


def drawn(history: History) -> str:
    """The legend and the pictures, as markup; empty where no epoch is finished."""
    best, split = history.best, history.split
    if best is None:
        return ""
    kinds = {"train": "train", "held-out": split}  # classes of the page's style, and what they are of
    errors = {kind: f"{name}_error" for kind, name in kinds.items()}
    losses = {kind: f"{name}_loss" for kind, name in kinds.items()}
    panels = [
        _panel(history, "Error in %", errors, _from_zero, best),
        _panel(history, "Loss", losses, _fitting, best),
        _panel(history, "Learning rate", {"rate": "learning_rate"}, _fitting_rates),
    ]
    line = svg.line([(2, 7), (32, 7)])
    entries = [(kind, line, name) for kind, name in kinds.items()]
    if math.isfinite(best.error):
        text = f"best epoch, {best.epoch}: {split} error {best.error:.2f} %"
        entries.append(("best", svg.marker(17, 7, STAR), text))
    return f'{svg.legend(entries)}<div class="plots curves">{"".join(panels)}</div>'


def _panel(
    history: History,
    title: str,
    columns: Mapping[str, str],
    upright: Callable[[Sequence[float]], Axis],
    best: Epoch | None = None,
) -> str:
    """One picture of some `columns` of the history, of which the last one has the `best` epoch marked."""
    lines = {column: _shown(history, column) for column in columns.values()}
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return ""
    epochs = len(history.rows)
    margin = max(0.5, epochs / 50)
    x, y = Axis(1 - margin, epochs + margin, svg.LEFT, svg.RIGHT), upright(values)
    parts = [svg.grid(x, y, "epoch", "", whole=True)]
    for kind, column in columns.items():
        places = [(x.place(epoch), y.place(value)) for epoch, value in lines[column]]
        parts.append(f'<g class="{kind}">{_line(lines[column], places, column, epochs <= DOTTED)}</g>')
        if best and kind == "held-out" and best.epoch in dict(lines[column]):
            at = x.place(best.epoch), y.place(getattr(best, column))
            parts.append(f'<g class="best">{svg.marker(*at, STAR, f"best epoch, {best.epoch}")}</g>')
    label = f"{title} of {epochs} epochs" + (f", of which {best.epoch} is the best" if best else "")
    caption = title + (", logarithmic" if y.logarithmic else "")
    return svg.figure("".join(parts), label, caption, room=ROOM)


def _from_zero(values: Sequence[float]) -> Axis:
    return Axis(0, 1.05 * max(values) or 1, svg.BOTTOM, svg.TOP)


def _fitting(values: Sequence[float]) -> Axis:
    """An axis that is logarithmic where the values are of different orders."""
    far = differ_in_order(values)
    return Axis.upright(values, 0.1 if far else 0.05 * max(values) or 0.5, logarithmic=far)


def _fitting_rates(values: Sequence[float]) -> Axis:
    return _fitting(values) if differ_in_order(values, RATE_DECADES) else _from_zero(values)


def _line(points: Sequence[tuple[int, float]], places: Sequence[tuple[float, float]], column: str, dotted: bool) -> str:
    """A line through the places of some points, which breaks where an epoch is left out."""
    parts = [
        svg.line(places[number] for number, _ in part)
        for _, part in groupby(enumerate(points), key=lambda each: each[1][0] - each[0])  # epochs without a gap
    ]
    if dotted:
        name = column.replace("_", " ")
        parts += [
            svg.marker(*at, DOT, f"epoch {epoch}: {name} {value:.4g}") for at, (epoch, value) in zip(places, points)
        ]
    return "".join(parts)


def _shown(history: History, column: str) -> list[tuple[int, float]]:
    """Epochs and values of a column, without those that no axis has room for, as infinite ones."""
    found = [(row.epoch, getattr(row, column)) for row in history.rows]
    return [(epoch, value) for epoch, value in found if 1e-100 < value < 1e100 or value == 0]
