"""What exports in every format share: the images to compare answers on, the comparison, and its verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .data import Task, dataset_name, folder, get_dataset, normalise
from .data.datasets import located
from .data.splits import kinds
from .errors import BadFileError

Predict = Callable[[np.ndarray], np.ndarray]
TOLERANCE = 1e-4  # of the logits' range, for rounding
BATCH = 50
IMAGES = 100  # compared


class Difference(NamedTuple):
    """The largest difference of two functions' logits by the first one's range, and the number of other classes."""

    logits: float
    classes: int

    def check(self, images: int) -> None:
        """Raise BadFileError if an exported network is another function on so many images."""
        if not self.logits <= TOLERANCE or self.classes:
            raise BadFileError(
                f"the exported network is another function: on {images} images, its logits are {self.logits:.1e} of "
                f"their range apart (allowed: {TOLERANCE:.0e}), and {self.classes} classes differ; nothing was written"
            )


def difference(reference: Predict, predict: Predict, task: Task, images: np.ndarray, takes_pixels: bool) -> Difference:
    """Compare an exported network with a reference, on images (N, 3, H, W) in uint8.

    The reference takes normalised images. The other takes the same, or pixels (N, H, W, 3) in uint8.
    """
    expected, logits = [], []
    for start in range(0, len(images), BATCH):
        pixels = images[start : start + BATCH]
        normal = normalise(pixels, task)
        expected.append(reference(normal))
        logits.append(predict(channels_last(pixels) if takes_pixels else normal))
    before, after = np.concatenate(expected), np.concatenate(logits)
    apart = abs(before - after).max() / np.ptp(before)
    return Difference(float(apart), int((before.argmax(axis=1) != after.argmax(axis=1)).sum()))


def channels_last(images: np.ndarray) -> np.ndarray:
    """Return images (N, 3, H, W) as (N, H, W, 3)."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Check that all values are finite. Raises BadFileError."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BadFileError(f"the network's parameter {name} has values that are not finite")


def comparison_images(task: Task, data_dir: Path | None, dataset: str | None) -> tuple[np.ndarray, str]:
    """Return images (N, 3, H, W) in uint8 and their kind: a split of the data set if it is here, else random.

    A given `data_dir` or `dataset` has to exist and to fit the task.
    """
    here = task.name == "digits"
    if task.name.startswith("folder:"):  # a run records the whole path, a file only its name
        here = os.path.isabs(folder.place(task.name)) and os.path.isdir(folder.place(task.name))
    if data_dir is not None or here or (dataset and dataset_name(dataset).startswith("folder:")):
        name = located(dataset or task.name, data_dir)
        split = kinds(name)[-1]  # any split will do
        images = get_dataset(name, split, data_dir, skip_bad=True, task=task).images[:IMAGES]
        return images, "given" if split == folder.ALL else split
    return np.random.default_rng(0).integers(0, 256, (IMAGES, *task.image), np.uint8), "random"
