"""Targets, label smoothing and mixup, in NumPy."""

from __future__ import annotations

import numpy as np


def targets(labels: np.ndarray, outputs: int, smoothing: float = 0.0) -> np.ndarray:
    """Labels (N,) to target distributions (N, outputs) in float32.

    Each has ``1 - smoothing`` on its label, and `smoothing` spread over all outputs (label smoothing: Szegedy et al.,
    2016, arXiv 1512.00567).
    """
    distributions = np.full((len(labels), outputs), smoothing / outputs, np.float32)
    distributions[np.arange(len(labels)), labels] += 1 - smoothing
    return distributions


def share(alpha: float, seed: int, epoch: int, batch: int) -> float:
    """The share of each image in its mixture, one number a batch, drawn from Beta(alpha, alpha).

    It depends on the seed, the epoch and the batch (both from 0) alone, so that a resumed run draws the same.
    """
    # To NumPy, [seed, epoch, 0] is [seed, epoch], of which the order of the images is drawn.
    return float(np.random.default_rng([seed, epoch, batch, 1]).beta(alpha, alpha))


def mix(array: np.ndarray, share: float, others: np.ndarray | None = None) -> np.ndarray:
    """Mix each of N images, or of N distributions, with its partner: the same batch in reverse order.

    (mixup: Zhang et al., 2018, arXiv 1710.09412; the partners as in the PydMobileNet authors' code). Of several workers
    that share a batch, `others` are those of the worker that has the partners.
    """
    own = np.float32(share)
    return own * array + (1 - own) * (array if others is None else others)[::-1]
