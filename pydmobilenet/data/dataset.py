"""A data set: a task and its images, and their normalisation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..errors import InvalidValueError

PAD = 4  # zero pixels on each side before a random crop to the old size: 9 x 9 positions
IMAGE_SIZES = range(8, 1025, 4)  # pixels, wide and high: two layers halve the maps
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
# A well-known slip: the pixels' standard deviations are 0.2470, 0.2435, 0.2616. The authors' weights need these.
CIFAR_STD = (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def content_hash(content: bytes | memoryview) -> str:
    """Return 64 bits of the content's SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:16]


def check_image_size(size: int) -> int:
    """Return a valid width and height of images. Raises InvalidValueError."""
    if size not in IMAGE_SIZES:
        nearest = min(IMAGE_SIZES, key=lambda allowed: abs(allowed - size))
        allowed = f"a multiple of 4 from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}; nearest: {nearest}"
        raise InvalidValueError(f"image_size is {size} (allowed: {allowed})")
    return size


@dataclass(frozen=True)
class Task:
    """Classes, outputs of a network, and normalisation.

    `classes` are the known names, in the labels' order. `mean` and `std` are of red, green and blue, scaled to [0, 1].
    `mirrored` allows horizontal flips. `note` explains the labels to a reader of an error rate. `sized`: no hash of the
    official files is published, so the number of images verifies them. `image_size` is width and height in pixels.
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
        """Return the shape of an image, (3, H, W)."""
        return (3, self.image_size, self.image_size)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number, as for the outputs beyond the 20 superclasses."""
        return self.classes[label] if label < len(self.classes) else str(label)


@dataclass(frozen=True)
class Dataset:
    """Images (N, 3, H, W) in uint8 and labels (N,) in int64.

    `official`: the files are the published ones. `source` is their directory; `note` counts the images of a folder by
    class, and the skipped files; `doubt` explains why the images are not official. `files` are the paths in a folder;
    `hashes` the `content_hash` of each file, or of its pixels.
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
        """Return the zero-padded images (N, 3, H + 8, W + 8), for random crops."""
        return padded(self.images)

    def head(self, number: int | None) -> Dataset:
        """Return the first `number` images; all for None."""
        return self._at(slice(number))

    def take(self, positions: np.ndarray, split: str) -> Dataset:
        """Return the images at some positions (n,) as a split."""
        return replace(self._at(positions), split=split)

    def _at(self, where: slice | np.ndarray) -> Dataset:
        files, hashes = (tuple(np.array(names, object)[where]) if names else () for names in (self.files, self.hashes))
        return replace(self, images=self.images[where], labels=self.labels[where], files=files, hashes=hashes)

    def normalised(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the normalised images from `start` to `stop` in float32."""
        return normalise(self.images[start:stop], self.task)


def padded(images: np.ndarray) -> np.ndarray:
    """Pad images (N, C, H, W) by `PAD` zero pixels on each side."""
    return np.pad(images, ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)))


def normalise(images: np.ndarray, task: Task, out: np.ndarray | None = None) -> np.ndarray:
    """Compute (x / 255 - mean) / std of uint8 images (N, 3, H, W) in float32, within 1e-6."""
    mean, std = (np.array(values)[:, None, None] for values in (task.mean, task.std))
    out = np.multiply(images, (1 / (255 * std)).astype(np.float32), out=out, dtype=np.float32)
    return np.subtract(out, (mean / std).astype(np.float32), out=out)
