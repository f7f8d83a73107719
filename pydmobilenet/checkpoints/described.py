"""Parameters that tell their own network: those of a run, and a safetensors file whose metadata name it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..catalog import TrainedRecord, parse_name
from ..data import Task, dataset_name, folder, get_task, of_metadata
from ..errors import BadFileError, InvalidValueError
from . import runs, safetensors


class Described(NamedTuple):
    """A model's name, a task, and the `file` of the parameters; of a run, its `record` too."""

    file: Path
    model: str
    task: Task
    record: TrainedRecord | None = None

    @property
    def place(self) -> Path:
        """What a user calls them: the run or the file."""
        return self.record.file.parent if self.record else self.file


def find(path: Path) -> Described | None:
    """What a run, one of its files, or a safetensors file tells of itself; None for any other file of parameters.

    Raises MissingFileError for what is neither, BadFileError for one that is damaged.
    """
    found = _of_safetensors(path) if safetensors.recognised(path) else None
    if found:
        return found
    run = runs.find_run(path)
    return Described(run.file, run.model, run.task, run) if run else None


def _of_safetensors(path: Path) -> Described | None:
    metadata = safetensors.read(path).metadata
    if "model" not in metadata or "dataset" not in metadata:
        return None
    try:
        return Described(path, parse_name(metadata["model"]).name, of_metadata(metadata))
    except runs.WRONG as error:
        raise BadFileError(f"{path} does not describe a network: {runs.why(error)}") from None


def check_given(found: Described, model: str | None, dataset: str | None) -> None:
    """Raises InvalidValueError where a model or data set, if it is given, is another one than parameters tell. A folder
    may have moved, if its classes are the same.
    """
    if model is not None and parse_name(model).name != found.model:
        raise InvalidValueError(f"{found.place} is of {found.model}, not of {model}; nearest: {found.model}")
    learned = found.task.name
    if dataset is None:
        return
    dataset = dataset_name(dataset)
    both_folders = all(name.startswith("folder:") for name in (dataset, learned))
    # A file that was given away has a folder's name alone: another folder may be called so.
    if dataset == learned and not (both_folders and found.record is None and os.path.isdir(folder.place(dataset))):
        return
    if not both_folders or sorted(get_task(dataset).classes) != sorted(found.task.classes):
        raise InvalidValueError(
            f"{found.place} has learned {learned} (classes: {', '.join(found.task.classes[:10])}), not {dataset}; "
            f"nearest: {learned}"
        )


def verified(found: Described) -> Path:
    """The file of the parameters; raises MissingFileError, and BadFileError where it is another one by now."""
    return runs.verified(found.record) if found.record else found.file
