"""What a data set is: a task and its images, and how images become a network's input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..errors import InvalidValueError

PAD = 4  # zero pixels on each side before a random crop to the old size: 9 x 9 positions
IMAGE_SIZES = range(8, 1025, 4)  # pixels, wide and high: two layers halve the maps
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
# A well-known slip: the true standard deviations of the pixels are 0.2470, 0.2435, 0.2616. The authors trained with
# these, so their weights need them.
CIFAR_STD = (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def content_hash(content: bytes | memoryview) -> str:
    """Return 64 bits of a content's SHA-256 in hexadecimal: what tells an image from all others, wherever it lies."""
    return hashlib.sha256(content).hexdigest()[:16]


def check_image_size(size: int) -> int:
    """The width and height of images, if networks can see them. Raises InvalidValueError, which names the nearest."""
    if size not in IMAGE_SIZES:
        nearest = min(IMAGE_SIZES, key=lambda each: abs(each - size))
        allowed = f"a multiple of 4 from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}; nearest: {nearest}"
        raise InvalidValueError(f"image_size is {size} (allowed: {allowed})")
    return size


@dataclass(frozen=True)
class Task:
    """What is classified: the classes, the outputs of a network for it, and how its images are normalised.

    `classes` are the classes' names, in the labels' order, where they are known. `mean` and `std` are of the red, green
    and blue pixels, scaled to [0, 1]. `mirrored` says whether a mirrored image is still of its class, `note` what a
    reader of an error rate has to know about the labels. `sized` says that no hash of the official files is published,
    so that their size has to do. `image_size` is the width and height of its images, in pixels.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    outputs: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mirrored: bool = True
    note: str = ""
    sized: bool = False
    image_size: int = 32

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape of one image as a network takes it, (3, H, W)."""
        return (3, self.image_size, self.image_size)

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where it has none, as the outputs beyond the 20 superclasses."""
        return self.classes[label] if label < len(self.classes) else str(label)


@dataclass(frozen=True)
class Raw:
    """Images (N, 3, H, W) uint8, labels (N,) int64, and what `Dataset` has besides."""

    images: np.ndarray
    labels: np.ndarray
    official: bool
    source: str
    note: str = ""
    doubt: str = ""
    files: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Images (N, 3, H, W) as uint8 with their labels (N,) as int64, in the order of the files.

    `official` says that the files are the published ones, by their hash (of a task that is `sized`: by the number of
    images); `source` where they are; `note`, of a folder of images, how many each class has, and what was skipped;
    `doubt`, perhaps, why they are not official and what would be; `files`, of a folder, each image's path in it;
    `hashes` each one's `content_hash`: of the file in a folder, and of the pixels where others have been put aside.
    """

    task: Task
    split: str
    images: np.ndarray
    labels: np.ndarray
    official: bool
    source: str
    note: str = ""
    doubt: str = ""
    files: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def padded(self) -> np.ndarray:
        """The images with zero pixels around them, (N, 3, H + 8, W + 8): what random crops are cut from."""
        return padded(self.images)

    def head(self, number: int | None) -> Dataset:
        """The first `number` images; all of them for None."""
        return self._at(slice(number))

    def take(self, positions: np.ndarray, split: str) -> Dataset:
        """The images at some positions (n,), as a split of their own."""
        return replace(self._at(positions), split=split)

    def _at(self, where: slice | np.ndarray) -> Dataset:
        files, hashes = (tuple(np.array(each, object)[where]) if each else () for each in (self.files, self.hashes))
        return replace(self, images=self.images[where], labels=self.labels[where], files=files, hashes=hashes)

    def normalised(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The images from `start` to `stop` as a network wants them: float32, scaled to [0, 1], less mean, by std."""
        return normalise(self.images[start:stop], self.task)


def padded(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) with `PAD` zero pixels on each side."""
    return np.pad(images, ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)))


def normalise(images: np.ndarray, task: Task, out: np.ndarray | None = None) -> np.ndarray:
    """(x / 255 - mean) / std for each channel of uint8 images (N, 3, H, W), in float32, within 1e-6 of that formula."""
    mean, std = (np.array(values)[:, None, None] for values in (task.mean, task.std))
    out = np.multiply(images, (1 / (255 * std)).astype(np.float32), out=out, dtype=np.float32)
    return np.subtract(out, (mean / std).astype(np.float32), out=out)
