"""What the list of a folder's files tells of a run's images, before any of them is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import provenance
from ..data import Task, folder, get_task
from ..data.splits import kinds
from ..errors import BadFileError


def most_training_images(name: str, task: Task) -> int:
    """The number of images to train on, of which some may be put aside yet; 0 for what is no folder."""
    counts = _counts(name, task)
    return sum(counts.get("train", counts.get(folder.ALL, [])))


def check(name: str, task: Task, metadata: Mapping[str, Any], skip_bad: bool) -> None:
    """Raises BadFileError where a folder has other numbers of files than the images that a run began with.

    With `skip_bad` there may be more: those that cannot be read.
    """
    if not name.startswith("folder:") or sorted(task.classes) != sorted(get_task(name).classes):
        return  # of other classes, `get_splits` tells
    listed = _counts(name, task)
    for split, counts in listed.items():
        parts = (split, "val") if split == "train" and "val" not in listed else (split,)
        begun = [0] * len(task.classes)
        for part, recorded in metadata["data"].items():
            if part in parts or split == folder.ALL:
                begun = [sum(pair) for pair in zip(begun, recorded["images_per_class"])]
        more = counts != begun and all(here >= there for here, there in zip(counts, begun))
        # Of train/, images that stand in another split too were left out.
        if counts != begun and not (more and (skip_bad or split == "train")):
            now, then = ({"images": sum(numbers), "images_per_class": numbers} for numbers in (counts, begun))
            difference = provenance.data_difference(then, now, task.classes)
            hint = " (--skip-bad leaves out unreadable ones)" if more else ""
            what = "data" if split == folder.ALL else f"{split} data"
            raise other_data(folder.place(name), what, difference + hint)


def other_data(source: str | Path, what: str, difference: str) -> BadFileError:
    """The error for data that is not what a run began with."""
    return BadFileError(
        f"{source} has not the {what} that the run began with: {difference}; to train on with other data, start a run "
        "with --weights on its last.params"
    )


def _counts(name: str, task: Task) -> dict[str, list[int]]:
    """How many files of images each class has in each split of a folder; nothing of another data set."""
    has = kinds(name) if name.startswith("folder:") else ()
    return {split: folder.count(name, split, task.classes) for split in has}
