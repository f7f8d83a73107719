"""TrivialAugment: one random operation of random strength for each image (Müller and Hutter, 2021, arXiv 2103.10158).

The operations and their ranges are the paper's for CIFAR, those of RandAugment. Its wider ranges rotate by up to 135
degrees, which changes digits and asks much of small networks.

Each operation takes images (n, 3, H, W) in uint8 and strengths (n,), whole numbers from -30 to 30; those without a
direction take their absolute value. They give the bits of Pillow's operations, for a batch at a time: image by image,
Pillow takes four times as long for 32x32 pixels, and holds Python's lock meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STRONGEST = 30  # of 31 strengths from 0


def draw(generator: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the number of an operation and a strength for each image."""
    operations = generator.integers(0, len(OPERATIONS), images)
    return operations, generator.integers(0, STRONGEST + 1, images) * generator.choice((-1, 1), images)


def apply(images: np.ndarray, operations: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Return images (n, 3, H, W) in uint8, each changed by its operation with its strength."""
    changed = np.empty_like(images)
    for number, operation in enumerate(OPERATIONS.values()):
        rows = np.flatnonzero(operations == number)
        if len(rows):
            changed[rows] = operation(images[rows], strengths[rows])
    return changed


def identity(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Return the images."""
    return images


def autocontrast(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Stretch each channel to the whole range."""
    present = _histograms(images) > 0
    low, high = present.argmax(2)[..., None], 255 - present[..., ::-1].argmax(2)[..., None]
    scale = 255 / np.maximum(high - low, 1)
    stretched = np.clip(np.arange(256) * scale - low * scale, 0, 255)
    return _look_up(images, np.where(high > low, stretched, np.arange(256)))


def equalize(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Level the histogram of each channel."""
    histograms = _histograms(images)
    brightest = 255 - (histograms[..., ::-1] > 0).argmax(2)[..., None]
    step = (histograms.sum(2, keepdims=True) - np.take_along_axis(histograms, brightest, 2)) // 255
    darker = histograms.cumsum(2) - histograms
    levelled = np.minimum((step // 2 + darker) // np.maximum(step, 1), 255)
    return _look_up(images, np.where(step > 0, levelled, np.arange(256)))


def rotate(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Rotate by up to 30 degrees."""
    angle = -np.radians(strengths)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = images.shape[3] / 2, images.shape[2] / 2
    return _transform(images, (cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos))


def solarize(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Invert all values from a threshold on."""
    values, threshold = np.arange(256), 256 - (_level(strengths) * 256 // STRONGEST)[:, None, None]
    return _look_up(images, np.where(values < threshold, values, 255 - values))


def color(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Change the distance to grey."""
    return _blend(_grey(images), images, strengths)


def posterize(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Keep 8 to 4 bits of each value."""
    dropped = _level(strengths) * 4 // STRONGEST
    return images & (0xFF << dropped & 0xFF).astype(np.uint8)[:, None, None, None]


def contrast(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Change the distance to the mean grey value."""
    mean = np.floor(_grey(images).mean((1, 2, 3), keepdims=True) + 0.5)
    return _blend(mean, images, strengths)


def brightness(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Change the distance to black."""
    return _blend(np.zeros(1), images, strengths)


def sharpness(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Change the distance to the blurred image; the outermost pixels stay."""
    wide = images.astype(np.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    blurred = images.copy()
    blurred[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # the nearest to a thirteenth
    return _blend(blurred, images, strengths)


def shear_x(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Shift each row by up to 0.3 times its number."""
    return _transform(images, (1, strengths * 0.3 / STRONGEST, 0, 0, 1, 0))


def shear_y(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Shift each column by up to 0.3 times its number."""
    return _transform(images, (1, 0, 0, strengths * 0.3 / STRONGEST, 1, 0))


def translate_x(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Shift by up to 10 of 32 pixels along the rows."""
    return _transform(images, (1, 0, _shift(strengths, images.shape[3]), 0, 1, 0))


def translate_y(images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Shift by up to 10 of 32 pixels along the columns."""
    return _transform(images, (1, 0, 0, 0, 1, _shift(strengths, images.shape[2])))


OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    operation.__name__: operation
    for operation in (
        *(identity, autocontrast, equalize, rotate, solarize, color, posterize, contrast, brightness, sharpness),
        *(shear_x, shear_y, translate_x, translate_y),
    )
}


def _level(strengths: np.ndarray) -> np.ndarray:
    return np.abs(strengths)


def _shift(strengths: np.ndarray, length: int) -> np.ndarray:
    return np.sign(strengths) * (_level(strengths) * 10 * length // (32 * STRONGEST))


def _places(images: np.ndarray) -> np.ndarray:
    """Add 256 k to the values of the k-th channel, of n times 3: (3 n, H W)."""
    channels = images.reshape(images.shape[0] * images.shape[1], -1)
    return channels + 256 * np.arange(len(channels))[:, None]


def _histograms(images: np.ndarray) -> np.ndarray:
    """Count the values of each channel: (n, 3, 256)."""
    counts = np.bincount(_places(images).ravel(), minlength=images.shape[0] * images.shape[1] * 256)
    return counts.reshape(*images.shape[:2], 256)


def _look_up(images: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace each value by that of its channel's `table` (n, 3 or 1, 256), rounded down."""
    table = np.broadcast_to(table, (*images.shape[:2], 256)).astype(np.uint8)
    return table.ravel().take(_places(images)).reshape(images.shape)


def _grey(images: np.ndarray) -> np.ndarray:
    """Return the luma of ITU-R 601-2 (n, 1, H, W), in Pillow's whole numbers."""
    red, green, blue = (images[:, channel : channel + 1].astype(np.int64) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _blend(other: np.ndarray, images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Make the distance of images to an `other` 0.1 to 1.9 times as large, in single precision as Pillow does."""
    factor = (_level(strengths) * 1.8 / STRONGEST + 0.1).astype(np.float32)[:, None, None, None]
    other = other.astype(np.float32)
    return np.clip(other + factor * (images - other), 0, 255).astype(np.uint8)


def _transform(images: np.ndarray, matrix: tuple) -> np.ndarray:
    """Take each pixel (x, y) from (a x + b y + c, d x + e y + f), or black from outside of the image.

    `matrix` is (a, b, c, d, e, f), of numbers or (n,). Pillow's arithmetic has 16 bits behind the point.
    """
    count, channels, height, width = images.shape
    a, b, c, d, e, f = (np.broadcast_to(value, count)[:, None, None] for value in matrix)
    starts = c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5  # the centre of the first pixel
    a, b, d, e, c, f = (np.floor(value * 65536.0 + 0.5).astype(np.int64) for value in (a, b, d, e, *starts))
    y, x = np.ogrid[:height, :width]
    columns, rows = (c + a * x + b * y) >> 16, (f + d * x + e * y) >> 16
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    first = height * width * np.arange(count * channels).reshape(count, channels, 1, 1)  # pixel of each channel
    places = np.where(inside, rows * width + columns, 0)[:, None] + first
    return np.where(inside[:, None], images.ravel().take(places), np.uint8(0))
