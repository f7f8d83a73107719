"""From image files to classes with probabilities."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .data import Task, normalise
from .data.folder import SIDE, SUFFIXES, read_image
from .errors import BadFileError, MissingFileError
from .validation import Predict

STDIN = "-"
BATCH = 50  # images answered at once


class Prediction(NamedTuple):
    """The likeliest classes of an image, each its number, its name and its probability, from the likeliest on."""

    image: str
    size: tuple[int, int]
    classes: list[tuple[int, str, float]]

    @property
    def resized(self) -> bool:
        """Whether the image had another size than networks see."""
        return self.size != (SIDE, SIDE)

    def plain(self) -> dict[str, object]:
        """As JSON can hold it."""
        classes = [{"label": label, "class": name, "probability": share} for label, name, share in self.classes]
        return {"image": self.image, "size": list(self.size), "resized": self.resized, "classes": classes}


def image_files(paths: Sequence[str]) -> list[str]:
    """The files of some paths: a file itself, the PNG and JPEG images in a folder and below it, ``-`` standard input.

    Raises MissingFileError for a path that is not there, BadFileError for a folder without images.
    """
    found = []
    for path in paths:
        if path == STDIN or Path(path).is_file():
            found.append(path)
        elif Path(path).is_dir():
            inside = sorted(str(file) for file in Path(path).rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise BadFileError(f"{path} has no PNG or JPEG images")
            found += inside
        else:
            raise MissingFileError(f"no such image: {path}")
    return found


def predict(network: Predict, task: Task, files: Sequence[str], top: int) -> Iterator[Prediction]:
    """The `top` likeliest classes of each image, in the order of the files.

    `network` takes normalised images (N, 3, 32, 32) to logits (N, outputs); images of other sizes are resized. Raises
    BadFileError for a file that cannot be read as an image.
    """
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        read = [_read(file) for file in batch]
        logits = network(normalise(np.stack([pixels for pixels, _ in read]), task))
        for file, (_, size), row in zip(batch, read, softmax(logits)):
            best = np.argsort(-row, kind="stable")[:top]
            classes = [(int(label), class_name(task, int(label)), float(row[label])) for label in best]
            yield Prediction("standard input" if file == STDIN else file, size, classes)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, outputs) of logits (N, outputs), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def class_name(task: Task, label: int) -> str:
    """The name of a class, or its number: the published networks for superclasses have 80 outputs that mean nothing."""
    return task.classes[label] if label < len(task.classes) else str(label)


def _read(file: str) -> tuple[np.ndarray, tuple[int, int]]:
    """An image (3, 32, 32) in uint8, and its own width and height."""
    from PIL import Image

    source = io.BytesIO(sys.stdin.buffer.read()) if file == STDIN else Path(file)
    try:
        pixels = read_image(source, resize=True)
    except BadFileError:
        if file != STDIN:
            raise
        raise BadFileError("standard input cannot be read as an image (allowed: PNG, JPEG, ...)") from None
    with Image.open(source) as image:
        return pixels, image.size
