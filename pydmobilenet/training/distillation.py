"""Find the teacher of a run, and check that it fits (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Union

from .. import checkpoints, fetching
from ..catalog import parse_name
from ..checkpoints import Checkpoint
from ..data import Task
from ..errors import InvalidValueError, MissingFileError
from .checkpoint import NEW_RUN
from .config import Config

PathLike = Union[str, "os.PathLike[str]"]


def is_published(teacher: PathLike) -> bool:
    """Return whether a teacher is named by its model, or as ``published``, and not by a path."""
    return teacher == checkpoints.PUBLISHED or not os.path.exists(fetching.expanded(teacher))


def find(teacher: PathLike, config: Config, task: Task, weights_dir: Path | None = None) -> Checkpoint:
    """Find a teacher by its path, or by the name of a model with weights for the run's data set.

    ``published`` means those of the run's own model. Raises as `checkpoints.find`, and InvalidValueError for a teacher
    of other classes or other sizes of images.
    """
    if is_published(teacher):
        try:
            model = parse_name(config.model if teacher == checkpoints.PUBLISHED else str(teacher)).name
        except InvalidValueError as error:
            raise MissingFileError(f"no such teacher: {teacher} is no path, and {error}") from None
        checkpoint = checkpoints.find(model, config.dataset, weights_dir=weights_dir)
    else:
        checkpoint = checkpoints.find(weights=teacher, to_train=True)
    _check_fits(checkpoint, task)
    return checkpoint


def _check_fits(teacher: Checkpoint, task: Task) -> None:
    given = teacher.task
    for label, (theirs, ours) in enumerate(zip_longest(given.classes, task.classes)):
        if theirs != ours:
            raise InvalidValueError(
                f"the teacher {teacher.model} has other classes: number {label} is {theirs or 'missing'}, "
                f"and {ours or 'missing'} in the data; pass a teacher trained on the same classes"
            )
    if given.outputs != task.outputs:
        raise InvalidValueError(f"the teacher {teacher.model} has {given.outputs} outputs, the run {task.outputs}")
    if given.image_size != task.image_size:
        raise InvalidValueError(
            f"the teacher {teacher.model} sees images of {given.image_size} pixels, the run of {task.image_size}; "
            f"nearest: --image-size {given.image_size}"
        )


def describe(teacher: Checkpoint) -> dict[str, str]:
    """Describe a teacher for ``run.json``."""
    return {"model": teacher.model, "source": os.path.abspath(teacher.locate()), "sha256": teacher.sha256}


def recorded(metadata: Mapping[str, Any], teacher: PathLike | None) -> PathLike | None:
    """Return the teacher of a run to resume: the path given now, or the recorded one.

    Raises InvalidValueError for a run without a teacher, and MissingFileError if the recorded file has moved.
    """
    begun = metadata.get("teacher")
    if begun is None and teacher is not None:
        raise InvalidValueError(f"the run began without a teacher; {NEW_RUN}")
    if begun is None or teacher is not None:
        return teacher
    if not os.path.isfile(begun["source"]):
        raise MissingFileError(f"the run's teacher has moved from {begun['source']}: add --teacher with its new path")
    return begun["source"]


def check_same(teacher: Checkpoint, metadata: Mapping[str, Any]) -> None:
    """Raise InvalidValueError if a teacher is not the one that a run began with, by its SHA-256."""
    begun = metadata["teacher"]
    if teacher.sha256 != begun["sha256"]:
        raise InvalidValueError(
            f"{teacher.locate()} is not the teacher of this run, by its SHA-256: that was {begun['model']} "
            f"of {begun['source']}; {NEW_RUN}"
        )
