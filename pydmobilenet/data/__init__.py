"""The data sets: what one classifies, and where the images come from. Speaks NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import fetching
from ..errors import UnknownNameError, unknown
from . import cifar
from .cifar import CIFAR10, CIFAR100

__all__ = ["DATASETS", "Dataset", "Task", "get_dataset", "get_task"]

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
# A well-known slip: the true standard deviations of the pixels are 0.2470, 0.2435, 0.2616. The authors trained with
# these, so their weights need them.
CIFAR_STD = (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """What is classified: the classes, the outputs of a network for it, and how its images are normalised.

    `mean` and `std` are of the red, green and blue pixels, scaled to [0, 1]. `note` says what a reader of an error rate
    has to know about the labels.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    outputs: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    read: Callable[[str, Path | None], cifar.Raw] | None
    note: str = ""


@dataclass(frozen=True)
class Dataset:
    """Images (N, 3, 32, 32) as uint8 with their labels (N,) as int64, in the order of the files.

    `official` says that the files are, byte for byte, the published ones; `source` where they are.
    """

    task: Task
    split: str
    images: np.ndarray
    labels: np.ndarray
    official: bool
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def normalised(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The images from `start` to `stop` as a network wants them: float32, scaled to [0, 1], less mean, by std."""
        return normalise(self.images[start:stop], self.task.mean, self.task.std)


def normalise(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(x / 255 - mean) / std for each channel of uint8 images (N, 3, H, W), rounded as in float32 step by step.

    A byte has 256 values only, so each is computed once.
    """
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    result = np.empty(images.shape, np.float32)
    for channel, (centre, spread) in enumerate(zip(mean, std)):
        table = (values - np.float32(centre)) / np.float32(spread)
        result[:, channel] = table[images[:, channel]]
    return result


DATASETS = {
    task.name: task
    for task in (
        Task(
            name="cifar10",
            title="CIFAR-10",
            classes=CIFAR10.classes,
            outputs=10,
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
            read=lambda split, root: cifar.read(CIFAR10, split, root),
        ),
        Task(
            name="cifar100",
            title="CIFAR-100",
            classes=CIFAR100.classes,
            outputs=100,
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
            read=lambda split, root: cifar.read(CIFAR100, split, root),
        ),
        Task(
            name="cifar100-coarse",
            title="CIFAR-100, 20 superclasses",
            classes=tuple(cifar.SUPERCLASSES),
            outputs=100,  # as the authors' networks have them; those from 20 on are dead
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
            read=lambda split, root: cifar.read(CIFAR100, split, root, coarse=True),
            note="The labels are the 20 superclasses, as in the published CIFAR-100 column, not the 100 classes.",
        ),
        Task(
            name="imagenet32",
            title="ImageNet32",
            classes=(),
            outputs=1000,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            read=None,
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of a data set's name; raises UnknownNameError, which names the nearest ones."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def get_dataset(name: str, split: str = "train", root: str | Path | None = None) -> Dataset:
    """A split, ``train`` or ``test``, of ``cifar10``, ``cifar100`` or ``cifar100-coarse`` (the 20 superclasses).

    Looked for in `root`, ``$PYDMOBILENET_HOME`` and MXNet's home, else downloaded. Files other than the official ones
    are used from `root` alone. Raises UnknownNameError, MissingFileError, BadFileError and UnusableError.
    """
    task = get_task(name)
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    if task.read is None:
        raise UnknownNameError(f"the images of {task.title} cannot be read yet; nearest: cifar10")
    raw = task.read(split, None if root is None else fetching.expanded(root))
    return Dataset(task, split, raw.images, raw.labels, raw.official, raw.source)
