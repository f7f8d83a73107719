"""Class by class: recall, precision, confusions, and the worst mistakes of a network that was evaluated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..checkpoints import runs
from ..data import Dataset, Task
from ..metrics import NO_CLASS, Answers, confusion, recall_precision
from ..text import printable
from ..validation import Result
from .tables import grid

LISTED = 20  # so many classes have a row each; of more, those of the lowest recall
WORST = 10  # of these, so many
MATRIX = 10  # so many classes have a confusion matrix in a text
MISTAKES = 10  # names of files


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


def headline(result: Result) -> str:
    """What a run comes to, in a line: its error and accuracy, with the interval; empty where nothing was counted."""
    if not runs.is_run(result.record) or result.counts is None:
        return ""
    low, high = result.interval
    return (
        f"Error {result.error:.2f} % ({result.counts.wrong:,} of {result.counts.images:,} images; 95 % interval "
        f"{low:.2f} to {high:.2f} %), accuracy {100 - result.error:.2f} %."
    )


def name_of(task: Task, label: int) -> str:
    """A class's name, as people see it."""
    return "no class (not a number)" if label == NO_CLASS else printable(task.class_name(label))


def counts_of(dataset: Dataset, answers: Answers) -> np.ndarray:
    """The confusion matrix of the images that were answered (`metrics.confusion`)."""
    labels = dataset.labels[: len(answers.classes)]
    return confusion(labels, answers.classes, len(dataset.task.classes) or dataset.task.outputs)


def per_class(task: Task, counts: np.ndarray, most: int = WORST) -> list[Class]:
    """The classes in their order; of more than `LISTED`, so many, that of the lowest recall first."""
    rows = [
        Class(name_of(task, label), int(counts[label].sum()), *(None if np.isnan(x) else float(x) for x in shares))
        for label, shares in enumerate(zip(*recall_precision(counts)))
    ]
    if len(rows) <= LISTED:
        return rows
    return sorted((row for row in rows if row.recall is not None), key=lambda row: row.recall or 0.0)[:most]


def mistakes(dataset: Dataset, answers: Answers, number: int = MISTAKES) -> list[Mistake]:
    """The most confident wrong answers, at most so many, the most confident first."""
    labels = dataset.labels[: len(answers.classes)]
    wrong = np.flatnonzero(answers.classes != labels)
    found = wrong[np.argsort(-answers.confidences[wrong], kind="stable")[:number]].tolist()
    return [
        Mistake(
            place,
            printable(dataset.files[place]) if dataset.files else "",
            name_of(dataset.task, int(labels[place])),
            name_of(dataset.task, int(answers.classes[place])),
            100 * float(answers.confidences[place]),
        )
        for place in found
    ]


def markdown(dataset: Dataset, result: Result) -> str:
    """A run's error and accuracy, recall and precision of each class, the confusion matrix of a few classes, and the
    worst mistakes, as text; empty where the answers were not kept.
    """
    if result.answers is None:
        return ""
    answers = result.answers
    counts = counts_of(dataset, answers)
    rows = per_class(dataset.task, counts)
    kind = f"The {len(rows)} classes of the lowest recall" if len(rows) < len(counts) else "Class by class"
    table = [[row.name, f"{row.images:,}", _percent(row.recall), _percent(row.precision)] for row in rows]
    parts = [
        headline(result),
        f"{kind}:",
        grid(table, ["class", "images", "recall, %", "precision, %"], ["left", *["right"] * 3]),
    ]
    if len(counts) <= MATRIX:
        names = [name_of(dataset.task, label) for label in range(len(counts))]
        numbers = [[name, *map(str, row[: len(names)])] for name, row in zip(names, counts)]
        matrix = grid(numbers, [r"is \ taken for", *names], ["left", *["right"] * len(names)])
        parts += ["Confusion matrix, in images:", matrix]
    if found := mistakes(dataset, answers):
        lines = [f"- {each.file or f'image {each.place}'}: {_told(each)}" for each in found]
        parts += ["The most confident mistakes:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _told(mistake: Mistake) -> str:
    return f"is {mistake.own}, taken for {mistake.answer} ({mistake.confidence:.1f} %)"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1f}"
