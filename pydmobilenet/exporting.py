"""What exports in every format share: the images, the comparison of answers and its verdict, and the cost of int8."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import answers
from .checkpoints import Checkpoint
from .data import Dataset, Fractions, Task, dataset_name, folder, get_dataset, get_splits, normalise
from .data.dataset import scale_and_shift
from .data.datasets import located
from .data.splits import kinds
from .errors import BadFileError
from .metrics import Answers, evaluate, wilson
from .text import printable

Predict = Callable[[np.ndarray], np.ndarray]
TOLERANCE = 1e-4  # of the logits' range, for rounding
BATCH = 50
IMAGES = 100  # compared
CALIBRATION = 400  # images, for an int8 file
MOST_LOST = 1.0  # points of error by int8, without a warning


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


@dataclass(frozen=True)
class Calibration:
    """What an int8 file needs: images (N, 3, H, W) in uint8 for the ranges of its maps, and others for its error."""

    images: np.ndarray
    test: Dataset

    def cost(self, before: Predict, after: Predict) -> str:
        """Return in words how the error changes from one function of normalised images to another.

        Warns if it grows by more than `MOST_LOST`.
        """
        number = len(self.test)
        both = [Answers.empty(number) for _ in range(2)]
        wrong = [evaluate(net, self.test, BATCH, answers=seen).wrong for net, seen in zip((before, after), both)]
        errors = [100 * count / number for count in wrong]
        if errors[1] > errors[0] + MOST_LOST:
            text = f"int8 raises the error from {errors[0]:.2f} to {errors[1]:.2f} %: float32 may be the better file"
            warnings.warn(text, stacklevel=2)
        texts = [
            f"{error:.2f} % (95 % interval {low:.2f} to {high:.2f})"
            for error, (low, high) in zip(errors, (wilson(count, number) for count in wrong))
        ]
        change = answers.change("", both[0].classes, both[1].classes, self.test.labels)
        doubt = self.test.doubt and f" ({self.test.doubt})"
        return (
            f"ranges by {len(self.images):,} images; error on {number:,} {self.test.split} images{doubt}: "
            f"{texts[1]} in int8, {texts[0]} in float32; {change} "
            f"({100 * change.changed / number:.2f} %)"
        )


def calibration_images(source: Checkpoint, data_dir: Path | None, number: int) -> np.ndarray:
    """Return so many training images (N, 3, H, W) of a network in uint8, drawn at random. Raises as `get_dataset`."""
    name = located(source.dataset, data_dir)
    options: dict[str, Any] = {"root": data_dir, "skip_bad": True, "task": source.task}
    has = kinds(name)
    if "train" in has or (has == (folder.ALL,) and any(source.fractions)):
        dataset = get_splits(source.dataset, Fractions(*source.fractions), **options).train
    else:
        dataset = get_dataset(source.dataset, has[0], **options)
    chosen = np.random.default_rng(0).permutation(len(dataset))[:number]
    return dataset.images[np.sort(chosen)]


def of_pixels(predict: Predict, task: Task) -> Predict:
    """Return a function of pixels (N, H, W, 3) in uint8 as one of normalised images (N, 3, H, W)."""
    scale, shift = scale_and_shift(task)
    return lambda images: predict(channels_last(np.rint((images + shift) / scale).astype(np.uint8)))


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


def written(
    path: Path,
    source: Checkpoint,
    size: int,
    calibration: Calibration | None,
    apart: Difference,
    images: np.ndarray,
    kind: str,
    engine: str,
) -> str:
    """Return the line on a file of so many bytes that was compared with an engine on images of a `kind`."""
    text = f"wrote {path}{' in int8' if calibration else ''}: {source.model} for {source.task.title}"
    return (
        f"{printable(text)}, {size / 1e6:.2f} MB; on {len(images)} {kind} images, "
        f"{'before the quantisation, ' if calibration else ''}same answers as the trained network by {engine} "
        f"(largest difference {100 * apart.logits:.5f} %)"
    )
