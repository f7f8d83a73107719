"""Training, validation and test images of a data set: those that it has, and those that are put aside.

An image is put aside by the SHA-256 of its content, a number below 1: for the test below the one fraction, for
validation from 1 less the other one on. So it stays where it is, whatever is added, removed or renamed.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import BadFileError, InvalidValueError
from . import folder
from .dataset import Dataset, Task, content_hash
from .datasets import located, read_split


class Fractions(NamedTuple):
    """Shares of the images that are put aside for validation and for the test, but for chance."""

    val: float = 0.0
    test: float = 0.0


NOTHING = Fractions()
DEFAULT = Fractions(0.2, 0.2)  # of class folders alone, as the recipes for folders have it
MOST = 0.5


class Splits(NamedTuple):
    """The images to train on, those that choose the best epoch, and those for the test, where there are any."""

    train: Dataset
    val: Dataset | None
    test: Dataset | None


def kinds(name: str) -> tuple[str, ...]:
    """The splits that a data set has: some of ``train``, ``val`` and ``test``, or ``all`` of class folders alone."""
    return tuple(folder.layout(folder.place(name))) if name.startswith("folder:") else ("train", "test")


def get_dataset(
    name: str | PathLike[str],
    split: str = "train",
    root: str | Path | None = None,
    skip_bad: bool = False,
    task: Task | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
) -> Dataset:
    """A split of a data set: ``train``, ``test``, of a folder ``val`` too, or ``all`` of class folders alone.

    ``cifar10``, ``cifar100`` and ``cifar100-coarse`` (the 20 superclasses) are looked for in `root`,
    ``$PYDMOBILENET_HOME`` and MXNet's home, else downloaded; ``imagenet32`` is looked for there too, but has no free
    address. Other files than the official ones are used from `root` alone. ``digits`` comes with the package.
    A path, or ``folder:PATH``, is any folder of images, which `root` replaces. Those that cannot be read are passed
    over, with a warning, if `skip_bad` says so. With a `task`, as a run has recorded it, labels, normalisation and size
    are that task's.

    The fractions put images aside, as training does: `val_fraction` of the training images, `test_fraction` of class
    folders alone. Of these, both are 0.2 by default, as in training; of other data, 0.

    Raises InvalidValueError, MissingFileError, BadFileError and UnusableError; BadFileError too where the data has
    other classes than the `task`.
    """
    has = kinds(located(name, root))
    alone = has == (folder.ALL,)
    unused = {"val_fraction": "val" in has and val_fraction, "test_fraction": not alone and test_fraction}
    for key, value in unused.items():
        if value:
            raise InvalidValueError(f"{key} {value:g} cannot be used: the data has {', '.join(has)}; nearest: 0")
    given = (val_fraction, test_fraction)
    default = DEFAULT if alone else NOTHING
    fractions = Fractions(*(own if value is None else value for own, value in zip(default, given)))
    if not all(0 <= value <= MOST for value in fractions):
        raise InvalidValueError(f"fractions are {fractions.val:g} and {fractions.test:g} (allowed: 0 to {MOST})")
    if not (split in folder.SPLITS if alone else split in ("train", "val") and fractions.val):
        return read_split(name, split, root, skip_bad, task)
    part = getattr(get_splits(name, fractions, root, skip_bad, task), split)
    if part is None:
        raise InvalidValueError(f"{split}_fraction 0 leaves no {split} images; nearest: {getattr(DEFAULT, split)}")
    return part


def get_splits(
    name: str | PathLike[str],
    fractions: Fractions = NOTHING,
    root: str | Path | None = None,
    skip_bad: bool = False,
    task: Task | None = None,
) -> Splits:
    """All images of a data set, in their splits. Validation images, where the data set has none, and the test images of
    class folders alone are put aside as `fractions` say. Of a folder, no image to train on is in another split too.

    Raises as `get_dataset` does, and InvalidValueError where a class is too small, or ``imagenet32`` is to be split.
    """
    name = located(name, root)
    has = kinds(name)

    def read(split: str) -> Dataset:
        return read_split(name, split, root, skip_bad, task)

    if has == (folder.ALL,):
        return put_aside(read(folder.ALL), fractions)
    if "train" not in has:
        raise InvalidValueError(f"{folder.place(name)} has no train/ to learn from (it has: {', '.join(has)})")
    if name == "imagenet32" and fractions.val:
        raise InvalidValueError(
            "val_fraction: of imagenet32, which is read from the disk, nothing is put aside (allowed: 0)"
        )
    train, val, test = (read(split) if split in has else None for split in folder.SPLITS)
    assert train is not None
    for held_out in filter(None, (val, test)):
        train = _without_twins(train, held_out)
    if fractions.val and val is None:
        train, val, _ = put_aside(train, fractions._replace(test=0.0))
    return Splits(train, val, test)


def put_aside(dataset: Dataset, fractions: Fractions) -> Splits:
    """Split a data set into what is left for training, and what is put aside for validation and for the test.

    Raises InvalidValueError where nothing of a class is left.
    """
    hashes = dataset.hashes or tuple(content_hash(np.ascontiguousarray(image).data) for image in dataset.images)
    dataset = replace(dataset, hashes=hashes)
    side = sides(hashes, dataset.labels, fractions)
    numbers = np.bincount(dataset.labels)
    stay = np.bincount(dataset.labels[side == 0], minlength=len(numbers))
    for label in np.flatnonzero((numbers > 0) & (stay == 0)).tolist():
        raise InvalidValueError(
            f"class {dataset.task.class_name(label)!r} has no image left to train on, of {numbers[label]}: add some, "
            "or lower test_fraction"
        )
    train, val, test = (_part(dataset, split, np.flatnonzero(side == at)) for at, split in enumerate(folder.SPLITS))
    assert train is not None  # of each class, an image stays
    return Splits(_with_skipped(train, dataset.note), val, test)


def sides(hashes: tuple[str, ...], labels: np.ndarray, fractions: Fractions) -> np.ndarray:
    """Decide which images stay to train on (0), and which are put aside for validation (1) and for the test (2).

    A class without test images lends the one with the lowest hash, and one without validation images the one with the
    highest that is left, for as long as it has none of its own there. One with nothing to train on takes the lowest of
    its validation images back, and never a test image. Equal images go together.
    """
    train, val, test = range(3)
    contents, number = np.unique(hashes, return_inverse=True)  # in the order of the hashes
    position = np.array([int(content[:13], 16) for content in contents]) / 16**13  # 52 bits: never rounded up to 1
    side = np.full(len(contents), train)
    side[position >= 1 - fractions.val] = val
    side[position < fractions.test] = test
    classes = [np.unique(number[labels == label]) for label in np.unique(labels)]
    if fractions.test:
        side[[own[0] for own in classes if test not in side[own]]] = test
    if fractions.val:
        left = [own[side[own] == train] for own in classes if val not in side[own]]
        side[[own[-1] for own in left if len(own)]] = val
        kept = [own[side[own] == val] for own in classes if train not in side[own]]
        side[[own[0] for own in kept if len(own)]] = train
    return side[number]


def _part(dataset: Dataset, split: str, positions: np.ndarray) -> Dataset | None:
    if not len(positions):
        return None
    numbers = folder.per_class(dataset.task.classes, dataset.labels[positions])
    note = f"{split}: {numbers}, of {dataset.source}"
    return replace(dataset.take(positions, split), note=note, official=False)


def _with_skipped(train: Dataset, note: str) -> Dataset:
    """Add to the training images' note what the `note` of all images says was skipped."""
    _, _, skipped = note.partition("; ")
    return replace(train, note=f"{train.note}; {skipped}") if skipped else train


def _without_twins(train: Dataset, held_out: Dataset) -> Dataset:
    """Leave out, with a warning, training images whose content is in a split that chooses or judges.

    Raises BadFileError where nothing of a class is left.
    """
    stays = ~np.isin(train.hashes, held_out.hashes)
    if stays.all():
        return train
    twins = len(train) - int(stays.sum())
    first = train.files[int(stays.argmin())]
    warnings.warn(
        f"{twins:,} of {len(train):,} training images are {held_out.split} images too, as {first}: not trained on",
        stacklevel=3,
    )
    part = _part(train, "train", np.flatnonzero(stays))
    if part is None or set(part.labels.tolist()) != set(train.labels.tolist()):
        raise BadFileError(f"{train.source} has a class of which all images are {held_out.split} images too")
    return _with_skipped(part, train.note)
