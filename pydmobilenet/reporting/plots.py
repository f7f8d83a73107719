"""Error against what a network costs, as pictures inside the web page: families as lines, as in the paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from .. import catalog
from ..validation import Result
from . import svg
from .svg import Axis

# Markers of about the same area around the pen's position: the families are told apart without their colours.
MARKERS = {
    "resnet": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "mobilenet": "m-3.5-3.5h7v7h-7z",
    "pyd-add": "m0-4.8l4.4 7.7h-8.8z",
    "pyd-concat": "m0-5l5 5-5 5-5-5z",
    "wrn": "m0 4.8l4.4-7.7h-8.8z",
}
COSTS = {"parameters": "parameters, millions", "multiply_adds": "multiply-adds, millions"}


class Point(NamedTuple):
    """One figure: `cost` in millions, `error` in %, and of a part of the test set the 95 % interval of the error."""

    model: str
    measured: bool
    cost: float
    error: float
    interval: tuple[float, float] | None = None


def points(results: Iterable[Result], cost: str) -> list[Point]:
    """The published and the measured figures of some rows: the published error at the published cost."""
    found = []
    for result in results:
        record = result.record
        published = record.params_m if cost == "parameters" else record.flops_m
        if record.published and published and record.top1_error is not None:
            found.append(Point(record.model, False, published, record.top1_error))
        if result.counts and result.complexity:
            interval = None if result.complete else result.interval
            found.append(Point(record.model, True, getattr(result.complexity, cost) / 1e6, result.error, interval))
    return found


def figures(results: Sequence[Result], title: str) -> list[str]:
    """Error against each cost. Where families have networks of several depths, each depth has a plot of its own, in
    the same scale: together, their lines cross each other. None where there is no figure to show.
    """
    architectures = {catalog.parse_name(result.record.model) for result in results}
    depths = sorted({each.depth for each in architectures})
    lines = {(each.family, each.depth) for each in architectures}
    alone = len({family for family, _ in lines}) == len(lines)
    found = []
    for cost in COSTS:
        shown = points(results, cost)
        groups = {"": shown} if alone else {f"{depth} layers: ": _of_depth(shown, depth) for depth in depths}
        if shown:  # with room for all the points and their intervals
            x = Axis.across((point.cost for point in shown), 0.1, logarithmic=True)
            y = Axis.upright((value for each in shown for value in (each.error, *(each.interval or ()))), 0.5)
            found += [_figure(part, x, y, cost, title, about) for about, part in groups.items() if part]
    return found


def _of_depth(shown: Sequence[Point], depth: int) -> list[Point]:
    return [point for point in shown if catalog.parse_name(point.model).depth == depth]


def _figure(shown: Sequence[Point], x: Axis, y: Axis, cost: str, title: str, about: str) -> str:
    label = f"{title}: {about}top-1 error against {COSTS[cost]}, {len(shown)} points; the table has all their figures."
    caption = f"{about or 'Top-1 '}{'top-1 ' if about else ''}error in % against {COSTS[cost]}, logarithmic."
    return svg.figure(svg.grid(x, y, COSTS[cost], "error, %") + _lines(x, y, shown), label, caption)


def _lines(x: Axis, y: Axis, shown: Sequence[Point]) -> str:
    """A line for each family and depth, published below measured."""

    def key(point: Point) -> tuple[bool, str, int]:
        architecture = catalog.parse_name(point.model)
        return point.measured, architecture.family, architecture.depth

    parts: list[str] = []
    for (measured, family, _), members in groupby(sorted(shown, key=lambda p: (key(p), p.cost)), key=key):
        places = [(x.place(point.cost), y.place(point.error), point) for point in members]
        parts.append(f'<g class="{family} {"measured" if measured else "published"}">')
        parts.append(svg.line((across, up) for across, up, _ in places))
        parts += [
            _bar(y, across, point) + svg.marker(across, up, MARKERS[family], _told(point))
            for across, up, point in places
        ]
        parts.append("</g>")
    return "".join(parts)


def _bar(y: Axis, across: float, point: Point) -> str:
    if not point.interval:
        return ""
    low, high = map(y.place, point.interval)
    return f'<path class="bar" d="M{across:.1f} {low:.1f}V{high:.1f}"/>'


def _told(point: Point) -> str:
    what = "measured" if point.measured else "published"
    return f"{point.model}: {point.error:.2f} % {what}, {point.cost:.4g} M"


def legend(results: Iterable[Result]) -> str:
    """What the colours, markers and lines mean, for all plots of some rows."""
    results = list(results)
    families = dict.fromkeys(catalog.parse_name(result.record.model).family for result in results)
    line = svg.line([(2, 7), (32, 7)])
    entries = [(f"{family} measured", line + svg.marker(17, 7, MARKERS[family]), family) for family in families]
    text = "Hollow and dashed: published."
    if any(result.counts for result in results):
        text = "Filled and solid: measured here. " + text
    if any(result.counts and not result.complete for result in results):
        text += " Upright bars: 95 % intervals."
    return f'{svg.legend(entries)}<p class="key">{text}</p>'
