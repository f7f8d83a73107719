"""Per-class results of a network: recall, precision, confusions, and its most confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data import Dataset, Task
from ..metrics import NO_CLASS, Answers, confusion, recall_precision
from ..text import printable
from ..validation import Result
from . import tables

MAX_CLASSES = 20  # rows of the class table, those of the lowest recall; beyond it there is no confusion matrix
MAX_MISTAKES = 12  # and confusions


class Class(NamedTuple):
    """A class: its images, recall and precision in %, None if of no image."""

    name: str
    images: int
    recall: float | None
    precision: float | None


class Mistake(NamedTuple):
    """A wrong prediction for the image of number `image` in the data set; `confidence` in %."""

    image: int
    file: str
    label: str
    predicted: str
    confidence: float


class Details(NamedTuple):
    """The per-class results of one network.

    `classes` are all of them, or if `only_worst` those of the lowest recall. `matrix` counts the images of each class
    (row) by prediction (`columns`, perhaps with "no class"); it is empty for many classes. `confusions` are the most
    frequent ones: the class, the predicted one, how often.
    """

    classes: list[Class]
    only_worst: bool
    columns: list[str]
    matrix: list[list[int]]
    confusions: list[tuple[str, str, str]]
    mistakes: list[Mistake]


def headline(result: Result) -> str:
    """Return a run's error, interval and accuracy on a line; empty for other networks and without an error."""
    if not result.record.run or result.counts is None:
        return ""
    low, high = result.interval
    return (
        f"Error {result.error:.2f} % ({result.counts.wrong:,} of {result.counts.images:,} images; 95 % interval "
        f"{low:.2f} to {high:.2f} %), accuracy {100 - result.error:.2f} %."
    )


def details(dataset: Dataset, answers: Answers) -> Details:
    """Compute the per-class results of predictions for a data set, or for its first images."""
    task, labels = dataset.task, dataset.labels[: len(answers.classes)]
    counts = confusion(labels, answers.classes, len(task.classes) or task.outputs)
    names = [*(_name(task, label) for label in range(len(counts))), "no class"]
    percent = [[None if np.isnan(value) else float(value) for value in row] for row in recall_precision(counts)]
    classes = [Class(name, int(row.sum()), *both) for name, row, *both in zip(names, counts, *percent)]
    columns = names if counts[:, -1].any() else names[:-1]
    matrix = counts[:, : len(columns)].tolist()
    only_worst = len(classes) > MAX_CLASSES
    if only_worst:
        with_images = [row for row in classes if row.recall is not None]
        classes, matrix = sorted(with_images, key=lambda row: row.recall or 0.0)[:MAX_CLASSES], []
    return Details(classes, only_worst, columns, matrix, _confusions(counts, names), mistakes(dataset, answers))


def _name(task: Task, label: int) -> str:
    return "no class (not a number)" if label == NO_CLASS else printable(task.class_name(label))


def _confusions(counts: np.ndarray, names: list[str]) -> list[tuple[str, str, str]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_MISTAKES]
    return [
        (names[row], names[column], f"{wrong[row, column]} of {counts[row].sum()}")
        for row, column in zip(*np.unravel_index(order, wrong.shape))
        if wrong[row, column]
    ]


def mistakes(dataset: Dataset, answers: Answers) -> list[Mistake]:
    """List the wrong predictions of the highest confidence."""
    wrong = np.flatnonzero(answers.classes != dataset.labels[: len(answers.classes)])
    order = np.argsort(-answers.confidences[wrong], kind="stable")[:MAX_MISTAKES]
    return [
        Mistake(
            index,
            printable(dataset.files[index]) if dataset.files else "",
            _name(dataset.task, int(dataset.labels[index])),
            _name(dataset.task, int(answers.classes[index])),
            100 * float(answers.confidences[index]),
        )
        for index in wrong[order].tolist()
    ]


def markdown(dataset: Dataset, result: Result, width: int | None = None) -> str:
    """Format a run's error and per-class results; empty if its predictions were not kept.

    A confusion matrix wider than `width` gives way to the list of confusions.
    """
    if result.answers is None:
        return ""
    report = details(dataset, result.answers)
    rows = [
        [row.name, f"{row.images:,}", *("" if value is None else f"{value:.1f}" for value in row[2:])]
        for row in report.classes
    ]
    parts = [
        headline(result),
        f"The {len(rows)} classes of the lowest recall:" if report.only_worst else "Class by class:",
        _grid(["class", "images", "recall, %", "precision, %"], rows),
    ]
    rows = [[name, *map(str, row)] for name, row in zip(report.columns, report.matrix)]
    matrix = _grid([r"true class \ predicted", *report.columns], rows)
    if rows and (width is None or len(matrix.partition("\n")[0]) <= width):
        parts += ["Confusion matrix, in images:", matrix]
    elif report.confusions:
        lines = [f"- {name}, predicted {predicted}: {images}" for name, predicted, images in report.confusions]
        parts += ["The most frequent confusions:", "\n".join(lines)]
    if report.mistakes:
        lines = [
            f"- {row.file or f'image {row.image}'}: {row.label}, predicted {row.predicted} ({row.confidence:.1f} %)"
            for row in report.mistakes
        ]
        parts += ["The most confident mistakes:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _grid(columns: list[str], rows: list[list[str]]) -> str:
    return tables.grid(rows, columns, ["left", *["right"] * (len(columns) - 1)])


def with_classes(
    dataset: Dataset | None, results: Sequence[Result], width: int | None = None, origins: bool = False
) -> str:
    """Format the table of one data set (`tables.markdown`), and below it the per-class results of each run."""
    texts = [markdown(dataset, row, width) for row in results if dataset and row.answers and row.record.run]
    return "\n".join([tables.markdown(dataset, results, width, origins), *texts])
