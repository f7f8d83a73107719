"""Folders of images, one a class: in ``train/``, ``val/`` and ``test/`` under any of their `SPLIT_NAMES`, or alone."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from .. import fetching
from ..errors import BadFileError, MissingFileError, UnusableError, unknown
from ..machine import available_memory
from . import cache, images
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, Task

SPLITS = ("train", "val", "test")
# Their names, in any case.
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test"}
SPLIT_NAMES.update(dict.fromkeys(("val", "valid", "validation", "dev"), "val"))
ALL = "all"  # the only split of class folders without train/
LISTED = 20  # classes, or kinds of skipped files, to count one by one


def place(name: str) -> Path:
    """Return the path of ``folder:PATH``."""
    return fetching.expanded(name.partition(":")[2])


def title(name: str) -> str:
    """Return the name of the folder of ``folder:PATH``."""
    path = place(name)
    return os.path.basename(os.path.abspath(path)) or str(path)


def layout(root: Path) -> dict[str, Path]:
    """Find the folders of ``train``, ``val`` and ``test``, or the root as ``all`` if it has class folders.

    A ``train`` without folders, beside other classes, is a class. Raises MissingFileError, UnusableError, and
    BadFileError if there are no classes, or two names of a split.
    """
    if not os.path.isdir(root):
        raise MissingFileError(f"no such folder: {root}")
    folders = _class_folders(root)
    named: dict[str, Path] = {}
    for path in folders:
        split = SPLIT_NAMES.get(path.name.lower())
        if split and _class_folders(path):
            if split in named:
                raise BadFileError(f"{root} has {named[split].name}/ and {path.name}/, names of one split: keep one")
            named[split] = path
    if named:
        return {split: named[split] for split in SPLITS if split in named}
    if not folders:
        raise MissingFileError(f"{root} has neither train/ nor test/, nor a folder of images for each class")
    if all(path.name.lower() in SPLIT_NAMES for path in folders):
        raise BadFileError(f"{folders[0]} has no folder of images for each class")
    return {ALL: root}


def task(name: str, image_size: int) -> Task:
    """Return the task of ``folder:PATH``: its classes, and ImageNet's normalisation, as usual for photographs."""
    first = next(iter(layout(place(name)).values()))
    classes = tuple(path.name for path in _class_folders(first))
    return Task(name, title(name), classes, len(classes), IMAGENET_MEAN, IMAGENET_STD, image_size=image_size)


def read(
    name: str, task: Task, split: str, skip_bad: bool = False, keep: bool = True, shown: bool | None = None
) -> Dataset:
    """Read a split of ``folder:PATH``, its images resized to the task's size, as `images_by_class` does.

    With the first split, warn of unused folders and note the skipped ones.
    """
    root = place(name)
    folders = layout(root)
    if split not in folders:
        wanted = f"no {split}/" if ALL not in folders else f"class folders alone, no {split}/"
        raise MissingFileError(f"{root} has {wanted} (it has: {', '.join(folders)})")
    skipped: Counter[str] = Counter()
    if split == next(iter(folders)) != ALL:
        others = [f"{path.name}/" for path in _class_folders(root, skipped) if path not in folders.values()]
        if others:
            warnings.warn(
                f"{root}: beside {folders[split].name}/, not used: {', '.join(others[:LISTED])}", stacklevel=2
            )
    return images_by_class(task, split, folders[split], skip_bad, root, skipped, keep, shown)


def find(folder: Path) -> tuple[list[Path], Counter[str]]:
    """List the images in a folder and below it, by their suffixes, in sorted order; count skipped files by kind.

    Hidden files and folders are skipped, and links to folders, as they may form a ring. Raises UnusableError.
    """
    files: list[str] = []
    skipped: Counter[str] = Counter()
    suffixes = images.suffixes()
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        kinds = {name: _skipped_folder(parent, name) for name in folders}
        folders[:] = [name for name in folders if not kinds[name]]  # os.walk goes on in these
        kinds.update((name, _skipped(parent, name, suffixes)) for name in names)
        files += [os.path.join(parent, name) for name in names if not kinds[name]]
        skipped.update(filter(None, kinds.values()))
    # In the order of paths; strings are several times faster for many files.
    return [Path(file) for file in sorted(files, key=lambda file: os.path.normcase(file).split(os.sep))], skipped


def listed(counts: Counter) -> str:
    """Format counts, the highest first: ``3 .txt, 1 hidden``. At most `LISTED` kinds are named."""
    named = [f"{count:,} {kind}" for kind, count in counts.most_common(LISTED)]
    others = sum(counts.values()) - sum(count for _, count in counts.most_common(LISTED))
    return ", ".join([*named, f"{others:,} others"] if others else named)


def images_by_class(
    task: Task,
    split: str,
    folder: Path,
    skip_bad: bool = False,
    root: Path | None = None,
    skipped: Counter[str] | None = None,
    keep: bool = False,
    shown: bool | None = None,
) -> Dataset:
    """Read the images of ``folder/<class>/**``, with the counts of each class and of `skipped` files as a note.

    With a `root`, images are resized, named from there, and no class may be empty; without one, other sizes are
    refused. The first N images are of all classes in turn. The cache may `keep` the pixels, and a progress bar is
    `shown`. Warns of a single class, of transparency, of HEIC and, with `skip_bad`, of unreadable images. Raises
    BadFileError.
    """
    skipped = Counter() if skipped is None else skipped
    entries = _files_by_class(task.classes, folder, skipped, may_be_empty=root is None)
    if not entries:
        raise BadFileError(f"{folder} has no folder of images (allowed: {', '.join(images.FORMATS)})")
    pictures = _read([path for _, _, path in entries], folder, task, skip_bad, root is not None, keep, shown)
    readable = pictures.hashes != b""
    labels = np.array([label for _, label, _ in entries], np.int64)[readable]
    present = {label for _, label, _ in entries}
    if not len(labels) or (root and present != set(labels.tolist())):
        raise BadFileError(f"{folder} has a class without any readable image")
    if len(present) == 1:
        warnings.warn(f"{folder} has images of one class only, {task.classes[labels[0]]!r}", stacklevel=2)
    if transparent := int(pictures.transparent[readable].sum()):
        warnings.warn(f"{folder}: {seen_through(transparent, len(labels))}", stacklevel=2)
    if heic := unread_heic(skipped):
        warnings.warn(f"{folder}: {heic}", stacklevel=2)
    note = f"{folder}: {per_class(task.classes, labels)}" + (f"; skipped: {listed(skipped)}" if skipped else "")
    pixels = pictures.pixels if readable.all() else pictures.pixels[readable]
    files: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    if root:
        parent = "" if folder == root else os.path.join(folder.relative_to(root), "")
        files = tuple(parent + name for name in pictures.names[readable].tolist())
        hashes = tuple(value.decode() for value in pictures.hashes[readable].tolist())
    return Dataset(task, split, pixels, labels, False, str(folder), note, files=files, hashes=hashes)


def count(name: str, classes: Sequence[str]) -> dict[str, list[int]]:
    """Count the files of each class in each split of ``folder:PATH``, without reading them. Raises as `read`."""
    counts = {}
    for split, path in layout(place(name)).items():
        labels = [label for _, label, _ in _files_by_class(classes, path, Counter())]
        counts[split] = np.bincount(labels, minlength=len(classes)).tolist()
    return counts


def _files_by_class(
    classes: Sequence[str], folder: Path, skipped: Counter, may_be_empty: bool = False
) -> list[tuple[int, int, Path]]:
    """List the turn, the label and the path of each image of ``folder/<class>/**``, in order; count `skipped` files."""
    entries: list[tuple[int, int, Path]] = []
    for directory in _class_folders(folder, skipped):
        if directory.name not in classes:
            raise BadFileError(f"{directory}: {unknown('class', directory.name, classes)}")
        files, others = find(directory)
        if not files and not may_be_empty:
            raise BadFileError(f"{no_images(directory, others)}: move the empty class away to go on")
        entries += [(turn, classes.index(directory.name), path) for turn, path in enumerate(files)]
        skipped.update(others)
    return sorted(entries)


def _read(
    paths: Sequence[Path], folder: Path, task: Task, skip_bad: bool, resize: bool, keep: bool, shown: bool | None
) -> cache.Pictures:
    """Read the files in a folder, those that are `resize`d from the cache if it may `keep` them."""
    size = len(paths) * int(np.prod(task.image))
    free = available_memory()
    if 2 * size > free:  # training keeps a padded copy
        raise UnusableError(
            f"{len(paths):,} images of {task.image_size}x{task.image_size} pixels take {2 * size / 1e9:,.1f} GB of "
            f"memory (free: {free / 1e9:,.1f} GB): a smaller --image-size takes less"
        )

    def decode(content: bytes, name: str) -> images.Picture:
        return images.to_picture(content, name, resize, task.image_size, task.decoding)

    prefix = "" if folder == Path() else os.path.join(folder, "")  # `Path.relative_to` is slow for many files
    names = [str(path)[len(prefix) :] for path in paths]
    file = cache.location(folder, len(paths), task) if keep and resize else None
    try:
        pictures, errors = cache.read(paths, names, task, decode, file, skip_bad, f"read {folder.name}", shown)
    except BadFileError as error:
        raise BadFileError(f"{error}; {images.SKIP_HINT}" if resize else str(error)) from None
    for bad in errors:
        warnings.warn(f"{bad}: skipped", stacklevel=4)
    return pictures


def seen_through(transparent: int, of: int) -> str:
    """Describe the transparent images."""
    return f"{transparent:,} of {of:,} images had transparency: composited on {images.BACKGROUND}"


def no_images(folder: Path, skipped: Counter) -> str:
    """Describe a folder without images."""
    rest = f"; skipped: {listed(skipped)}" if skipped else ""
    heic = unread_heic(skipped)
    return f"{folder} has no images (allowed: {', '.join(images.FORMATS)}{rest})" + (f"; {heic}" if heic else "")


def unread_heic(skipped: Counter[str]) -> str:
    """Describe the skipped HEIC files, with the command to install their library; empty if there are none."""
    number = sum(skipped[suffix] for suffix in images.HEIC)
    return f"{number:,} HEIC pictures are not read: {images.HEIC_COMMAND}" if number else ""


def per_class(classes: Sequence[str], labels: np.ndarray) -> str:
    """Format the number of images of each class."""
    numbers = np.bincount(labels, minlength=len(classes))
    total = f"{len(labels):,} images"
    if len(classes) > LISTED:
        return f"{total} of {len(classes):,} classes, {numbers.min():,} to {numbers.max():,} each"
    return f"{total} ({', '.join(f'{name} {number:,}' for name, number in zip(classes, numbers))})"


def _class_folders(folder: Path, skipped: Counter | None = None) -> list[Path]:
    """List the class folders in a folder, in order; count the other entries in `skipped`."""
    folders = []
    skipped = Counter() if skipped is None else skipped
    try:
        for path in sorted(folder.iterdir()):
            if _is_hidden(path.name):
                skipped["hidden"] += 1
            elif not path.is_dir():
                skipped["outside of classes"] += 1
            elif _is_empty(path):
                skipped["empty folder"] += 1
            else:
                folders.append(path)
    except OSError as error:
        _refuse(error)
    return folders


def _is_empty(folder: str | Path) -> bool:
    """Return True if a folder and those below it have only hidden files."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not _is_hidden(entry.name)]
    return all(entry.is_dir(follow_symlinks=False) and _is_empty(entry.path) for entry in shown)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # of macOS's archives


def _skipped_folder(parent: str, name: str) -> str | None:
    """Return why a folder is skipped, or None."""
    if _is_hidden(name):
        return "hidden"
    return "linked folder" if os.path.islink(os.path.join(parent, name)) else None


def _skipped(parent: str, name: str, suffixes: Collection[str]) -> str | None:
    """Return why a file is skipped, or None."""
    if _is_hidden(name):
        return "hidden"
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in suffixes:
        return suffix if suffix.strip(".") else "without a suffix"
    # Reading a pipe would block.
    return None if os.path.isfile(os.path.join(parent, name)) else "broken link or special file"


def _refuse(error: OSError) -> NoReturn:
    raise UnusableError(f"cannot read {error.filename}: {error.strerror}")
