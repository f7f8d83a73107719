"""A folder of images with one folder per class, of any depth: ``train/<class>/…`` with ``test/`` or ``val/`` or both
beside it, under any of their `SPLIT_NAMES`, or the class folders alone.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from .. import fetching
from ..errors import BadFileError, MissingFileError, UnusableError, unknown
from ..machine import available_memory
from . import images
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Raw, Task

SPLITS = ("train", "val", "test")
# What people call them, in any case.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
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
    path = place(name)
    return os.path.basename(os.path.abspath(path)) or str(path)


def layout(root: Path) -> dict[str, Path]:
    """Find the folders of ``train``, ``val`` and ``test``; the root as ``all`` where it has class folders instead.

    A ``train`` without folders in it, beside other classes, is a class: trains are vehicles. Raises MissingFileError,
    UnusableError, and BadFileError where no image can have a class, and where a split has two names.
    """
    if not os.path.isdir(root):
        raise MissingFileError(f"no such folder: {root}")
    folders = _class_folders(root)
    named: dict[str, Path] = {}
    for path in folders:
        split = SPLIT_NAMES.get(path.name.lower())
        if split and _class_folders(path):
            if split in named:
                raise BadFileError(
                    f"{root} has {named[split].name}/ and {path.name}/, two names of one split: keep one of them"
                )
            named[split] = path
    if named:
        return {split: named[split] for split in SPLITS if split in named}
    if not folders:
        raise MissingFileError(
            f"{root} has neither train/ nor test/ with one folder of images a class, nor such folders"
        )
    if all(path.name.lower() in SPLIT_NAMES for path in folders):
        raise BadFileError(f"{folders[0]} has no folder of images, one a class")
    return {ALL: root}


def task(name: str, image_size: int) -> Task:
    """The task of ``folder:PATH``: its classes are the folders of ``train/``, if it has that, or those in it.

    The pixels are normalised by ImageNet's mean and standard deviation, the usual choice for photographs.
    """
    first = next(iter(layout(place(name)).values()))
    classes = tuple(path.name for path in _class_folders(first))
    return Task(name, title(name), classes, len(classes), IMAGENET_MEAN, IMAGENET_STD, image_size=image_size)


def read(name: str, split: str, task: Task, skip_bad: bool = False) -> Raw:
    """A split of ``folder:PATH``, its images resized to the task's size, labelled by their class's place in it.

    With the first split come a warning of folders that are none, and a note of those that are passed over.
    """
    root = place(name)
    folders = layout(root)
    if split not in folders:
        wanted = f"no {split}/" if ALL not in folders else f"class folders alone, no {split}/"
        raise MissingFileError(f"{root} has {wanted} (it has: {', '.join(folders)})")
    beside: Counter[str] = Counter()
    if split == next(iter(folders)) != ALL:
        others = [f"{path.name}/" for path in _class_folders(root, beside) if path not in folders.values()]
        if others:
            shown = ", ".join(others[:LISTED]) + (" …" if len(others) > LISTED else "")
            warnings.warn(f"{root}: beside {folders[split].name}/, not used: {shown}", stacklevel=2)
    size = task.image_size
    return images_by_class(task.classes, folders[split], skip_bad=skip_bad, size=size, root=root, beside=beside)


def find(folder: Path) -> Found:
    """The files of images in a folder and in those below it, in sorted order, told by their suffixes.

    Hidden files and folders are skipped, as ``._x.png`` and ``.ipynb_checkpoints``, and links to folders, which may
    form a ring. Raises UnusableError where a folder cannot be read.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    for place, folders, names in os.walk(folder, onerror=_refuse):
        kinds = {name: _skipped(Path(place, name)) for name in folders + names}
        folders[:] = [name for name in folders if not kinds[name]]  # those that are walked through
        files += [Path(place, name) for name in names if not kinds[name]]
        skipped.update(filter(None, kinds.values()))
    return Found(sorted(files), skipped)


def listed(counts: Counter) -> str:
    """Counts in words, the highest first: ``3 .txt, 1 hidden``."""
    parts = [f"{count:,} {kind}" for kind, count in counts.most_common(LISTED)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(LISTED))
    return ", ".join(parts + [f"{rest:,} others"] * bool(rest))


def images_by_class(
    classes: Sequence[str],
    folder: Path,
    skip_bad: bool = False,
    size: int | None = None,
    root: Path | None = None,
    beside: Mapping[str, int] | None = None,
) -> Raw:
    """The images of ``folder/<class>/**``, with how many there are of each class, and what was skipped, as its note.

    With a `size`, the folder is the data set: its images are resized, and their files, named from `root` on, are
    hashed. `beside` counts what was skipped elsewhere. The classes take turns, so that the first N images are of all of
    them. Warns of a single class, and of transparent images. Raises BadFileError for a folder that is no class, in a
    data set for a class without images, and for an image that cannot be read (unless `skip_bad`, which warns) or,
    without a `size`, is not 32x32.
    """
    entries, skipped = _files_by_class(classes, folder, resized=size is not None)
    skipped.update(beside or {})
    if not entries:
        raise BadFileError(f"{folder} has no folder of images (allowed: {', '.join(images.FORMATS)})")
    paths = [path for _, _, path in entries]
    pixels, read, hashes, transparent = _pixels(paths, skip_bad, size)
    labels = np.array([entries[number][1] for number in read], np.int64)
    present = {label for _, label, _ in entries}
    if not len(labels) or (size and present != set(labels.tolist())):
        raise BadFileError(f"{folder} has a class of which no image can be read")
    if len(present) == 1:
        warnings.warn(f"{folder} has images of one class only, {classes[labels[0]]!r}", stacklevel=2)
    if transparent:
        warnings.warn(f"{folder}: {seen_through(transparent, len(labels))}", stacklevel=2)
    note = f"{folder}: {per_class(classes, labels)}" + (f"; skipped: {listed(skipped)}" if skipped else "")
    raw = Raw(pixels, labels, official=False, source=str(folder), note=note)
    if root is None:
        return raw
    return replace(raw, files=tuple(str(paths[number].relative_to(root)) for number in read), hashes=tuple(hashes))


def count(name: str, split: str, classes: Sequence[str]) -> list[int]:
    """How many files of images each class has in a split of ``folder:PATH``. Raises as `read` does for what no image
    can be in.
    """
    entries, _ = _files_by_class(classes, layout(place(name))[split], resized=True)
    return np.bincount([label for _, label, _ in entries], minlength=len(classes)).tolist()


def _files_by_class(classes: Sequence[str], folder: Path, resized: bool) -> tuple[list[tuple[int, int, Path]], Counter]:
    """The turn, the label and the path of each image of ``folder/<class>/**``, in order, and what was skipped."""
    entries: list[tuple[int, int, Path]] = []
    skipped: Counter[str] = Counter()
    for directory in _class_folders(folder, skipped):
        if directory.name not in classes:
            raise BadFileError(f"{directory}: {unknown('class', directory.name, classes)}")
        found = find(directory)
        if not found.files and resized:
            raise BadFileError(f"{no_images(directory, found)}: move the empty class away to go on")
        entries += [(turn, classes.index(directory.name), path) for turn, path in enumerate(found.files)]
        skipped.update(found.skipped)
    return sorted(entries), skipped


def _pixels(paths: Sequence[Path], skip_bad: bool, size: int | None) -> tuple[np.ndarray, list[int], list[str], int]:
    """The pixels (n, 3, H, W) of those files that can be read, their places and hashes, and how many had transparency.

    Each file is read once.
    """
    side = size or images.SIDE
    needed, free = len(paths) * 3 * side * side, available_memory()
    if 2 * needed > free:  # training keeps a padded copy
        raise UnusableError(
            f"{len(paths):,} images of {side}x{side} pixels take {2 * needed / 1e9:,.1f} GB of memory (free: "
            f"{free / 1e9:,.1f} GB): a smaller --image-size takes less"
        )
    pixels = np.empty((len(paths), 3, side, side), np.uint8)
    read: list[int] = []
    hashes: list[str] = []
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
        hashes.append(picture.hash)
        transparent += picture.transparent
    return pixels[: len(read)], read, hashes, transparent


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


def _class_folders(folder: Path, skipped: Counter | None = None) -> list[Path]:
    """List the folders in a folder that are not passed over, in order; count the other entries in `skipped`."""
    try:
        kinds = {path: _hidden(path.name) or _no_class(path) for path in sorted(folder.iterdir())}
    except OSError as error:
        _refuse(error)
    if skipped is not None:
        skipped.update(filter(None, kinds.values()))
    return [path for path, kind in kinds.items() if not kind]


def _no_class(path: Path) -> str | None:
    """Return why an entry is no class and no split; None where it may be one."""
    if not path.is_dir():
        return "outside of classes"
    return "empty folder" if _is_empty(path) else None


def _is_empty(folder: str | Path) -> bool:
    """Whether there are no files in a folder, nor in those below it, but hidden ones."""
    with os.scandir(folder) as entries:
        return all(
            _hidden(entry.name) or (entry.is_dir(follow_symlinks=False) and _is_empty(entry.path)) for entry in entries
        )


def _hidden(name: str) -> str | None:
    """Return of what kind a name is that is passed over wherever it stands: macOS's archives have a ``__MACOSX``."""
    if name == "__MACOSX":
        return name
    return "hidden" if name.startswith(".") else None


def _skipped(path: Path) -> str | None:
    """Return why a folder is not walked through, or an image not read from a file; None where it is."""
    if kind := _hidden(path.name):
        return kind
    if path.is_dir():
        return "linked folder" if path.is_symlink() else None
    suffix = path.suffix.lower()
    if suffix not in images.SUFFIXES:
        return suffix if suffix[1:].isalnum() and len(suffix) < 10 else "of no known kind"
    return None if path.is_file() else "broken link or special file"  # as a pipe, which would be waited for


def _refuse(error: OSError) -> NoReturn:
    raise UnusableError(f"cannot read {error.filename}: {error.strerror}")
