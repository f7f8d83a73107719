"""Class by class: recall, precision, confusions, and the worst mistakes of a network that was evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data import Dataset, Task
from ..metrics import NO_CLASS, Answers, confusion, recall_precision
from ..text import printable
from ..validation import Result
from . import tables
from .tables import grid

LISTED = 20  # so many classes have a row each; of more, those of the lowest recall
MATRIX = 10  # so many classes have a confusion matrix; of more, the most frequent confusions are listed
WORST = 12  # of which so many, and so many mistakes


class Class(NamedTuple):
    """One class: how many images it has, and in % its recall and its precision; None where they are of no image."""

    name: str
    images: int
    recall: float | None
    precision: float | None


class Mistake(NamedTuple):
    """A wrong answer: the image's place in the data set and its file, its class, the answer, the confidence in %."""

    place: int
    file: str
    own: str
    answer: str
    confidence: float


class Matrix(NamedTuple):
    """A confusion matrix: the names of its columns, and a row for each class. Answers of no class have a column too."""

    columns: list[str]
    counts: list[list[int]]


class Details(NamedTuple):
    """The answers of one network: a `matrix`, or the most frequent `confusions` (class, what it was taken for, how
    often), `classes` one by one (`some` where there are more), and the most confident `mistakes`.
    """

    classes: list[Class]
    some: bool
    matrix: Matrix | None
    confusions: list[tuple[str, str, str]]
    mistakes: list[Mistake]


def headline(result: Result) -> str:
    """What a run comes to, in a line: its error and accuracy, with the interval; empty where nothing was counted."""
    if not result.record.run or result.counts is None:
        return ""
    low, high = result.interval
    return (
        f"Error {result.error:.2f} % ({result.counts.wrong:,} of {result.counts.images:,} images; 95 % interval "
        f"{low:.2f} to {high:.2f} %), accuracy {100 - result.error:.2f} %."
    )


def details(dataset: Dataset, answers: Answers) -> Details:
    """What the answers to a data set, or to its first images, tell of its classes."""
    task, labels = dataset.task, dataset.labels[: len(answers.classes)]
    counts = confusion(labels, answers.classes, len(task.classes) or task.outputs)
    names = [_name(task, label) for label in range(len(counts))]
    shares = [[None if np.isnan(share) else float(share) for share in row] for row in recall_precision(counts)]
    classes = [Class(name, int(row.sum()), *both) for name, row, *both in zip(names, counts, *shares)]
    some = len(classes) > LISTED
    if some:
        classes = sorted((row for row in classes if row.recall is not None), key=lambda row: row.recall or 0.0)[:LISTED]
    found = mistakes(dataset, answers)
    if len(counts) > MATRIX:
        return Details(classes, some, None, _confusions(counts, [*names, "none of the classes"]), found)
    columns = [*names, "none of these"] if counts[:, -1].any() else names
    return Details(classes, some, Matrix(columns, counts[:, : len(columns)].tolist()), [], found)


def _name(task: Task, label: int) -> str:
    """A class's name, as people see it."""
    return "no class (not a number)" if label == NO_CLASS else printable(task.class_name(label))


def _confusions(counts: np.ndarray, names: list[str]) -> list[tuple[str, str, str]]:
    """The most frequent confusions, the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    return [
        (names[row], names[column], f"{wrong[row, column]} of {counts[row].sum()}")
        for row, column in zip(*np.unravel_index(order, wrong.shape))
        if wrong[row, column]
    ]


def mistakes(dataset: Dataset, answers: Answers) -> list[Mistake]:
    """The most confident wrong answers, the most confident first."""
    labels = dataset.labels[: len(answers.classes)]
    wrong = np.flatnonzero(answers.classes != labels)
    found = wrong[np.argsort(-answers.confidences[wrong], kind="stable")[:WORST]].tolist()
    return [
        Mistake(
            place,
            printable(dataset.files[place]) if dataset.files else "",
            _name(dataset.task, int(labels[place])),
            _name(dataset.task, int(answers.classes[place])),
            100 * float(answers.confidences[place]),
        )
        for place in found
    ]


def markdown(dataset: Dataset, result: Result) -> str:
    """A run's error and accuracy and the `details` of its answers as text; empty where the answers were not kept."""
    if result.answers is None:
        return ""
    found = details(dataset, result.answers)
    rows = [
        [row.name, f"{row.images:,}", *("" if share is None else f"{share:.1f}" for share in row[2:])]
        for row in found.classes
    ]
    parts = [
        headline(result),
        f"The {len(rows)} classes of the lowest recall:" if found.some else "Class by class:",
        _grid(["class", "images", "recall, %", "precision, %"], rows),
    ]
    if found.matrix:
        columns, counts = found.matrix
        matrix = _grid([r"is \ taken for", *columns], [[name, *map(str, row)] for name, row in zip(columns, counts)])
        parts += ["Confusion matrix, in images:", matrix]
    elif found.confusions:
        lines = [f"- {own}, taken for {taken}: {images}" for own, taken, images in found.confusions]
        parts += ["The most frequent confusions:", "\n".join(lines)]
    if found.mistakes:
        lines = [
            f"- {each.file or f'image {each.place}'}: is {each.own}, taken for {each.answer} ({each.confidence:.1f} %)"
            for each in found.mistakes
        ]
        parts += ["The most confident mistakes:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _grid(columns: list[str], rows: list[list[str]]) -> str:
    return grid(rows, columns, ["left", *["right"] * (len(columns) - 1)])


def with_classes(
    dataset: Dataset | None, results: Sequence[Result], width: int | None = None, origins: bool = False
) -> str:
    """The table of one data set (`tables.markdown`), and below it the classes of each run."""
    own = [markdown(dataset, row) for row in results if dataset and row.answers and row.record.run]
    return "\n".join([tables.markdown(dataset, results, width, origins), *own])
