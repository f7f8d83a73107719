"""Error against what a network costs, as SVG inside a web page: families as lines, as in the paper.

The colours are variables of the page's style, one a family, so that they are the same in each plot and follow its
light and dark modes. Matplotlib's SVG fixes colours in each element, repeats its ids from figure to figure and has no
tooltips: mended, it was as long as this module, and a figure had four times the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import NamedTuple

from .. import catalog
from ..validation import Result

WIDTH, HEIGHT = 400, 330  # units of the picture; a phone shows one as about one pixel, so that 12 is legible
LEFT, RIGHT, TOP, BOTTOM = 38, 390, 12, 284  # the edges of the field
# Markers of about the same area around the pen's position: the families are told apart without their colours.
MARKERS = {
    "resnet": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "mobilenet": "m-3.5-3.5h7v7h-7z",
    "pyd-add": "m0-4.8l4.4 7.7h-8.8z",
    "pyd-concat": "m0-5l5 5-5 5-5-5z",
    "wrn": "m0 4.8l4.4-7.7h-8.8z",
}
COSTS = {"parameters": "parameters, millions", "multiply_adds": "multiply-adds, millions"}
HEADROOM = 0.07  # of the range of the points, left free on each side


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
        if record.published and published:
            found.append(Point(record.model, False, published, record.top1_error))
        if result.counts and result.complexity:
            interval = None if result.complete else result.interval
            found.append(Point(record.model, True, getattr(result.complexity, cost) / 1e6, result.error, interval))
    return found


@dataclass(frozen=True)
class Axes:
    """From figures to places: the cost on a logarithmic axis, the error on a linear one."""

    costs: tuple[float, float]
    errors: tuple[float, float]

    @classmethod
    def around(cls, shown: Sequence[Point]) -> Axes:
        """Axes that all the points, with their intervals, have room in."""
        costs = [math.log(point.cost) for point in shown]
        errors = [value for point in shown for value in (point.error, *(point.interval or ()))]
        low, high = _widened(min(costs), max(costs), 0.1)
        return cls((math.exp(low), math.exp(high)), _widened(min(errors), max(errors), 0.5))

    def x(self, cost: float) -> float:
        low, high = self.costs
        return LEFT + (RIGHT - LEFT) * math.log(cost / low) / math.log(high / low)

    def y(self, error: float) -> float:
        low, high = self.errors
        return BOTTOM - (BOTTOM - TOP) * (error - low) / (high - low)


def _widened(low: float, high: float, least: float) -> tuple[float, float]:
    margin = max(least, HEADROOM * (high - low))
    return low - margin, high + margin


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, at least three where that can be had of numbers with two digits."""
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(tens / 10 for tens in range(10, 100))):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    return ticks


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a linear axis, four to nine of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(digit * power for digit in (1, 2, 5) if digit * power <= (high - low) / 4)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


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
        found += [_figure(part, Axes.around(shown), cost, title, about) for about, part in groups.items() if part]
    return found


def _of_depth(shown: Sequence[Point], depth: int) -> list[Point]:
    return [point for point in shown if catalog.parse_name(point.model).depth == depth]


def _figure(shown: Sequence[Point], axes: Axes, cost: str, title: str, about: str) -> str:
    label = f"{title}: {about}top-1 error against {COSTS[cost]}, {len(shown)} points; the table has all their figures."
    return (
        f'<figure class="plot"><svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(label)}">'
        f"{_grid(axes, cost)}{_lines(axes, shown)}</svg>"
        f"<figcaption>{about or 'Top-1 '}{'top-1 ' if about else ''}error in % against {COSTS[cost]}, logarithmic."
        "</figcaption></figure>"
    )


def _grid(axes: Axes, cost: str) -> str:
    parts = []
    for value in log_ticks(*axes.costs):
        x = axes.x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>')
    for value in linear_ticks(*axes.errors):
        y = axes.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 37}" text-anchor="middle">{COSTS[cost]}</text>')
    middle = (TOP + BOTTOM) / 2
    parts.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">error, %</text>')
    return "".join(parts)


def _lines(axes: Axes, shown: Sequence[Point]) -> str:
    """A line for each family and depth, published below measured."""

    def line(point: Point) -> tuple[bool, str, int]:
        architecture = catalog.parse_name(point.model)
        return point.measured, architecture.family, architecture.depth

    parts: list[str] = []
    for (measured, family, _), members in groupby(sorted(shown, key=lambda p: (line(p), p.cost)), key=line):
        places = [(axes.x(point.cost), axes.y(point.error), point) for point in members]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(f'<g class="{family} {"measured" if measured else "published"}"><polyline points="{path}"/>')
        parts += [_marker(axes, family, *place) for place in places]
        parts.append("</g>")
    return "".join(parts)


def _marker(axes: Axes, family: str, x: float, y: float, point: Point) -> str:
    bar = ""
    if point.interval:
        low, high = (axes.y(value) for value in point.interval)
        bar = f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
    what = "measured" if point.measured else "published"
    text = f"{point.model}: {point.error:.2f} % {what}, {point.cost:.4g} M"
    return f'{bar}<path d="M{x:.1f} {y:.1f}{MARKERS[family]}"><title>{escape(text)}</title></path>'


def legend(results: Iterable[Result]) -> str:
    """What the colours, markers and lines mean, for all plots of some rows."""
    results = list(results)
    families = dict.fromkeys(catalog.parse_name(result.record.model).family for result in results)
    entries = [
        f'<li><svg class="key" aria-hidden="true" viewBox="0 0 34 14"><g class="{family} measured">'
        f'<polyline points="2,7 32,7"/><path d="M17 7{MARKERS[family]}"/></g></svg>{family}</li>'
        for family in families
    ]
    text = "Hollow and dashed: published."
    if any(result.counts for result in results):
        text = "Filled and solid: measured here. " + text
    if any(result.counts and not result.complete for result in results):
        text += " Upright bars: 95 % intervals."
    return f'<ul class="legend">{"".join(entries)}</ul><p class="key">{text}</p>'
