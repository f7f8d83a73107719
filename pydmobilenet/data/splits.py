"""Training, validation and test images of a data set: those that it has, and those that are put aside."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InvalidValueError
from . import folder
from .dataset import Dataset, Task
from .datasets import get_dataset, located


class Fractions(NamedTuple):
    """Shares of the images of each class that are put aside for validation and for the test.

    Which images those are depends on the data alone: no seed of a run, and no other share for validation, brings a test
    image into the training of another run.
    """

    val: float = 0.0
    test: float = 0.0


NOTHING = Fractions()


class Splits(NamedTuple):
    """The images to train on, those that choose the best epoch, and those for the test, where there are any."""

    train: Dataset
    val: Dataset | None
    test: Dataset | None


def kinds(name: str) -> tuple[str, ...]:
    """The splits that a data set has: some of ``train``, ``val`` and ``test``, or ``all`` of class folders alone."""
    return folder.splits(folder.place(name)) if name.startswith("folder:") else ("train", "test")


def get_splits(
    name: str | PathLike[str],
    fractions: Fractions = NOTHING,
    root: str | Path | None = None,
    skip_bad: bool = False,
    task: Task | None = None,
) -> Splits:
    """All images of a data set, in their splits. Validation images, where the data set has none, and the test images of
    class folders alone are put aside as `fractions` say: the same images each time, in the same shares of each class.

    Raises as `get_dataset` does, and InvalidValueError where a class is too small, or ``imagenet32`` is to be split.
    """
    name = located(name, root)
    has = kinds(name)

    def read(split: str) -> Dataset:
        return get_dataset(name, split, root, skip_bad, task)

    if has == (folder.ALL,):
        return Splits(*_put_aside(read(folder.ALL), fractions))
    if "train" not in has:
        raise InvalidValueError(f"{folder.place(name)} has no train/ to learn from (it has: {', '.join(has)})")
    train, test = read("train"), read("test") if "test" in has else None
    if "val" in has:
        return Splits(train, read("val"), test)
    if not fractions.val:
        return Splits(train, None, test)
    if name == "imagenet32":
        raise InvalidValueError(
            "val_fraction: of imagenet32, which is read from the disk, nothing is put aside (allowed: 0)"
        )
    rest, val, _ = _put_aside(train, fractions._replace(test=0.0))
    return Splits(rest, val, test)


def _put_aside(dataset: Dataset, fractions: Fractions) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """What is left for training, and what is put aside for validation and for the test."""
    train, val, test = (
        _part(dataset, split, positions)
        for split, positions in zip(("train", "val", "test"), stratified(dataset, fractions))
    )
    assert train is not None  # of each class, an image stays
    _, _, skipped = dataset.note.partition("; ")
    return replace(train, note=f"{train.note}; {skipped}" if skipped else train.note), val, test


def _part(dataset: Dataset, split: str, positions: np.ndarray) -> Dataset | None:
    if not len(positions):
        return None
    numbers = folder.per_class(dataset.task.classes, dataset.labels[positions])
    note = f"{split}: {numbers}, of {dataset.source}"
    return replace(dataset.take(positions, split), note=note, official=False)


def stratified(dataset: Dataset, fractions: Fractions) -> list[np.ndarray]:
    """Positions (n,), in order, of the images that stay, and of those put aside for validation and for the test.

    Of each class, a share is a whole number of images, one at least. Raises InvalidValueError where none would stay.
    """
    parts: list[list[int]] = [[], [], []]
    for label in np.unique(dataset.labels).tolist():
        own = np.flatnonzero(dataset.labels == label)
        order = np.random.default_rng(label).permutation(own).tolist()
        val, test = (max(1, round(share * len(own))) if share else 0 for share in (fractions.val, fractions.test))
        if val + test >= len(own):
            least = 1 + bool(val) + bool(test)
            raise InvalidValueError(
                f"class {dataset.task.class_name(label)!r} has {len(own)} images, too few to put shares of "
                f"{fractions.val:g} and {fractions.test:g} aside for validation and test (allowed: from {least} images "
                "on, and shares that leave some to train on)"
            )
        parts[0] += order[test + val :]
        parts[1] += order[test : test + val]
        parts[2] += order[:test]
    return [np.array(sorted(part), np.int64) for part in parts]
