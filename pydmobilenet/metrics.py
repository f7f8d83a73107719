"""Wrong answers, probabilities, intervals: the arithmetic of logits."""

from __future__ import annotations

import math

import numpy as np


def wilson(wrong: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson interval of an error rate in %, of 95 % by default (Wilson, 1927, JASA 22:209)."""
    rate, spread = wrong / images, z * z / images
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / images + spread / images / 4)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def count_wrong(logits: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """How many answers are wrong at the first place, and how many labels are not among the first five.

    `logits` (N, outputs), `labels` (N,). Of equal logits the lower class counts as the higher, as in ``argmax``.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    above = (logits > own).sum(axis=1)
    level_before = ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(axis=1)
    rank = above + level_before
    rank[~np.isfinite(logits).all(axis=1)] = np.iinfo(rank.dtype).max  # an answer that is not a number is wrong
    return int((rank > 0).sum()), int((rank > 4).sum())


def confusion(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class (row) were taken for each class (column): (classes, classes + 1), of `labels` (N,)
    and `answers` (N,). The last column holds the answers that are none of the classes.
    """
    answers = np.minimum(answers.astype(np.int64), classes)
    counts = np.bincount(labels * (classes + 1) + answers, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def recall_precision(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of each class (n,) in %, of a confusion matrix (n, n + 1); nan where they are of no image.

    Recall is the share of a class's images that were taken for it, precision that of the images taken for it that are
    of it.
    """
    right = np.diagonal(counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return 100 * right / counts.sum(axis=1), 100 * right / counts.sum(axis=0)[: len(counts)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, outputs) of logits (N, outputs), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
