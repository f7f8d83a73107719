"""The augmentation of an epoch, drawn for all images at once: a pure function of seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import trivial_augment

PAD = 4  # zero pixels on each side before a random crop to the old size: 9 x 9 positions
FLIPS = ("random", "alternating")


@dataclass(frozen=True)
class Augmentation:
    """What else than a random crop changes an image.

    A `flip` is ``random`` or ``alternating``: a random half of the images in the first epoch, then each in every other
    epoch (Jordan, 2024, arXiv 2404.00498). `cutout` is the side of a square in pixels, 0 for none.
    """

    flip: str = "random"
    trivial_augment: bool = False
    cutout: int = 0


@dataclass(frozen=True)
class Epoch:
    """The augmentation of an epoch: image numbers `order` (N,), crop `offsets` (N, 2), and horizontal `flips` (N,).

    Where asked for, it has the `operations` (N,) and `strengths` (N,) of TrivialAugment, and for cutout the `centres`
    (N, 2) of squares in fractions of an image, with the square's `side` in pixels.
    """

    order: np.ndarray
    offsets: np.ndarray
    flips: np.ndarray
    operations: np.ndarray | None = None
    strengths: np.ndarray | None = None
    centres: np.ndarray | None = None
    side: int = 0


def draw(images: int, seed: int, epoch: int, augmentation: Augmentation | None = None) -> Epoch:
    """Draw the augmentation of an epoch, a pure function of its arguments.

    What is drawn for one purpose does not depend on another.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(images)
    offsets = generator.integers(0, 2 * PAD + 1, (images, 2))
    flips = generator.random(images) < 0.5
    asked = augmentation or Augmentation()
    if asked.flip == "alternating":
        flips = (stream(seed, 0, "flip").random(images) < 0.5)[order] ^ (epoch % 2 == 1)
    operations = strengths = centres = None
    if asked.trivial_augment:
        operations, strengths = trivial_augment.draw(stream(seed, epoch, "trivial_augment"), images)
    if asked.cutout:
        centres = stream(seed, epoch, "cutout").random((images, 2))
    return Epoch(order, offsets, flips, operations, strengths, centres, asked.cutout)


# The last of a generator's four numbers. It is not 0: to NumPy, [seed, epoch, 0, 0] is [seed, epoch], from which the
# order of the images is drawn.
STREAMS = {"mixup": 1, "cutmix": 2, "mixup or cutmix": 3, "flip": 4, "trivial_augment": 5, "cutout": 6}


def stream(seed: int, epoch: int, purpose: str, batch: int = 0) -> np.random.Generator:
    """Return the random numbers for a purpose of `STREAMS`, of an epoch or of a batch in it."""
    return np.random.default_rng([seed, epoch, batch, STREAMS[purpose]])


def cut_out(images: np.ndarray, centres: np.ndarray, side: int) -> None:
    """Set a square of each normalised image (n, C, H, W) to 0, its mean, in place.

    (Cutout: DeVries and Taylor, 2017, arXiv 1708.04552.) `centres` (n, 2) are fractions of the height and the width;
    pixels of a square outside of the image are left out.
    """
    inside = []
    for length, centre in zip(images.shape[2:], centres.T):
        distance = np.arange(length) - (centre[:, None] * length).astype(int) + side // 2
        inside.append((distance >= 0) & (distance < side))
    rows, columns = inside
    np.copyto(images, 0, where=rows[:, None, :, None] & columns[:, None, None, :])
