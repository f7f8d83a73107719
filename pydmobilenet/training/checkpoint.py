"""A run's directory: everything that is needed to resume the run, to look back on it, and to use its result.

``config.yaml``     the effective configuration
``last.state``      all that `--resume` needs, in one file: parameters, momentum, progress, history
``last.params``     the parameters alone, for `get_model` and `run_validation.py`; ``best.params``, ``epoch-….params``
``run.json``        what the run says of itself: model, data set, classes, normalisation, configuration, provenance, and
                    the errors of its parameter files
``history.csv``, ``curves.png``, ``events/``

A save first writes all files under other names and then renames them, ``last.state`` last. A run that is killed between
two renames resumes from the earlier state, and writes the same files again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from .. import files, provenance
from ..checkpoints import formats, runs
from ..checkpoints.runs import METADATA, read_metadata
from ..data import Splits, Task, archives, folder, get_task
from ..data.splits import kinds
from ..errors import BadFileError, MissingFileError, UnusableError
from . import config as configuration
from .config import Config
from .history import History
from .trainer import Trainer

CONFIG, STATE = "config.yaml", "last.state"


@dataclass(frozen=True)
class State:
    """A run at one moment: parameters and momentum by structural name, and what `Progress.to_dict` gives."""

    parameters: Mapping[str, np.ndarray]
    momentum: Mapping[str, np.ndarray]
    progress: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises UnusableError where that is not possible."""
        files.write(path, self.content())

    def content(self) -> bytes:
        """The bytes that `write` writes. Made in memory: zipfile prints a traceback where it cannot close a file."""
        arrays = {f"parameter/{name}": array for name, array in self.parameters.items()}
        arrays.update({f"momentum/{name}": array for name, array in self.momentum.items()})
        progress = np.frombuffer(json.dumps(self.progress).encode(), np.uint8)
        buffer = io.BytesIO()
        # The last one, so that a file that ends too early lacks it. Its name is that of the first version.
        np.savez(buffer, **arrays, position=progress)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> State:
        """The state of a file. Raises MissingFileError, and BadFileError for a damaged file, a file of another kind and
        numbers that are not finite.
        """
        try:
            with open(path, "rb") as file:
                arrays = archives.read_npz(file)
            progress = json.loads(arrays.pop("position").tobytes())
            parts: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "momentum": {}}
            for name, array in arrays.items():
                kind, _, own_name = name.partition("/")
                # Beside the momentum stands the loss scale of half precision, in double precision.
                if kind not in parts or array.dtype not in (("f4",) if kind == "parameter" else ("f4", "f8")):
                    raise ValueError(f"it has an array {name} of {array.dtype}")
                if not formats.is_finite(array):
                    raise ValueError(f"{name} is not finite")
                parts[kind][own_name] = array
        except FileNotFoundError:
            raise MissingFileError(f"{path.parent} holds no run that can be resumed: {path} is missing") from None
        except (OSError, ValueError, KeyError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            raise BadFileError(f"{path} is no state of a run, or a damaged one: {why}") from None
        return cls(parts["parameter"], parts["momentum"], progress)


class Run:
    """The directory of a run, locked: only one process at a time can have it. As a context, it is let go at the end.

    `new` says that this process made the directory and has trained nothing in it yet: an error in the context removes
    it then. `metadata` is the content of ``run.json``.
    """

    def __init__(self, directory: Path, new: bool = False):
        self.directory, self.new = directory, new
        self.lock = FileLock(directory / ".lock")
        try:
            files.acquire(self.lock, timeout=0)
        except Timeout:
            raise UnusableError(f"another process is training in {directory}") from None
        except OSError as error:
            raise UnusableError(f"cannot write to {directory}: {error.strerror}") from None
        # Read now, so that a damaged file is reported before an epoch is trained.
        self.metadata = read_metadata(directory)

    @classmethod
    def create(cls, directory: Path, config: str, state: State, metadata: Mapping[str, object]) -> Run:
        """Make the directory of a new run, with its configuration, its metadata and its state before the first step.

        Raises UnusableError where the directory exists already or cannot be made.
        """
        check_absent(directory)
        try:
            with files.new_directory(directory) as nascent:
                files.write(nascent / CONFIG, config)
                files.write(nascent / METADATA, _json({**metadata, "checkpoints": {}}))
                state.write(nascent / STATE)
        except UnusableError:
            check_absent(directory)  # another process was faster
            raise
        return cls(directory, new=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None and self.new:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.lock.release()

    def save(self, state: State, also: Mapping[str, Mapping[str, object]]) -> None:
        """Save the state, and its parameters under each name in `also`, whose value goes into ``run.json``.

        Raises UnusableError, for a full disk for example. The earlier files stay as they were then.
        """
        content = formats.dump_params(state.parameters)
        sha256 = hashlib.sha256(content).hexdigest()
        checkpoints = {**self.metadata["checkpoints"], **{name: {**also[name], "sha256": sha256} for name in also}}
        metadata = {**self.metadata, "checkpoints": checkpoints}
        contents: dict[str, str | bytes] = {
            **dict.fromkeys(also, content),
            METADATA: _json(metadata),
            STATE: state.content(),
        }
        files.write_together({self.directory / name: content for name, content in contents.items()})
        self.metadata = metadata

    def record(self, file: str, **values: object) -> None:
        """Add what is known of a checkpoint to ``run.json``, unless it is there already."""
        checkpoints = self.metadata["checkpoints"]
        if values.items() <= checkpoints[file].items():
            return
        metadata = {**self.metadata, "checkpoints": {**checkpoints, file: {**checkpoints[file], **values}}}
        files.write(self.directory / METADATA, _json(metadata))
        self.metadata = metadata

    def state(self) -> State:
        """The state to resume from."""
        return State.read(self.directory / STATE)


def read_history(directory: str | Path) -> History:
    """The epochs of a run so far, also of one that another process is training.

    Raises MissingFileError where the directory holds no run, and BadFileError for a damaged one.
    """
    path = Path(directory) / STATE
    state = State.read(path)
    try:
        return History.from_dicts(state.progress["history"])
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise BadFileError(f"{path} has no history, or a damaged one: {error}") from None


def _json(metadata: Mapping[str, object]) -> str:
    return json.dumps(metadata, indent=1) + "\n"


def check_new(directory: Path) -> None:
    """Raises UnusableError where the directory of a new run exists already or cannot be made."""
    check_absent(directory)
    files.check_new_directory(directory)


def check_absent(directory: Path) -> None:
    """Raises UnusableError where the directory of a new run exists already, or has a name that none can have."""
    try:
        os.lstat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise UnusableError(f"cannot make {directory}: {getattr(error, 'strerror', None) or error}") from None
    resume = f"--resume {shlex.quote(str(directory))}"
    raise UnusableError(f"{directory} exists already: {resume} goes on with it, --output takes another directory")


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
