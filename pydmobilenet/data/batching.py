"""Batches of images: shuffled, cropped, flipped and normalised, a whole batch at once.

Images stay in uint8 up to the last step, in reused buffers. Threads fill them while the network computes: NumPy
releases the interpreter, so no worker processes are needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..errors import BadFileError, InvalidValueError
from .dataset import PAD, Dataset, normalise, padded


@dataclass(frozen=True)
class Epoch:
    """The augmentation of an epoch: image numbers `order` (N,), crop `offsets` (N, 2), and horizontal `flips` (N,)."""

    order: np.ndarray
    offsets: np.ndarray
    flips: np.ndarray


def draw(images: int, seed: int, epoch: int) -> Epoch:
    """Draw the augmentation of an epoch, a pure function of seed and epoch."""
    generator = np.random.default_rng([seed, epoch])
    return Epoch(
        order=generator.permutation(images),
        offsets=generator.integers(0, 2 * PAD + 1, (images, 2)),
        flips=generator.random(images) < 0.5,
    )


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
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batches of an epoch: images (batch_size, 3, H, W) in float32 and labels (batch_size,) in int64.

    In training, images are shuffled, padded by 4 zero pixels, cropped at random and, if the task allows, flipped half
    of the time; an incomplete last batch is dropped. Otherwise, images come as they are, and the last batch may be
    smaller. The first `start` batches are skipped. The number of `threads` changes nothing.

    Worker `part` of `parts` gets every `parts`-th image. In training, all workers' parts are of equal length, and their
    i-th batches are together the i-th batch of a single worker with `parts` times the size.

    Both arrays are valid until the next batch. Raises InvalidValueError.
    """
    if batch_size < 1 or threads < 1 or start < 0 or seed < 0 or epoch < 0 or not 0 <= part < parts:
        raise InvalidValueError(
            f"batch_size={batch_size}, seed={seed}, epoch={epoch}, part={part}, parts={parts}, start={start}, "
            f"threads={threads} (allowed: sizes and threads from 1, numbers from 0, part below parts)"
        )
    plan = draw(len(dataset), seed, epoch) if train else None
    positions = np.arange(part, len(dataset) // parts * parts if train else len(dataset), parts)
    batch_size = batch_size if train else min(batch_size, max(1, len(positions)))  # no larger buffers than needed
    if train and len(positions) < batch_size:
        raise InvalidValueError(
            f"batch_size={batch_size} leaves no full batch of {len(positions)} images (nearest: {len(positions)})"
        )
    count = len(positions) // batch_size if train else -(-len(positions) // batch_size)
    workers = [_Worker(dataset, batch_size, plan, parts) for _ in range(threads + 1)]  # one is in use
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

    def __init__(self, dataset: Dataset, batch_size: int, plan: Epoch | None, step: int):
        self.dataset = dataset
        self.plan = plan
        self.step = step
        shape = dataset.images.shape[1:]
        self.images = np.empty((batch_size, *shape), np.float32)
        self.labels = np.empty(batch_size, np.int64)
        images = dataset.images
        self.path = ""  # of memory-mapped images
        if isinstance(images, np.memmap) and images.flags.c_contiguous and images.filename is not None:
            self.path, self.start = images.filename, file_offset(images)
            self.raw = np.empty((batch_size, *shape), np.uint8)
        if plan:  # images in memory are padded once, those on disk by batch, into a zero frame
            self.padded = padded(np.zeros_like(self.raw)) if self.path else dataset.padded
            self.windows = np.lib.stride_tricks.sliding_window_view(  # type: ignore[call-overload]  # typed for one axis
                self.padded, shape[1:], axis=(2, 3)
            )

    def fill(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.images[: len(positions)], self.labels[: len(positions)]
        if self.plan:
            pixels, labels[:] = self._augmented(self.plan, positions), self.dataset.labels[self.plan.order[positions]]
        else:
            numbers = slice(positions[0], positions[-1] + 1, self.step)  # a view, not a copy
            pixels = self._read(positions) if self.path else self.dataset.images[numbers]
            labels[:] = self.dataset.labels[numbers]
        return normalise(pixels, self.dataset.task, images), labels

    def _augmented(self, plan: Epoch, positions: np.ndarray) -> np.ndarray:
        """Crop and flip the images at some positions of the epoch: uint8 (n, 3, H, W)."""
        numbers = plan.order[positions]
        if self.path:
            self.padded[: len(numbers), :, PAD:-PAD, PAD:-PAD] = self._read(numbers)
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


def file_offset(images: np.memmap) -> int:
    """Return the position of a memory-mapped array, or of a slice, in its file."""
    root = images
    while isinstance(root.base, np.memmap):
        root = root.base
    return root.offset + images.ctypes.data - root.ctypes.data
