"""Losses, wrong predictions, probabilities, intervals, confusion matrices, of logits in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .data import Dataset, batches

NO_CLASS = np.iinfo(np.uint16).max  # the class of logits that are not finite


class Score(NamedTuple):
    """Summed losses, top-1 errors, images, top-5 errors (0 in training), top-1 errors with mirror images (or None)."""

    loss: float
    wrong: int
    images: int
    wrong_top5: int = 0
    wrong_mirror: int | None = None


class Answers(NamedTuple):
    """Predicted classes (N,) as uint16, and their softmax (N,) as float32.

    For logits that are not finite, the class is `NO_CLASS` and the confidence 0.
    """

    classes: np.ndarray
    confidences: np.ndarray

    @classmethod
    def empty(cls, images: int) -> Answers:
        """Allocate the answers for so many images."""
        return cls(np.full(images, NO_CLASS, np.uint16), np.zeros(images, np.float32))


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    dataset: Dataset,
    batch_size: int,
    part: int = 0,
    parts: int = 1,
    answers: Answers | None = None,
    report: Callable[[int], object] = lambda images: None,
    mirror: bool = False,
) -> Score:
    """Score a data set, or one worker's part of it, and fill `answers`. Call `report` with the size of each batch.

    With `mirror`, also count the errors of the mean softmax of each image and its mirror image (Krizhevsky et al.,
    2012, section 4.1).
    """
    loss, wrong, images, wrong_top5, wrong_mirror = 0.0, 0, 0, 0, 0
    for batch, labels in batches(dataset, batch_size, train=False, part=part, parts=parts, threads=1):
        logits = predict(batch)
        top1, top5 = count_wrong(logits, labels)
        loss, wrong, wrong_top5 = loss + cross_entropy(logits, labels), wrong + top1, wrong_top5 + top5
        if answers is not None:
            rows = slice(images, images + len(labels))
            answers.classes[rows], answers.confidences[rows] = most_likely(logits)
        if mirror:
            mirrored = predict(np.ascontiguousarray(batch[..., ::-1]))
            with np.errstate(invalid="ignore"):  # of logits that are not finite, which count as wrong
                mean = (softmax(logits) + softmax(mirrored)) / 2
            wrong_mirror += count_wrong(mean, labels)[0]
        images += len(labels)
        report(len(labels))
    return Score(loss, wrong, images, wrong_top5, wrong_mirror if mirror else None)


def most_likely(logits: np.ndarray) -> Answers:
    """Return the likeliest class for each row of logits (N, outputs); of equal ones, the lower class."""
    finite = np.isfinite(logits).all(axis=1)
    logits = np.where(finite[:, None], logits, 0)
    classes = np.where(finite, logits.argmax(axis=1), NO_CLASS).astype(np.uint16)
    return Answers(classes, (finite * softmax(logits).max(axis=1)).astype(np.float32))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Sum the losses of logits (N, outputs) for labels (N,)."""
    logits = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # logits that are not finite give such a loss
        shifted = logits - logits.max(axis=1, keepdims=True)
    true = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - true).sum())


def count_wrong(logits: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Count top-1 and top-5 errors of logits (N, outputs) for labels (N,). Of equal logits, the lower class wins."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    above = (logits > true).sum(axis=1)
    equal_before = ((logits == true) & (np.arange(logits.shape[1]) < labels[:, None])).sum(axis=1)
    rank = above + equal_before
    rank[~np.isfinite(logits).all(axis=1)] = np.iinfo(rank.dtype).max  # always wrong
    return int((rank > 0).sum()), int((rank > 4).sum())


def wilson(wrong: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson interval of an error rate in %, 95 % by default (Wilson, 1927, JASA 22:209)."""
    rate, spread = wrong / images, z * z / images
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / images + spread / images / 4)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def mcnemar(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test: `lost` images only one network got right, `gained` only the other.

    Of n = lost + gained, min(1, 2 / 2^n * sum of C(n, i) for i from 0 to min(lost, gained)), the binomial test of equal
    odds (McNemar, 1947, Psychometrika 12:153; in this form Fagerland et al., 2013, BMC Med. Res. Methodol. 13:91).
    """
    n = lost + gained
    term = total = 1
    for i in range(min(lost, gained)):  # in whole numbers, rounded once
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**n)


def confusion(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix (classes, classes + 1) of labels (N,), its rows, and answers (N,), its columns.

    The last column counts answers outside the classes.
    """
    answers = np.minimum(answers.astype(np.int64), classes)
    counts = np.bincount(labels * (classes + 1) + answers, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def recall_precision(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision (n,) in % from a confusion matrix (n, n + 1); nan without any image."""
    right = np.diagonal(counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return 100 * right / counts.sum(axis=1), 100 * right / counts.sum(axis=0)[: len(counts)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, outputs) in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
