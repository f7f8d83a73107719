"""The batches of an epoch as training sees them: images and target distributions, mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from ..data import Dataset, batches
from ..data.augmentation import stream
from .config import Config


class Loader:
    """Yields the batches of an epoch for one of several workers, as arrays on the host.

    `batches` are those of an epoch: images after them are too few for an update.
    """

    def __init__(self, dataset: Dataset, config: Config, batches: int, rank: int = 0, workers: int = 1):
        self.dataset, self.config, self.batches = dataset, config, batches
        self.rank, self.workers = rank, workers
        self.weights = class_weights(dataset) if config.class_weights == "balanced" else None
        self.mix: Callable[..., Any] = mix
        self.paste: Callable[..., Any] = paste

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield this worker's shards from batch `start` on: images (n, 3, H, W) or features, targets (n, outputs)."""
        config, rank, workers = self.config, self.rank, self.workers
        if config.mixup == config.cutmix == 0 or epoch >= config.epochs - config.mixup_off_epochs:
            yield from self._shards(rank, epoch, start)
            return
        # In a reversed batch, the first worker's shard is the last worker's.
        partners = self._shards(workers - 1 - rank, epoch, start) if workers > 1 else None
        for number, (images, targets) in enumerate(self._shards(rank, epoch, start), start):
            other_images, other_targets = next(partners) if partners else (None, None)
            if with_cutmix(config, epoch, number):
                box, lam = cutmix_box(config.cutmix, config.seed, epoch, number, images.shape[-1])
                yield self.paste(images, box, other_images), self.mix(targets, lam, other_targets)
            else:
                lam = mixup_lam(config.mixup, config.seed, epoch, number)
                yield self.mix(images, lam, other_images), self.mix(targets, lam, other_targets)

    def _shards(self, worker: int, epoch: int, start: int) -> Iterator[tuple[Any, Any]]:
        """Yield a worker's shards before mixup."""
        config = self.config
        source = batches(
            self.dataset,
            config.batch_size // self.workers,
            train=True,
            seed=config.seed,
            epoch=epoch,
            part=worker,
            parts=self.workers,
            start=start,
            augment=config.augment,
            augmentation=config.augmentation,
        )
        for images, labels in islice(source, self.batches - start):
            targets = make_targets(labels, self.dataset.task.outputs, config.label_smoothing)
            yield images, targets if self.weights is None else targets * self.weights[labels, None]


def class_weights(dataset: Dataset) -> np.ndarray:
    """Return scikit-learn's ``balanced`` weights (outputs,): images / (classes x images of the class).

    Each class counts the same in the loss; the mean over the images is 1.
    """
    numbers = np.bincount(dataset.labels, minlength=dataset.task.outputs)
    present = np.maximum(numbers, 1)
    return (len(dataset) / (np.count_nonzero(numbers) * present)).astype(np.float32)


def make_targets(labels: np.ndarray, outputs: int, smoothing: float = 0.0) -> np.ndarray:
    """Turn labels (N,) into target distributions (N, outputs) in float32.

    Label smoothing (Szegedy et al., 2016, arXiv 1512.00567) leaves ``1 - smoothing`` on the label, and spreads
    `smoothing` over all outputs.
    """
    distributions = np.full((len(labels), outputs), smoothing / outputs, np.float32)
    distributions[np.arange(len(labels)), labels] += 1 - smoothing
    return distributions


def mixup_lam(alpha: float, seed: int, epoch: int, batch: int) -> float:
    """Draw mixup's lambda for a batch from Beta(alpha, alpha). It depends on the arguments alone."""
    return float(stream(seed, epoch, "mixup", batch).beta(alpha, alpha))


def mix(array: np.ndarray, lam: float, others: np.ndarray | None = None) -> np.ndarray:
    """Mix N images or distributions with the same batch in reverse, as in the PydMobileNet authors' code.

    (mixup: Zhang et al., 2018, arXiv 1710.09412.) `others` is the shard of the worker with the partners, if there are
    several.
    """
    factor = np.float32(lam)
    return factor * array + (1 - factor) * (array if others is None else others)[::-1]


def with_cutmix(config: Config, epoch: int, batch: int) -> bool:
    """Choose between cutmix and mixup for a batch, with equal chances if the recipe has both."""
    if not (config.mixup and config.cutmix):
        return config.cutmix > 0
    return bool(stream(config.seed, epoch, "mixup or cutmix", batch).random() < 0.5)


def cutmix_box(alpha: float, seed: int, epoch: int, batch: int, side: int) -> tuple[tuple[slice, slice], float]:
    """Draw cutmix's box for a batch of square images: rows and columns, and lambda, the rest's share of the pixels.

    (Yun et al., 2019, arXiv 1905.04899.) The box has a random centre and 1 - Beta(alpha, alpha) of the pixels, but for
    those outside of the image. It depends on the arguments alone.
    """
    generator = stream(seed, epoch, "cutmix", batch)
    half = int(side * (1 - generator.beta(alpha, alpha)) ** 0.5) // 2
    centre = generator.integers(0, side, 2)
    (top, left), (bottom, right) = np.clip([centre - half, centre + half], 0, side).tolist()
    return (slice(top, bottom), slice(left, right)), 1 - (bottom - top) * (right - left) / side**2


def paste(images: np.ndarray, box: tuple[slice, slice], others: np.ndarray | None = None) -> np.ndarray:
    """Replace a box of N images by that of the same batch in reverse, as `mix` does."""
    pasted = images.copy()
    pasted[:, :, box[0], box[1]] = (images if others is None else others)[::-1, :, box[0], box[1]]
    return pasted
