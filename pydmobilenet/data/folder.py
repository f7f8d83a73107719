"""A folder of images with one folder per class, of any depth: ``train/<class>/…`` with ``test/`` or ``val/`` or both
beside it, or the class folders alone.
"""

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
from ..machine import available_memory
from . import images
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Raw, Task

SPLITS = ("train", "val", "test")
ALL = "all"  # the one split of class folders alone
LISTED = 20  # classes whose images are counted one by one, and kinds of files that were skipped


class Found(NamedTuple):
    """The files of images in a folder, and how many others of each kind were skipped."""

    files: list[Path]
    skipped: Counter


def place(name: str) -> Path:
    """The folder that ``folder:PATH`` names."""
    return fetching.expanded(name.partition(":")[2])


def title(name: str) -> str:
    """What people call ``folder:PATH``: the folder's own name."""
    path = Path(name.partition(":")[2])
    return path.name or str(path)


def splits(root: Path) -> tuple[str, ...]:
    """Those of ``train``, ``val`` and ``test`` that a folder has; ``all`` alone where it has class folders instead.

    A ``train`` without folders in it, beside other classes, is a class: trains are vehicles. Raises MissingFileError,
    UnusableError, and BadFileError where no image can have a class.
    """
    if not os.path.isdir(root):
        raise MissingFileError(f"no such folder: {root}")
    names = _class_names(root)
    if found := tuple(split for split in SPLITS if split in names and _class_names(root / split)):
        return found
    if not names:
        raise MissingFileError(
            f"{root} has neither train/ nor test/ with one folder of images a class, nor such folders"
        )
    if set(names) <= set(SPLITS):
        raise BadFileError(f"{root / names[0]} has no folder of images, one a class")
    return (ALL,)


def task(name: str, image_size: int) -> Task:
    """The task of ``folder:PATH``: its classes are the folders of ``train/``, if it has that, or those in it.

    The pixels are normalised by ImageNet's mean and standard deviation, the usual choice for photographs.
    """
    root = place(name)
    first = splits(root)[0]
    classes = _class_names(root if first == ALL else root / first)
    return Task(name, title(name), classes, len(classes), IMAGENET_MEAN, IMAGENET_STD, image_size=image_size)


def read(name: str, split: str, task: Task, skip_bad: bool = False) -> Raw:
    """A split of ``folder:PATH``, its images resized to the task's size, labelled by their class's place in it."""
    root = place(name)
    has = splits(root)
    if split not in has:
        wanted = f"no {split}/" if has != (ALL,) else f"class folders alone, no {split}/"
        raise MissingFileError(f"{root} has {wanted} (it has: {', '.join(has)})")
    folder = root if split == ALL else root / split
    return images_by_class(task.classes, folder, skip_bad=skip_bad, size=task.image_size, root=root)


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


def images_by_class(
    classes: Sequence[str], folder: Path, skip_bad: bool = False, size: int | None = None, root: Path | None = None
) -> Raw:
    """The images of ``folder/<class>/**``, with how many there are of each class, and what was skipped, as its note.

    With a `size`, the folder is the data set: its images are resized, and their files are named from `root` on. The
    classes take turns, so that the first N images are of all of them. Warns of a single class, and of transparent
    images. Raises BadFileError for a folder that is no class, in a data set for a class without images, and for an
    image that cannot be read (unless `skip_bad`, which warns) or, without a `size`, is not 32x32.
    """
    entries, skipped = _files_by_class(classes, folder, resized=size is not None)
    if not entries:
        raise BadFileError(f"{folder} has no folder of images (allowed: {', '.join(images.FORMATS)})")
    paths = [path for _, _, path in entries]
    pixels, read, transparent = _pixels(paths, skip_bad, size)
    labels = np.array([entries[number][1] for number in read], np.int64)
    present = {label for _, label, _ in entries}
    if not len(labels) or (size and present != set(labels.tolist())):
        raise BadFileError(f"{folder} has a class of which no image can be read")
    if len(present) == 1:
        warnings.warn(f"{folder} has images of one class only, {classes[labels[0]]!r}", stacklevel=2)
    if transparent:
        warnings.warn(f"{folder}: {seen_through(transparent, len(labels))}", stacklevel=2)
    note = f"{folder}: {per_class(classes, labels)}" + (f"; skipped: {listed(skipped)}" if skipped else "")
    files = tuple(str(paths[number].relative_to(root)) for number in read) if root else ()
    return Raw(pixels, labels, official=False, source=str(folder), note=note, files=files)


def count(name: str, split: str, classes: Sequence[str]) -> list[int]:
    """How many files of images each class has in a split of ``folder:PATH``. Raises as `read` does for what no image
    can be in.
    """
    entries, _ = _files_by_class(classes, place(name) if split == ALL else place(name) / split, resized=True)
    return np.bincount([label for _, label, _ in entries], minlength=len(classes)).tolist()


def _files_by_class(classes: Sequence[str], folder: Path, resized: bool) -> tuple[list[tuple[int, int, Path]], Counter]:
    """The turn, the label and the path of each image of ``folder/<class>/**``, in order, and what was skipped."""
    entries: list[tuple[int, int, Path]] = []
    skipped: Counter[str] = Counter()
    for directory in _entries(folder):
        if directory.name.startswith(".") or not directory.is_dir():
            skipped["hidden" if directory.name.startswith(".") else "outside of classes"] += 1
            continue
        if directory.name not in classes:
            raise BadFileError(f"{directory}: {unknown('class', directory.name, classes)}")
        found = find(directory)
        if not found.files and resized:
            raise BadFileError(f"{no_images(directory, found)}: move the empty class away to go on")
        entries += [(turn, classes.index(directory.name), path) for turn, path in enumerate(found.files)]
        skipped.update(found.skipped)
    return sorted(entries), skipped


def _pixels(paths: Sequence[Path], skip_bad: bool, size: int | None) -> tuple[np.ndarray, list[int], int]:
    """The pixels (n, 3, H, W) of those files that can be read, their places, and how many had transparency."""
    side = size or images.SIDE
    needed, free = len(paths) * 3 * side * side, available_memory()
    if 2 * needed > free:  # training keeps a padded copy
        raise UnusableError(
            f"{len(paths):,} images of {side}x{side} pixels take {2 * needed / 1e9:,.1f} GB of memory (free: "
            f"{free / 1e9:,.1f} GB): a smaller --image-size takes less"
        )
    pixels = np.empty((len(paths), 3, side, side), np.uint8)
    read: list[int] = []
    transparent = 0
    for number, path in enumerate(paths):
        try:
            picture = images.read(path, size is not None, side)
        except BadFileError as error:
            if not skip_bad:
                raise BadFileError(f"{error}; --skip-bad goes on without it" if size else str(error)) from None
            warnings.warn(f"{error}: passed over", stacklevel=3)
            continue
        pixels[len(read)] = picture.pixels
        read.append(number)
        transparent += picture.transparent
    return pixels[: len(read)], read, transparent


def seen_through(transparent: int, of: int) -> str:
    """What to say of images that were transparent."""
    return f"{transparent:,} of {of:,} images had transparency: composited on {images.BACKGROUND}"


def no_images(folder: Path, found: Found) -> str:
    """What to say of a folder in which no images were found."""
    rest = f"; skipped: {listed(found.skipped)}" if found.skipped else ""
    return f"{folder} has no images (allowed: {', '.join(images.FORMATS)}{rest})"


def per_class(classes: Sequence[str], labels: np.ndarray) -> str:
    """How many images there are of each class, in words."""
    numbers = np.bincount(labels, minlength=len(classes))
    total = f"{len(labels):,} images"
    if len(classes) > LISTED:
        return f"{total} of {len(classes):,} classes, {numbers.min():,} to {numbers.max():,} each"
    return f"{total} ({', '.join(f'{name} {number:,}' for name, number in zip(classes, numbers))})"


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _entries(folder) if not entry.name.startswith(".") and entry.is_dir())


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
