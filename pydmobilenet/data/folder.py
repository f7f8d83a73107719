"""A folder of images with one folder a class: ``train/<class>/…`` and ``test/<class>/…``, of any depth."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from .. import fetching
from ..errors import BadFileError, MissingFileError, UnusableError, unknown
from . import images
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Raw, Task

LISTED = 20  # classes whose images are counted one by one, and kinds of files that were skipped


class Found(NamedTuple):
    """The files of images in a folder, and how many others of each kind were skipped."""

    files: list[Path]
    skipped: Counter


def task(name: str) -> Task:
    """The task of ``folder:PATH``: its classes are the folders of ``train/``, or of ``test/`` if that is all there is.

    The pixels are normalised by ImageNet's mean and standard deviation, the usual choice for photographs.
    """
    root = fetching.expanded(name.split(":", 1)[1])
    place = next((root / split for split in ("train", "test") if os.path.isdir(root / split)), None)
    if place is None:
        raise MissingFileError(f"{root} has neither train/ nor test/ with one folder of images a class")
    classes = tuple(entry.name for entry in _entries(place) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise BadFileError(f"{place} has no folder of images")
    return Task(name, str(root), classes, len(classes), IMAGENET_MEAN, IMAGENET_STD)


def read(name: str, split: str, classes: Sequence[str], skip_bad: bool = False) -> Raw:
    """A split of ``folder:PATH``, its images resized to 32x32 where they differ, labelled by place in `classes`."""
    root = fetching.expanded(name.split(":", 1)[1])
    if not os.path.isdir(root / split):
        raise MissingFileError(f"{root} has no {split}/")
    return images_by_class(classes, root / split, resize=True, skip_bad=skip_bad)


def find(folder: Path) -> Found:
    """The files of images in a folder and in those below it, in sorted order, told by their suffixes.

    Hidden files and folders are skipped, as ``._x.png`` and ``.ipynb_checkpoints``, and links to folders, which may
    form a ring. Raises UnusableError where a folder cannot be read.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    for place, folders, names in os.walk(folder, onerror=_refuse):
        kinds = {name: _folder_kind(Path(place, name)) for name in folders}
        folders[:] = [name for name in folders if not kinds[name]]  # those that are walked through
        kinds.update((name, _file_kind(Path(place, name))) for name in names)
        files += [Path(place, name) for name in names if not kinds[name]]
        skipped.update(filter(None, kinds.values()))
    return Found(sorted(files), skipped)


def listed(counts: Counter) -> str:
    """Counts in words, the highest first: ``3 .txt, 1 hidden``."""
    parts = [f"{count:,} {kind}" for kind, count in counts.most_common(LISTED)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(LISTED))
    return ", ".join(parts + [f"{rest:,} others"] * bool(rest))


def images_by_class(classes: Sequence[str], folder: Path, resize: bool = False, skip_bad: bool = False) -> Raw:
    """The images of ``folder/<class>/**``, with how many there are of each class, and what was skipped, as its note.

    The classes take turns, so that the first N images are of all of them. Warns of a single class, and of transparent
    images. Raises BadFileError for a folder that is no class, a class without images where `resize` says that the
    folder is the data set, and an image that cannot be read (unless `skip_bad`, which warns) or, without `resize`, is
    not 32x32.
    """
    entries: list[tuple[int, int, Path]] = []
    skipped: Counter[str] = Counter()
    for directory in _entries(folder):
        if directory.name.startswith(".") or not directory.is_dir():
            skipped["hidden" if directory.name.startswith(".") else "outside of classes"] += 1
            continue
        if directory.name not in classes:
            raise BadFileError(f"{directory}: {unknown('class', directory.name, classes)}")
        found = find(directory)
        if not found.files and resize:
            raise BadFileError(f"{no_images(directory, found)}: move the empty class away to go on")
        entries += [(turn, classes.index(directory.name), path) for turn, path in enumerate(found.files)]
        skipped.update(found.skipped)
    if not entries:
        raise BadFileError(f"{folder} has no folder of images (allowed: {', '.join(images.FORMATS)})")
    pixels, labels, transparent = [], [], 0
    for _, label, path in sorted(entries):
        try:
            picture = images.read(path, resize)
        except BadFileError as error:
            if not skip_bad:
                raise BadFileError(f"{error}; --skip-bad goes on without it" if resize else str(error)) from None
            warnings.warn(f"{error}: passed over", stacklevel=2)
            continue
        pixels.append(picture.pixels)
        labels.append(label)
        transparent += picture.transparent
    present = {label for _, label, _ in entries}
    if not pixels or (resize and present != set(labels)):
        raise BadFileError(f"{folder} has a class of which no image can be read")
    if len(present) == 1:
        warnings.warn(f"{folder} has images of one class only, {classes[labels[0]]!r}", stacklevel=2)
    if transparent:
        warnings.warn(f"{folder}: {seen_through(transparent, len(labels))}", stacklevel=2)
    note = f"{folder}: {_per_class(classes, labels)}" + (f"; skipped: {listed(skipped)}" if skipped else "")
    return Raw(np.stack(pixels), np.array(labels, np.int64), official=False, source=str(folder), note=note)


def seen_through(transparent: int, of: int) -> str:
    """What to say of images that were transparent."""
    return f"{transparent:,} of {of:,} images had transparency: composited on {images.BACKGROUND}"


def no_images(folder: Path, found: Found) -> str:
    """What to say of a folder in which no images were found."""
    rest = f"; skipped: {listed(found.skipped)}" if found.skipped else ""
    return f"{folder} has no images (allowed: {', '.join(images.FORMATS)}{rest})"


def _per_class(classes: Sequence[str], labels: Sequence[int]) -> str:
    numbers = np.bincount(labels, minlength=len(classes))
    total = f"{len(labels):,} images"
    if len(classes) > LISTED:
        return f"{total} of {len(classes):,} classes, {numbers.min():,} to {numbers.max():,} each"
    return f"{total} ({', '.join(f'{name} {number:,}' for name, number in zip(classes, numbers))})"


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise UnusableError(f"cannot read {error.filename}: {error.strerror}")


def _folder_kind(path: Path) -> str | None:
    """Why a folder is not walked through; None where it is."""
    if path.name.startswith("."):
        return "hidden"
    return "linked folder" if path.is_symlink() else None


def _file_kind(path: Path) -> str | None:
    """Which kind of file this is that no image is read from; None for the file of an image."""
    if path.name.startswith("."):
        return "hidden"
    suffix = path.suffix.lower()
    if suffix not in images.SUFFIXES:
        return suffix if suffix[1:].isalnum() and len(suffix) < 10 else "of no known kind"
    if not os.path.exists(path):
        return "broken link"
    return None if os.path.isfile(path) else "special file"  # as a pipe, which would be waited for
