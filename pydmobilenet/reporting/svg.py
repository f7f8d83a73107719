"""A picture of lines inside the web page, as SVG: a field with two axes, their grid and their numbers.

Colours are variables of the page's style, so that they follow its light and dark modes. Matplotlib's SVG fixes colours
in each element, repeats its ids from figure to figure and has no tooltips: mended, it was as long as this module, and a
figure had four times the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 330  # units of the picture; a phone shows one as about one pixel, so that 12 is legible
LEFT, RIGHT, TOP, BOTTOM = 38, 390, 12, 284  # the edges of the field
HEADROOM = 0.07  # of the range of the values, left free on each side


@dataclass(frozen=True)
class Axis:
    """From values to places: `low` is at `start` and `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def across(cls, values: Iterable[float], least: float, logarithmic: bool = False) -> Axis:
        """From left to right, with at least so much room on both sides (of a logarithmic axis: of the logarithm)."""
        return cls(*_widened(list(values), least, logarithmic), LEFT, RIGHT, logarithmic)

    @classmethod
    def upright(cls, values: Iterable[float], least: float, logarithmic: bool = False) -> Axis:
        """From the bottom to the top, likewise."""
        return cls(*_widened(list(values), least, logarithmic), BOTTOM, TOP, logarithmic)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """The round numbers on it."""
        return (log_ticks if self.logarithmic else linear_ticks)(self.low, self.high)


def _widened(values: list[float], least: float, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        low, high = _widened([math.log(value) for value in values], least, False)
        return math.exp(low), math.exp(high)
    low, high = min(values), max(values)
    margin = max(least, HEADROOM * (high - low))
    return low - margin, high + margin


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, at least three where that can be had of numbers with two digits, and at most
    about a dozen.
    """
    ticks: list[float] = []
    decades = math.log10(high / low)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if decades > 4:
        step = math.ceil(decades / 8)
        return [10.0**power for power in powers if power % step == 0 and low <= 10.0**power <= high]
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(tens / 10 for tens in range(10, 100))):
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    return ticks


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a linear axis, four to nine of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(digit * power for digit in (1, 2, 5) if digit * power <= (high - low) / 4)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def grid(x: Axis, y: Axis, x_title: str, y_title: str, whole: bool = False) -> str:
    """Lines at the axes' round numbers (those across only where they are `whole`, if asked for), numbers and titles."""
    parts = []
    for value in x.ticks():
        if whole and value != round(value):
            continue
        at = x.place(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>')
    for value in y.ticks():
        at = y.place(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 37}" text-anchor="middle">{x_title}</text>')
    if y_title:
        middle = (TOP + BOTTOM) / 2
        parts.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{y_title}</text>')
    return "".join(parts)


def figure(content: str, label: str, caption: str, room: int = 0) -> str:
    """The picture, with words in its place for those who do not see it, and a caption; `room` is what the numbers at
    its left need more than usually.
    """
    box = f"{-room} 0 {WIDTH + room} {HEIGHT}"
    return (
        f'<figure class="plot"><svg role="img" viewBox="{box}" aria-label="{escape(label)}">{content}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """The list of what lines mean, each by its class in the style, its markup around (17, 7), and its name."""
    items = "".join(
        f'<li><svg class="key" aria-hidden="true" viewBox="0 0 34 14"><g class="{kind}">{content}</g></svg>'
        f"{escape(name)}</li>"
        for kind, content, name in entries
    )
    return f'<ul class="legend">{items}</ul>'


def line(places: Iterable[tuple[float, float]]) -> str:
    """A line through some places."""
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'


def marker(x: float, y: float, shape: str, text: str = "") -> str:
    """A marker, whose shape is a path from its middle, with a `text` that shows where it is pointed at."""
    title = f"<title>{escape(text)}</title>" if text else ""
    return f'<path d="M{x:.1f} {y:.1f}{shape}">{title}</path>'
