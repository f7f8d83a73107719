"""Data sets of one's own arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidValueError, MissingFileError
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, Task, check_image_size, content_hash
from .folder import per_class

PREFIX = "arrays:"  # of the recorded name, as ``folder:`` is of a folder's
DEFAULT_NAME = "data"


def array_dataset(
    images: Any,
    labels: Any,
    class_names: Sequence[str] | None = None,
    *,
    name: str = DEFAULT_NAME,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mirrored: bool = True,
) -> Dataset:
    """Return a data set of arrays, or of anything that NumPy takes as one.

    `images` are (N, H, W, 3) or (N, 3, H, W) in uint8, square, of a multiple of 4 pixels from 8 to 1024; if the second
    and the last axis have 3, the last one is colour. In the second form they are not copied. `labels` are N whole
    numbers, 0 to K - 1, for K `class_names`; by default the classes are named by their numbers.

    Pixels are scaled to [0, 1] and normalised by `mean` and `std` of red, green and blue, by default ImageNet's; a run
    from given weights takes theirs. ``mirrored=False`` trains without horizontal flips, as for digits. A run records
    `name`. Raises InvalidValueError.
    """
    pixels = _pixels(_array(images, "images"))
    numbers = _labels(_array(labels, "labels"), len(pixels))
    classes = _classes(class_names, int(numbers.max()) + 1)
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable():
        raise InvalidValueError(f"name is {str(name)[:100]!r} (allowed: 1 to 100 printable characters)")
    if (mean is None) != (std is None):
        raise InvalidValueError("pass both mean and std, or neither")
    task = Task(
        PREFIX + name,
        name,
        classes,
        len(classes),
        _colour("mean", IMAGENET_MEAN if mean is None else mean, -math.inf),
        _colour("std", IMAGENET_STD if std is None else std, 0),
        bool(mirrored),
        image_size=pixels.shape[2],
    )
    hashes = tuple(content_hash(np.ascontiguousarray(image).data) for image in pixels)
    note = f"{name}: {per_class(classes, numbers)}"
    return Dataset(task, "all", pixels, numbers, False, name, note, hashes=hashes)


def absent(name: str) -> MissingFileError:
    """Return the error for arrays by their recorded name: they are on no disk."""
    return MissingFileError(
        f"{name} is the name of arrays, not on the disk: pass dataset= in Python, or a folder of the same classes"
    )


def _array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values  # also one mapped into memory
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # of unequal lengths, or on a GPU
        why = " ".join(str(error).split())[:200]
        raise InvalidValueError(f"{what} are no array: {why}") from None


def _pixels(images: np.ndarray) -> np.ndarray:
    """Return images as (N, 3, H, W). Raises InvalidValueError."""
    shape, ndim = images.shape, images.ndim
    advice = ""
    if ndim == 3 or (ndim == 4 and 3 not in (shape[1], shape[3]) and 1 in (shape[1], shape[3])):
        stack = (
            "np.stack([images] * 3, axis=-1)" if ndim == 3 else f"images.repeat(3, axis={1 if shape[1] == 1 else 3})"
        )
        advice = f"; grey ones become colour by {stack}"
    elif ndim == 4 and 4 in (shape[1], shape[3]) and 3 not in (shape[1], shape[3]):
        advice = "; leave out transparency: " + ("images[:, :3]" if shape[1] == 4 else "images[..., :3]")
    if ndim != 4 or 3 not in (shape[1], shape[3]):
        raise InvalidValueError(f"images are {shape} (allowed: (N, H, W, 3) or (N, 3, H, W)){advice}")
    if images.dtype != np.uint8:
        advice = "whole numbers from 0 to 255: images.astype('uint8')"
        if images.dtype.kind == "f":
            advice = "values from 0 to 1: multiply by 255 and convert, (255 * images).round().astype('uint8')"
        raise InvalidValueError(f"images are {images.dtype} (allowed: uint8; of {advice})")
    if not len(images):
        raise InvalidValueError("there are no images")
    height, width = shape[1:3] if shape[3] == 3 else shape[2:]
    if height != width:
        raise InvalidValueError(f"images have {width}x{height} pixels (allowed: square ones): crop, pad or resize them")
    check_image_size(height)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if shape[3] == 3 else images


def _labels(labels: np.ndarray, number: int) -> np.ndarray:
    """Return labels as (N,) in int64. Raises InvalidValueError."""
    if labels.ndim != 1:
        advice = "; nearest: labels.argmax(axis=1)" if labels.ndim == 2 and labels.shape[1] > 1 else ""
        advice = "; nearest: labels.ravel()" if labels.size == number else advice
        raise InvalidValueError(f"labels are {labels.shape} (allowed: ({number},)){advice}")
    if len(labels) != number:
        raise InvalidValueError(f"there are {number:,} images and {len(labels):,} labels")
    if labels.dtype.kind not in "iu":
        advice = ""
        if labels.dtype.kind in "UOS":
            advice = "; nearest: class_names, labels = np.unique(labels, return_inverse=True)"
        raise InvalidValueError(f"labels are {labels.dtype} (allowed: whole numbers){advice}")
    for worst in (int(labels.min()), int(labels.max())):
        if not 0 <= worst < 2**31 - 1:
            raise InvalidValueError(f"a label is {worst} (allowed: from 0 to one below the number of classes)")
    return labels.astype(np.int64)


def _classes(names: Sequence[str] | None, number: int) -> tuple[str, ...]:
    """Return the names of at least `number` classes. Raises InvalidValueError."""
    if names is None:
        if number > 100_000:
            raise InvalidValueError(f"a label is {number - 1} (allowed: 0 to 99999 without class_names)")
        return tuple(map(str, range(number)))
    if isinstance(names, str) or not isinstance(names, (Sequence, np.ndarray)):
        raise InvalidValueError(f"class_names is {str(names)[:100]!r} (allowed: a list of names)")
    classes = tuple(names)
    for name in classes:
        if not isinstance(name, str) or not name:
            raise InvalidValueError(f"class_names has {str(name)[:100]!r} (allowed: names)")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise InvalidValueError(f"class_names has {twice!r} twice")
    if number > len(classes):
        raise InvalidValueError(f"a label is {number - 1} (allowed: 0 to {len(classes) - 1}, for {len(classes)} names)")
    return tuple(str(name) for name in classes)  # NumPy's too


def _colour(name: str, values: Any, above: float) -> tuple[float, float, float]:
    """Return three finite numbers. Raises InvalidValueError."""
    try:
        red, green, blue = map(float, values)
        if all(math.isfinite(value) and value > above for value in (red, green, blue)):
            return red, green, blue
    except (TypeError, ValueError):
        pass
    positive = "" if above < 0 else " above 0"
    raise InvalidValueError(f"{name} is {str(values)[:100]} (allowed: three numbers{positive}, of pixels from 0 to 1)")
