"""Results as one web page that needs nothing but itself: tables, plots, confusions, and the worst mistakes as pictures.

No script, and nothing from elsewhere: the page's own policy forbids both. Whatever comes from data is printable, and
the template, `report.html.j2`, escapes it.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from ..data import Dataset, Task
from ..text import printable
from ..validation import NO_CLASS, Answers, Result
from . import plots
from .tables import Table, table

MATRIX = 20  # so many classes have a matrix; of more, the most frequent confusions are listed
CONFUSIONS = 15  # of which so many
MISTAKES = 12  # pictures for each network
SHADES = 5  # of the cells of a matrix; the style has a colour for each


class Matrix(NamedTuple):
    """A confusion matrix: the names of its columns, and each row's counts and shades."""

    columns: list[str]
    counts: list[list[int]]
    shades: list[list[int]]


class Network(NamedTuple):
    """What the page tells of the network in the table's row `place`: a `matrix`, or the most frequent `confusions`
    (class, what it was taken for, how often), and `mistakes` (image, class, what it was taken for, confidence in %).
    """

    place: int
    result: Result
    checkpoint: str
    matrix: Matrix | None
    confusions: list[tuple[str, str, str]]
    mistakes: list[tuple[int, str, str, float]]


class Section(NamedTuple):
    """The part of the page on one data set. `pictures` are the images that some network mistakes, as PNG."""

    anchor: str
    table: Table
    column_names: list[str]
    results: Sequence[Result]
    figures: list[str]
    legend: str
    networks: list[Network]
    pictures: dict[int, str]


def page(sections: Sequence[Section], results: Sequence[Result]) -> str:
    """The whole page of some data sets' sections; `results` are those of all of them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(breakable=_breakable, references=_references, strong=_strong, zip=zip)
    verdicts = Counter(result.verdict for result in results)
    return environment.get_template("report.html.j2").render(sections=sections, verdicts=verdicts).lstrip()


def section(dataset: Dataset | None, results: Sequence[Result], number: int) -> Section:
    """The part of the page on one data set; the `number` tells its anchors from those of the other sections."""
    content = table(dataset, results)
    costs = plots.COSTS if results[0].record.published else ()
    figures = [figure for cost in costs if (figure := plots.figure(results, cost, content.title))]
    networks: list[Network] = []
    pictures: dict[int, str] = {}
    if dataset is not None:
        answered = [(place, result, result.answers) for place, result in enumerate(results) if result.answers]
        networks = [_network(dataset, result, answers, place) for place, result, answers in answered]
        shown = sorted({index for network in networks for index, *_ in network.mistakes})
        pictures = {index: _png(dataset.images[index]) for index in shown}
    legend = plots.legend(results) if figures else ""
    return Section(f"s{number}", content, _alone(content.columns), results, figures, legend, networks, pictures)


def confusion(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class (row) were taken for each class (column): (classes, classes + 1), of `labels` (N,)
    and `answers` (N,). The last column holds the answers that are none of the classes.
    """
    answers = np.minimum(answers.astype(np.int64), classes)
    counts = np.bincount(labels * (classes + 1) + answers, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def mistakes(labels: np.ndarray, answers: Answers, number: int = MISTAKES) -> np.ndarray:
    """The places of the most confident wrong answers, at most so many, the most confident first."""
    wrong = np.flatnonzero(answers.classes != labels)
    return wrong[np.argsort(-answers.confidences[wrong], kind="stable")[:number]]


def _alone(columns: Sequence[str]) -> list[str]:
    """The names of columns for where each stands alone: ``published``, say, with what was published."""
    names, subject = [], ""
    for name in columns:
        if name.endswith((", M", ", %")):
            subject = name[:-3]
        names.append(f"{subject}, {name}" if name in ("published", "recorded") else name)
    return names


def _network(dataset: Dataset, result: Result, answers: Answers, place: int) -> Network:
    record, task = result.record, dataset.task
    labels = dataset.labels[: len(answers.classes)]
    counts = confusion(labels, answers.classes, len(task.classes) or task.outputs)
    few = len(counts) <= MATRIX
    return Network(
        place,
        result,
        "" if record.published else printable(f", {record.place}"),
        _matrix(counts, task) if few else None,
        [] if few else _confusions(counts, task),
        [
            (index, _name(task, labels[index]), _name(task, answers.classes[index]), 100 * answers.confidences[index])
            for index in mistakes(labels, answers)
        ],
    )


def _matrix(counts: np.ndarray, task: Task) -> Matrix:
    """A cell's shade grows with the root of its share of the class's images, so that the few that are wrong show."""
    shares = np.sqrt(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)))
    shades = np.ceil(shares * SHADES).astype(int)
    names = [_name(task, label) for label in range(len(counts))]
    if counts[:, -1].any():  # answers that are none of the classes
        names.append("none of these")
    return Matrix(names, counts[:, : len(names)].tolist(), shades.tolist())


def _confusions(counts: np.ndarray, task: Task) -> list[tuple[str, str, str]]:
    """The most frequent confusions of many classes, the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    return [
        (
            _name(task, row),
            _name(task, column) if column < len(counts) else "none of the classes",
            f"{wrong[row, column]} of {counts[row].sum()}",
        )
        for row, column in zip(*np.unravel_index(order, wrong.shape))
        if wrong[row, column]
    ]


def _name(task: Task, number: int) -> str:
    return "no class (not a number)" if number == NO_CLASS else printable(task.class_name(number))


def _png(image: np.ndarray) -> str:
    """An image (3, H, W) uint8 as the address of a PNG that holds its own bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# The template's filters. What they take is escaped, what they give is markup.


def _breakable(name: str) -> Markup:
    """A class's name, which may break at its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _references(verdict: str, anchor: str) -> Markup:
    """A verdict whose number of a reason leads to the reason."""
    return Markup(re.sub(r"\[(\d+)\]$", rf'<a href="#{anchor}r\1">[\1]</a>', str(escape(verdict))))


def _strong(note: str) -> Markup:
    """A note of the Markdown table, with what is strong there strong here."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(note))))
