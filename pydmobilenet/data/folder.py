"""A folder of images with one folder a class: ``train/<class>/…`` and ``test/<class>/…``, PNG or JPEG."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import fetching
from ..errors import BadFileError, MissingFileError, UnknownNameError, unknown
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Raw, Task

SUFFIXES = (".png", ".jpg", ".jpeg")
SIDE = 32  # pixels


def task(name: str) -> Task:
    """The task of ``folder:PATH``: its classes are the folders of ``train/``, or of ``test/`` if that is all there is.

    The pixels are normalised by ImageNet's mean and standard deviation, the usual choice for photographs.
    """
    root = fetching.expanded(name.split(":", 1)[1])
    place = next((root / split for split in ("train", "test") if os.path.isdir(root / split)), None)
    if place is None:
        raise MissingFileError(f"{root} has neither train/ nor test/ with one folder of images a class")
    classes = tuple(sorted(entry.name for entry in _visible(place) if entry.is_dir()))
    if not classes:
        raise BadFileError(f"{place} has no folder of images")
    return Task(name, str(root), classes, len(classes), IMAGENET_MEAN, IMAGENET_STD)


def read(name: str, split: str, skip_bad: bool = False) -> Raw:
    """A split of ``folder:PATH``, its images resized to 32x32 where they differ."""
    root = fetching.expanded(name.split(":", 1)[1])
    if not os.path.isdir(root / split):
        raise MissingFileError(f"{root} has no {split}/")
    images, labels = images_by_class(task(name).classes, root / split, resize=True, skip_bad=skip_bad)
    return Raw(images, labels, official=False, source=str(root / split))


def images_by_class(
    classes: Sequence[str], folder: Path, resize: bool = False, skip_bad: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of ``folder/<class>/*.png|jpg``.

    The classes take turns, so that the first N images are of all of them. Raises BadFileError for a folder that is no
    class, a class without images where `resize` says that the folder is the data set, and an image that cannot be read
    (unless `skip_bad`, which warns) or, without `resize`, is not 32x32.
    """
    entries = []
    for directory in (entry for entry in _visible(folder) if entry.is_dir()):
        if directory.name not in classes:
            raise BadFileError(f"{directory}: {unknown('class', directory.name, classes)}")
        files = [path for path in _visible(directory) if path.suffix.lower() in SUFFIXES]
        if not files and resize:
            raise BadFileError(f"{directory} has no PNG or JPEG images: move the empty class away to go on")
        entries += [(turn, classes.index(directory.name), path) for turn, path in enumerate(files)]
    if not entries:
        raise BadFileError(f"{folder} has no folder of PNG or JPEG images")
    images, labels = [], []
    for _, label, path in sorted(entries):
        try:
            images.append(read_image(path, resize))
        except BadFileError as error:
            if not skip_bad:
                raise BadFileError(f"{error}; --skip-bad goes on without it" if resize else str(error)) from None
            warnings.warn(f"{error}: passed over", stacklevel=2)
            continue
        labels.append(label)
    if not images or (resize and len(set(labels)) < len({label for _, label, _ in entries})):
        raise BadFileError(f"{folder} has a class of which no image can be read")
    return np.stack(images), np.array(labels, np.int64)


def read_image(path: Path | BinaryIO, resize: bool) -> np.ndarray:
    """One image (3, 32, 32) uint8; raises BadFileError where it cannot be read or, without `resize`, is not 32x32."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if not resize and image.size != (SIDE, SIDE):
                raise UnknownNameError("{}x{} pixels (allowed: 32x32)".format(*image.size))
            if image.mode == "F":
                raise ValueError("its pixels are not whole numbers")
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            colours = ImageOps.exif_transpose(image).convert("RGB")  # cameras note which way is up
            if colours.size != (SIDE, SIDE):
                colours = colours.resize((SIDE, SIDE), Image.Resampling.BILINEAR)  # Pillow's takes in all pixels
            return np.asarray(colours).transpose(2, 0, 1)
    except UnknownNameError as error:
        raise BadFileError(f"{path} has {error}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of damaged files
        raise BadFileError(f"{path} cannot be read as an image: {error}") from None


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
