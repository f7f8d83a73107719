"""Training, validation and test images, existing or held out.

An image is held out by the SHA-256 of its content, a number below 1: below one fraction for the test, and from 1 less
the other one for validation. It stays there, whatever is added, removed or renamed.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import BadFileError, InvalidValueError
from . import arrays, folder
from .dataset import Dataset, Task, content_hash
from .datasets import located, read_split


class Fractions(NamedTuple):
    """Expected fractions of the images held out for validation and for the test."""

    val: float = 0.0
    test: float = 0.0


NOTHING = Fractions()
DEFAULT = Fractions(0.2, 0.2)  # of class folders alone, as in the recipes for folders
MOST = 0.5


class Splits(NamedTuple):
    """Images for training, for choosing the best epoch, and for the test."""

    train: Dataset
    val: Dataset | None
    test: Dataset | None


def kinds(name: str) -> tuple[str, ...]:
    """List the existing splits: some of ``train``, ``val`` and ``test``, or ``all`` of class folders alone."""
    if name.startswith(arrays.PREFIX):
        raise arrays.absent(name)
    return tuple(folder.layout(folder.place(name))) if name.startswith("folder:") else ("train", "test")


def given_splits(train: object, val: object = None, test: object = None) -> Splits | None:
    """Check data sets given together: of one size, with the classes of the training images or the first of these.

    All get the recorded name of arrays, the training images' task, and hashes. None stands for data on the disk, by its
    name or path. Raises InvalidValueError.
    """
    if train is None or isinstance(train, (str, PathLike)):
        for argument, images in (("val", val), ("test", test)):
            if images is not None:
                raise InvalidValueError(f"{argument} belongs to arrays: pass dataset=array_dataset(...) too")
        return None
    splits: dict[str, Dataset | None] = {}
    task: Task | None = None
    for split, dataset in (("train", train), ("val", val), ("test", test)):
        if dataset is None and split != "train":
            splits[split] = None
            continue
        argument = "dataset" if split == "train" else split
        if not isinstance(dataset, Dataset):
            allowed = "an array_dataset(images, labels), or one of get_dataset"
            raise InvalidValueError(f"{argument} is a {type(dataset).__name__} (allowed: {allowed})")
        if dataset.transform:
            raise InvalidValueError(f"{argument} has a transform, which training does not call: pass it without")
        if not len(dataset):
            raise InvalidValueError(f"{argument} has no images")
        task = task or replace(dataset.task, name=f"{arrays.PREFIX}{dataset.task.title}")
        check_task(dataset, task, argument)
        # Those of a folder have the hashes of files.
        same: dict[str, Any] = {"files": (), "hashes": pixel_hashes(dataset)}
        splits[split] = replace(dataset, task=task, split=split, official=False, **same)
    return Splits(**splits)  # type: ignore[arg-type]  # there are training images


def check_task(dataset: Dataset, task: Task, argument: str) -> None:
    """Raise InvalidValueError unless images have the size of a task, and its classes or the first of these."""
    if dataset.task.image_size != task.image_size:
        size, wanted = (f"{side}x{side}" for side in (dataset.task.image_size, task.image_size))
        raise InvalidValueError(f"{argument} has images of {size} pixels (allowed: {wanted}, as learned)")
    names = dataset.task.classes
    if names != task.classes[: len(names)] or (len(dataset) and int(dataset.labels.max()) >= task.outputs):
        wanted, has = (f"{', '.join(classes[:10])}{', …' * (len(classes) > 10)}" for classes in (task.classes, names))
        raise InvalidValueError(f"{argument} has the classes {has} (allowed: {wanted}, in this order)")


def get_dataset(
    name: str | PathLike[str],
    split: str = "train",
    root: str | Path | None = None,
    skip_bad: bool = False,
    task: Task | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    cache: bool = True,
    progress: bool | None = None,
) -> Dataset:
    """Read a split of a data set: ``train``, ``test``, ``val`` of a folder, or ``all`` of class folders alone.

    ``cifar10``, ``cifar100`` and ``cifar100-coarse`` (the 20 superclasses) are searched for in `root`,
    ``$PYDMOBILENET_HOME`` and MXNet's home, else downloaded. ``imagenet32`` has no free address. ``digits`` comes with
    the package. Unofficial files are used only from `root`. A path, or ``folder:PATH``, is a folder of images; `root`
    replaces it, and `skip_bad` skips unreadable images with a warning. A recorded `task` sets labels, normalisation and
    size. Decoded pictures of a folder are kept for the next time unless `cache` is False; `progress` shows a bar
    (None: on a terminal).

    The fractions hold images out, as in training: `val_fraction` of the training images, `test_fraction` of class
    folders alone. Both are 0.2 by default for class folders alone, else 0.

    Raises InvalidValueError, MissingFileError, BadFileError (also for other classes than the `task`'s), UnusableError.
    """
    has = kinds(located(name, root))
    alone = has == (folder.ALL,)
    unused = {"val_fraction": "val" in has and val_fraction, "test_fraction": not alone and test_fraction}
    for key, value in unused.items():
        if value:
            raise InvalidValueError(f"{key} {value:g} cannot be used: the data has {', '.join(has)}; nearest: 0")
    val, test = DEFAULT if alone else NOTHING
    fractions = Fractions(
        val if val_fraction is None else val_fraction, test if test_fraction is None else test_fraction
    )
    if not all(0 <= value <= MOST for value in fractions):
        raise InvalidValueError(f"fractions are {fractions.val:g} and {fractions.test:g} (allowed: 0 to {MOST})")
    if not (split in folder.SPLITS if alone else split in ("train", "val") and fractions.val):
        return read_split(name, split, root, skip_bad, task, cache, progress)
    part = getattr(get_splits(name, fractions, root, skip_bad, task, cache, progress), split)
    if part is None:
        raise InvalidValueError(f"{split}_fraction 0 leaves no {split} images; nearest: {getattr(DEFAULT, split)}")
    return part


def get_splits(
    name: str | PathLike[str],
    fractions: Fractions = NOTHING,
    root: str | Path | None = None,
    skip_bad: bool = False,
    task: Task | None = None,
    cache: bool = True,
    progress: bool | None = None,
) -> Splits:
    """Read all splits of a data set; `fractions` hold out the validation and test images that it lacks.

    Training images of a folder that are in another split too are left out. Raises as `get_dataset`, and
    InvalidValueError for a class that is too small, or a fraction of ``imagenet32``.
    """
    name = located(name, root)
    has = kinds(name)

    def read(split: str) -> Dataset:
        return read_split(name, split, root, skip_bad, task, cache, progress)

    if has == (folder.ALL,):
        return put_aside(read(folder.ALL), fractions)
    if "train" not in has:
        raise InvalidValueError(f"{folder.place(name)} has no train/ (it has: {', '.join(has)})")
    if name == "imagenet32" and fractions.val:
        raise InvalidValueError("val_fraction of imagenet32 is not supported (allowed: 0)")
    train, val, test = (read(split) if split in has else None for split in folder.SPLITS)
    assert train is not None
    return hold_out(Splits(train, val, test), fractions)


def hold_out(splits: Splits, fractions: Fractions) -> Splits:
    """Leave twins of held out images out of training, and hold out validation images if there are none.

    Without test images too, both are held out. Raises as `get_splits`.
    """
    train, val, test = splits
    if val is None and test is None and any(fractions):
        return put_aside(train, fractions)
    for held_out in filter(None, (val, test)):
        train = _without_twins(train, held_out)
    if fractions.val and val is None:
        train, val, _ = put_aside(train, fractions._replace(test=0.0))
    return Splits(train, val, test)


def put_aside(dataset: Dataset, fractions: Fractions) -> Splits:
    """Split a data set by `fractions`. Raises InvalidValueError if no image of a class is left for training."""
    hashes = dataset.hashes or pixel_hashes(dataset)
    dataset = replace(dataset, hashes=hashes)
    side = sides(hashes, dataset.labels, fractions)
    numbers = np.bincount(dataset.labels)
    stay = np.bincount(dataset.labels[side == 0], minlength=len(numbers))
    for label in np.flatnonzero((numbers > 0) & (stay == 0)).tolist():
        raise InvalidValueError(
            f"class {dataset.task.class_name(label)!r} has no image left for training, of {numbers[label]}: add some, "
            "or lower test_fraction"
        )
    train, val, test = (_part(dataset, split, np.flatnonzero(side == at)) for at, split in enumerate(folder.SPLITS))
    assert train is not None  # an image of each class stays
    return Splits(train, val, test)


def pixel_hashes(dataset: Dataset) -> tuple[str, ...]:
    """Return the hashes of the images' pixels."""
    return tuple(content_hash(np.ascontiguousarray(image).data) for image in dataset.images)


def sides(hashes: tuple[str, ...], labels: np.ndarray, fractions: Fractions) -> np.ndarray:
    """Return the side of each image: 0 for training, 1 for validation, 2 for the test.

    A class without test images gives the one with the lowest hash, and one without validation images the remaining one
    with the highest. One without training images takes its lowest validation image back, never a test image. Equal
    images go together.
    """
    train, val, test = range(3)
    contents, number = np.unique(hashes, return_inverse=True)  # in the order of the hashes
    position = np.array([int(content[:13], 16) for content in contents]) / 16**13  # 52 bits: never rounded up to 1
    side = np.full(len(contents), train)
    side[position >= 1 - fractions.val] = val
    side[position < fractions.test] = test
    classes = [np.unique(number[labels == label]) for label in np.unique(labels)]
    if fractions.test:
        side[[label[0] for label in classes if test not in side[label]]] = test
    if fractions.val:
        left = [label[side[label] == train] for label in classes if val not in side[label]]
        side[[label[-1] for label in left if len(label)]] = val
        kept = [label[side[label] == val] for label in classes if train not in side[label]]
        side[[label[0] for label in kept if len(label)]] = train
    return side[number]


def _part(dataset: Dataset, split: str, positions: np.ndarray) -> Dataset | None:
    """Take some images as a split; the training images' note keeps the skipped files."""
    if not len(positions):
        return None
    numbers = folder.per_class(dataset.task.classes, dataset.labels[positions])
    skipped = "".join(dataset.note.partition("; ")[1:]) if split == "train" else ""
    note = f"{split}: {numbers}, of {dataset.source}{skipped}"
    return replace(dataset.take(positions, split), note=note, official=False)


def _without_twins(train: Dataset, held_out: Dataset) -> Dataset:
    """Leave out, with a warning, training images that are held out too. Raises BadFileError if a class has no other."""
    stays = ~np.isin(train.hashes, held_out.hashes)
    if stays.all():
        return train
    twins = len(train) - int(stays.sum())
    number = int(stays.argmin())
    first = train.files[number] if train.files else f"image {number}"
    warnings.warn(
        f"{twins:,} of {len(train):,} training images are {held_out.split} images too, as {first}: left out",
        stacklevel=3,
    )
    part = _part(train, "train", np.flatnonzero(stays))
    if part is None or set(part.labels.tolist()) != set(train.labels.tolist()):
        raise BadFileError(f"{train.source} has a class with only {held_out.split} images")
    return part
