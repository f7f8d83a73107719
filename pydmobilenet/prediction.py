"""Predict the classes of images, with probabilities."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Union

import numpy as np

from . import fetching
from .data import Dataset, Task, folder, images, normalise
from .engine import Predict
from .errors import BadFileError, InvalidValueError, MissingFileError
from .metrics import softmax

if TYPE_CHECKING:
    from PIL import Image as Pillow

Image = Union[str, "os.PathLike[str]", np.ndarray, "Pillow.Image"]
STDIN = "-"
BATCH_SIZE = 50


class Prediction(NamedTuple):
    """The likeliest classes of an image: label, name and probability, the likeliest first.

    `size` is its width and height; `resized` is True if the network sees it in another size.
    """

    image: str
    size: tuple[int, int]
    classes: list[tuple[int, str, float]]
    transparent: bool = False
    resized: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        classes = [{"label": label, "class": name, "probability": prob} for label, name, prob in self.classes]
        return {"image": self.image, "size": list(self.size), "resized": self.resized, "classes": classes}


def collect(given: Image | Iterable[Image]) -> tuple[list[str | np.ndarray | Pillow.Image], Counter[str]]:
    """List images for `predict`, with all files in folders; count the files skipped there by their kind.

    Arrays (3, H, W) and data sets of them become (H, W, 3).
    Raises InvalidValueError for another object, MissingFileError, and BadFileError for a folder without images.
    """
    from PIL import Image as Pillow

    if isinstance(given, Dataset):
        given = given.images
    single = isinstance(given, (str, os.PathLike, Pillow.Image)) or (isinstance(given, np.ndarray) and given.ndim != 4)
    collected: list[str | np.ndarray | Pillow.Image] = []
    skipped: Counter[str] = Counter()
    for number, image in enumerate([given] if single or not isinstance(given, Iterable) else given):
        if isinstance(image, (str, os.PathLike)):
            path = os.fspath(image)
            collected += _files(str(fetching.expanded(path)) if path.startswith("~") else path, skipped)
        elif isinstance(image, Pillow.Image) or _is_pixels(image):
            collected.append(image)
        elif isinstance(image, np.ndarray) and image.ndim == 3 and _is_pixels(image.transpose(1, 2, 0)):
            collected.append(np.ascontiguousarray(image.transpose(1, 2, 0)))
        else:
            kind = f"{image.shape} in {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
            allowed = "a path, an image of Pillow's, an array (height, width, 3) in uint8"
            raise InvalidValueError(f"image {number} is {kind} (allowed: {allowed})")
    return collected, skipped


def _files(path: str, skipped: Counter[str]) -> list[str]:
    """Return a file, or all images in a folder and below; ``-`` is standard input."""
    if path == STDIN or Path(path).is_file():
        return [path]
    if not Path(path).is_dir():
        raise MissingFileError(f"no such image: {path}")
    files, others = folder.find(Path(path))
    if not files:
        raise BadFileError(folder.no_images(Path(path), others))
    skipped.update(others)
    return list(map(str, files))


def _is_pixels(image: object) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def predict(
    network: Predict,
    task: Task,
    files: Sequence[str | np.ndarray | Pillow.Image],
    top: int | None,
    skip_bad: bool = False,
) -> Iterator[Prediction]:
    """Predict the `top` likeliest classes (None: all) of each image that `collect` returns.

    `network` maps normalised images (N, 3, H, W) to logits (N, outputs); images of another size are resized. Raises
    BadFileError for an unreadable image, or with `skip_bad` a warning unless all are unreadable.
    """

    def decode(item: tuple[str | np.ndarray | Pillow.Image, str]) -> images.Picture:
        return images.to_picture(_content(item[0]), item[1], True, task.image_size, task.decoding)

    any_readable = False
    for start in range(0, len(files), BATCH_SIZE):
        batch = files[start : start + BATCH_SIZE]
        names = [_name(file, number) for number, file in enumerate(batch, start)]
        read: list[tuple[str, images.Picture]] = []
        for name, decoded in zip(names, images.read_all(list(zip(batch, names)), decode)):
            if isinstance(decoded, images.Picture):
                read.append((name, decoded))
            elif skip_bad:
                warnings.warn(f"{decoded}: skipped", stacklevel=2)
            else:
                raise BadFileError(f"{decoded}; {images.SKIP_HINT}" if len(files) > 1 else str(decoded))
        if not read:
            continue
        any_readable = True
        logits = network(normalise(np.stack([picture.pixels for _, picture in read]), task))
        for (name, picture), row in zip(read, softmax(logits)):
            best = np.argsort(-row, kind="stable")[:top]
            classes = [(int(label), task.class_name(int(label)), float(row[label])) for label in best]
            resized = picture.size != (task.image_size, task.image_size)
            yield Prediction(name, picture.size, classes, picture.transparent, resized)
    if not any_readable:
        raise BadFileError(f"none of the {len(files)} images can be read")


def _name(file: str | np.ndarray | Pillow.Image, number: int) -> str:
    if not isinstance(file, str):
        return f"image {number}"
    return "standard input" if file == STDIN else file


def _content(file: str | np.ndarray | Pillow.Image) -> bytes | np.ndarray | Pillow.Image:
    if not isinstance(file, str):
        return file
    return sys.stdin.buffer.read() if file == STDIN else images.content(Path(file))
