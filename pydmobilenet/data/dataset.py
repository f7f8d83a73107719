"""A data set: a task, its images, their normalisation, and their batches.

Images stay in uint8 up to the last step, in reused buffers. Threads fill them while the network computes: NumPy
releases the interpreter, so no worker processes are needed.
"""

from __future__ import annotations

import hashlib
import operator
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadFileError, InvalidValueError
from . import trivial_augment
from .augmentation import PAD, Augmentation, Epoch, cut_out, draw

if TYPE_CHECKING:
    from PIL import Image

FULL, DRAFT = DECODINGS = ("full", "draft")  # how a large JPEG becomes pixels: see `images`
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
    `decoding` is the way from files to pixels.
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
    decoding: str = DRAFT

    @property
    def image(self) -> tuple[int, int, int]:
        """Return the shape of an image, (3, H, W)."""
        return (3, self.image_size, self.image_size)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number, as for the outputs beyond the 20 superclasses."""
        return self.classes[label] if label < len(self.classes) else str(label)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Images (N, 3, H, W) in uint8 and labels (N,) in int64.

    `dataset[i]` is an image and its label, for a ``torch.utils.data.DataLoader``: normalised, (3, H, W) in float32; or
    with a `transform` its result for the image as Pillow's, in torchvision's convention.

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
    transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image and its label. Raises IndexError."""
        index = operator.index(index)  # a slice is a TypeError
        pixels, label = self.images[index], int(self.labels[index])
        if self.transform is None:
            return normalise(pixels, self.task), label
        from PIL import Image

        return self.transform(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))), label

    def __repr__(self) -> str:
        return f"<Dataset {self.task.name}, {self.split}: {len(self):,} images>"

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields for a worker process; memory-mapped images as their place on the disk."""
        state = {key: value for key, value in vars(self).items() if key != "padded"}
        if mapped := mapped_file(self.images):
            state["images"] = (*mapped, self.images.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = state["images"]
        if isinstance(images, tuple):
            path, offset, shape = images
            images = np.memmap(path, np.uint8, "r", offset, shape)
        vars(self).update(state, images=images)

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> Dataset:
        """Return the same images with a `transform`."""
        return replace(self, transform=transform)

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
    """Compute (x / 255 - mean) / std of uint8 images (..., 3, H, W) in float32, within 1e-6."""
    scale, shift = scale_and_shift(task)
    out = np.multiply(images, scale, out=out, dtype=np.float32)
    return np.subtract(out, shift, out=out)


def scale_and_shift(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return the factor and the subtrahend (3, 1, 1) of `normalise` in float32."""
    mean, std = (np.array(values)[:, None, None] for values in (task.mean, task.std))
    return (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)


def batches(
    dataset: Dataset,
    batch_size: int,
    train: bool,
    seed: int = 0,
    epoch: int = 0,
    part: int = 0,
    parts: int = 1,
    start: int = 0,
    threads: int = 2,
    augment: bool = True,
    augmentation: Augmentation | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batches of an epoch: images (batch_size, 3, H, W) in float32 and labels (batch_size,) in int64.

    In training, images are shuffled, with `augment` padded by 4 zero pixels, cropped at random and, if the task allows,
    flipped half of the time, or as `augmentation` says; an incomplete last batch is dropped. Otherwise, images come as
    they are, and the last batch may be smaller. The first `start` batches are skipped. The number of `threads` changes
    nothing.

    Worker `part` of `parts` gets every `parts`-th image. In training, all workers' parts are of equal length, and their
    i-th batches are together the i-th batch of a single worker with `parts` times the size.

    Both arrays are valid until the next batch: copy them, or move them to a device. Raises InvalidValueError.
    """
    if dataset.transform:
        raise InvalidValueError("batches call no transform: give the data without it, or use a DataLoader")
    if batch_size < 1 or threads < 1 or start < 0 or seed < 0 or epoch < 0 or not 0 <= part < parts:
        raise InvalidValueError(
            f"batch_size={batch_size}, seed={seed}, epoch={epoch}, part={part}, parts={parts}, start={start}, "
            f"threads={threads} (allowed: sizes and threads from 1, numbers from 0, part below parts)"
        )
    plan = draw(len(dataset), seed, epoch, augmentation) if train else None
    positions = np.arange(part, len(dataset) // parts * parts if train else len(dataset), parts)
    batch_size = batch_size if train else min(batch_size, max(1, len(positions)))  # no larger buffers than needed
    if train and len(positions) < batch_size:
        raise InvalidValueError(
            f"batch_size={batch_size} leaves no full batch of {len(positions)} images (nearest: {len(positions)})"
        )
    count = len(positions) // batch_size if train else -(-len(positions) // batch_size)
    workers = [_Worker(dataset, batch_size, plan, parts, augment) for _ in range(threads + 1)]  # one is in use
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future] = deque()
        try:
            for number in range(start, count):
                chosen = positions[number * batch_size : (number + 1) * batch_size]
                pending.append(pool.submit(workers[number % len(workers)].fill, chosen))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Worker:
    """The buffers of a batch."""

    def __init__(self, dataset: Dataset, batch_size: int, plan: Epoch | None, step: int, augment: bool):
        self.dataset = dataset
        self.augment = augment
        self.plan = plan
        self.step = step
        shape = dataset.images.shape[1:]
        self.images = np.empty((batch_size, *shape), np.float32)
        self.labels = np.empty(batch_size, np.int64)
        self.path, self.start = mapped_file(dataset.images) or ("", 0)
        if self.path:
            self.raw = np.empty((batch_size, *shape), np.uint8)
        self.by_batch = bool(self.path) or (plan is not None and plan.operations is not None)
        if plan and augment:  # images in memory are padded once, those on disk or changed by batch, into a zero frame
            self.padded = padded(np.zeros((batch_size, *shape), np.uint8)) if self.by_batch else dataset.padded
            self.windows = np.lib.stride_tricks.sliding_window_view(  # type: ignore[call-overload]  # typed for one axis
                self.padded, shape[1:], axis=(2, 3)
            )

    def fill(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.images[: len(positions)], self.labels[: len(positions)]
        numbers = self.plan.order[positions] if self.plan else positions
        if self.plan and self.augment:
            pixels = self._augmented(self.plan, positions)
        elif self.path:
            pixels = self._read(numbers)
        elif self.plan:
            pixels = self.dataset.images[numbers]
        else:  # a view, not a copy
            pixels = self.dataset.images[positions[0] : positions[-1] + 1 : self.step]
        labels[:] = self.dataset.labels[numbers]
        if self.dataset.images.ndim == 2:  # features
            images[:] = pixels
        else:
            normalise(pixels, self.dataset.task, images)
        if self.plan and self.augment and self.plan.centres is not None:
            cut_out(images, self.plan.centres[positions], self.plan.side)
        return images, labels

    def _augmented(self, plan: Epoch, positions: np.ndarray) -> np.ndarray:
        """Change, crop and flip the images at some positions of the epoch: uint8 (n, 3, H, W)."""
        numbers = plan.order[positions]
        if self.by_batch:
            raw = self._read(numbers) if self.path else self.dataset.images[numbers]
            if plan.operations is not None and plan.strengths is not None:
                raw = trivial_augment.apply(raw, plan.operations[positions], plan.strengths[positions])
            self.padded[: len(numbers), :, PAD:-PAD, PAD:-PAD] = raw
            numbers = np.arange(len(numbers))
        rows, columns = plan.offsets[positions].T
        pixels = self.windows[numbers, :, rows, columns]
        if self.dataset.task.mirrored:
            flips = np.flatnonzero(plan.flips[positions])
            pixels[flips] = pixels[flips, :, :, ::-1]
        return pixels

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        """Read images from a memory-mapped file: through the map, each would load megabytes around it."""
        raw = self.raw[: len(numbers)]
        with open(self.path, "rb", buffering=0) as file:
            for row, number in zip(raw, numbers.tolist()):
                file.seek(self.start + number * row.nbytes)
                if file.readinto(row.data) < row.nbytes:
                    raise BadFileError(f"{self.path} became shorter while it was read")
        return raw


def mapped_file(images: np.ndarray) -> tuple[str, int] | None:
    """Return the file and the offset of memory-mapped images without gaps; None for others."""
    if not isinstance(images, np.memmap) or images.filename is None or not images.flags.c_contiguous:
        return None
    if images.mode == "c":  # changes stay in memory
        return None
    return str(images.filename), file_offset(images)


def file_offset(images: np.memmap) -> int:
    """Return the position of a memory-mapped array, or of a slice, in its file."""
    root = images
    while isinstance(root.base, np.memmap):
        root = root.base
    return root.offset + images.ctypes.data - root.ctypes.data
