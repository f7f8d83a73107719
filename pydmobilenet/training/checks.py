"""What has to be as it was for a run to go on; of a folder's images first their number, before any of them is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import provenance
from ..checkpoints import runs
from ..data import Splits, Task, folder, get_task
from ..data.splits import kinds
from ..errors import BadFileError
from . import config as configuration
from .checkpoint import CONFIG, STATE
from .config import Config
from .trainer import Trainer


def check_version(metadata: Mapping[str, Any], directory: Path) -> None:
    """Raises BadFileError for a run of version 0.2 or earlier, whose momentum is that of MXNet's own update, and for
    one of version 0.4 whose images were put aside by another rule.
    """
    if not {"engine", "config", "data", "sessions"} <= metadata.keys():
        raise BadFileError(
            f"{directory} was begun by version 0.2 or earlier, whose update this version does not compute: to train "
            "on, start a run with --weights on its last.params"
        )
    if runs.SEEN not in metadata and any(metadata["config"].get(f"{part}_fraction") for part in ("val", "test")):
        raise BadFileError(
            f"{directory} was begun by version 0.4, which split images by their position: to train on, start a run "
            "with --weights on its last.params"
        )


def check_engine(trainer: Trainer, metadata: Mapping[str, Any], directory: Path) -> None:
    """Raises BadFileError where the state of a run is of another engine than the trainer."""
    engine = metadata["engine"]
    if engine != trainer.name:
        raise BadFileError(
            f"{directory / STATE} is of the engine {engine!r}, not of {trainer.name!r}: resume with --engine {engine}, "
            "or start a run with --weights on its last.params"
        )


def check_config(config: Config, metadata: Mapping[str, Any], directory: Path) -> None:
    """Raises BadFileError where a run's configuration is not the one that it began with."""
    begun = {**configuration.DEFAULTS, **metadata["config"]}
    for key, value in json.loads(json.dumps(vars(config))).items():
        if value != begun.get(key):
            raise BadFileError(
                f"{directory / CONFIG} has {key} {value!r}, but the run began with {begun.get(key)!r}: put it back; to "
                "train on with another recipe, start a run with --weights on its last.params"
            )


def check_data(splits: Splits, metadata: Mapping[str, Any]) -> None:
    """Raises BadFileError where the data is not what a run began with."""
    for split, recorded in metadata["data"].items():
        dataset = getattr(splits, split)
        difference = "there is none"
        if dataset:
            difference = provenance.data_difference(recorded, provenance.of_data(dataset), dataset.task.classes)
        if difference:
            raise _other_data(splits.train.source, f"{split} data", difference)


def most_training_images(name: str, task: Task) -> int:
    """The number of images to train on, of which some may be put aside yet; 0 for what is no folder."""
    counts = _counts(name, task)
    return sum(counts.get("train", counts.get(folder.ALL, [])))


def check_counts(name: str, task: Task, metadata: Mapping[str, Any], skip_bad: bool) -> None:
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
            raise _other_data(folder.place(name), what, difference + hint)


def _other_data(source: str | Path, what: str, difference: str) -> BadFileError:
    """The error for data that is not what a run began with."""
    return BadFileError(
        f"{source} has not the {what} that the run began with: {difference}; to train on with other data, start a run "
        "with --weights on its last.params"
    )


def _counts(name: str, task: Task) -> dict[str, list[int]]:
    """How many files of images each class has in each split of a folder; nothing of another data set."""
    has = kinds(name) if name.startswith("folder:") else ()
    return {split: folder.count(name, split, task.classes) for split in has}
