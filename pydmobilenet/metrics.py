"""Evaluation: losses, wrong answers, probabilities, intervals. What computes the logits is handed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .data import Dataset, batches

NO_CLASS = np.iinfo(np.uint16).max  # stands for the class of an answer that is not a number


class Score(NamedTuple):
    """Summed losses and wrong answers of so many images, and how many labels were not among the first five answers; 0
    of these where they are not counted, as in training.
    """

    loss: float
    wrong: int
    images: int
    wrong_top5: int = 0


class Answers(NamedTuple):
    """What a network says of each image: the class (N,) as uint16, and its softmax, from 0 to 1, (N,) as float32.

    Where the logits are not all finite, the class is `NO_CLASS` and the confidence 0.
    """

    classes: np.ndarray
    confidences: np.ndarray

    @classmethod
    def empty(cls, images: int) -> Answers:
        """Make room for so many answers."""
        return cls(np.full(images, NO_CLASS, np.uint16), np.zeros(images, np.float32))


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    dataset: Dataset,
    batch_size: int,
    part: int = 0,
    parts: int = 1,
    answers: Answers | None = None,
    report: Callable[[int], object] = lambda images: None,
) -> Score:
    """Answer a data set, or one worker's part of it, and count.

    Fill `answers`, room for as many images. After each batch, `report` takes its size.
    """
    loss, wrong, images, wrong_top5 = 0.0, 0, 0, 0
    for batch, labels in batches(dataset, batch_size, train=False, part=part, parts=parts, threads=1):
        logits = predict(batch)
        first, five = count_wrong(logits, labels)
        loss, wrong, wrong_top5 = loss + cross_entropy(logits, labels), wrong + first, wrong_top5 + five
        if answers is not None:
            here = slice(images, images + len(labels))
            answers.classes[here], answers.confidences[here] = most_likely(logits)
        images += len(labels)
        report(len(labels))
    return Score(loss, wrong, images, wrong_top5)


def most_likely(logits: np.ndarray) -> Answers:
    """Return the answers that logits (N, outputs) give; of equal ones the lower class wins."""
    finite = np.isfinite(logits).all(axis=1)
    logits = np.where(finite[:, None], logits, 0)
    classes = np.where(finite, logits.argmax(axis=1), NO_CLASS).astype(np.uint16)
    return Answers(classes, (finite * softmax(logits).max(axis=1)).astype(np.float32))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Sum the losses of logits (N, outputs) for labels (N,)."""
    logits = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not a number gives such a loss
        shifted = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).sum())


def count_wrong(logits: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Count the answers that are wrong at the first place, and the labels that are not among the first five.

    `logits` (N, outputs), `labels` (N,). Of equal logits the lower class counts as the higher, as in ``argmax``.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    above = (logits > own).sum(axis=1)
    level_before = ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(axis=1)
    rank = above + level_before
    rank[~np.isfinite(logits).all(axis=1)] = np.iinfo(rank.dtype).max  # an answer that is not a number is wrong
    return int((rank > 0).sum()), int((rank > 4).sum())


def wilson(wrong: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson interval of an error rate in %, of 95 % by default (Wilson, 1927, JASA 22:209)."""
    rate, spread = wrong / images, z * z / images
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / images + spread / images / 4)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def confusion(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Count the images of each class (row) that were taken for each class (column): (classes, classes + 1), of `labels`
    (N,) and `answers` (N,). The last column holds the answers that are none of the classes.
    """
    answers = np.minimum(answers.astype(np.int64), classes)
    counts = np.bincount(labels * (classes + 1) + answers, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def recall_precision(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision of each class (n,) in %, of a confusion matrix (n, n + 1); nan where of no image.

    Recall is the share of a class's images that were taken for it, precision that of the images taken for it that are
    of it.
    """
    right = np.diagonal(counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return 100 * right / counts.sum(axis=1), 100 * right / counts.sum(axis=0)[: len(counts)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, outputs) of logits (N, outputs), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
