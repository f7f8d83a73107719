"""A run's directory: all that is needed to resume the run, to describe it and to use its result.

``config.yaml``     the effective configuration
``last.state``      for `--resume`, in one file: parameters, momentum, progress, history
``last.params``     the parameters alone, for `get_model` and `run_validation.py`; ``best.params``, ``epoch-….params``
``ema.params``      the moving average of the parameters, after its best epoch
``run.json``        model, data set, classes, normalisation, configuration, provenance, errors of the parameter files
``history.csv``, ``curves.png``, ``events/``

A save first writes all files under temporary names and then renames them, ``last.state`` last. A run killed between two
renames resumes from the earlier state, and writes the same files again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from .. import files, provenance
from ..checkpoints import formats, runs
from ..checkpoints.runs import METADATA, read_metadata
from ..data import Splits, archives, folder
from ..errors import BadFileError, InvalidValueError, MissingFileError, UnusableError
from .history import History

CONFIG, STATE = "config.yaml", "last.state"
NEW_RUN = "to train on, start a new run with --weights on its last.params"


@dataclass(frozen=True)
class State:
    """A run at one moment: parameters and momentum by structural name, and `Progress.to_dict`."""

    parameters: Mapping[str, np.ndarray]
    momentum: Mapping[str, np.ndarray]
    progress: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the file. Raises UnusableError."""
        files.write(path, self.content())

    def content(self) -> bytes:
        """Return the file's bytes. zipfile prints a traceback if it cannot close a file: so it writes to memory."""
        arrays = {f"parameter/{name}": array for name, array in self.parameters.items()}
        arrays.update({f"momentum/{name}": array for name, array in self.momentum.items()})
        progress = np.frombuffer(json.dumps(self.progress).encode(), np.uint8)
        buffer = io.BytesIO()
        # The progress comes last: a file cut short lacks it. Its name is that of the first version.
        np.savez(buffer, **arrays, position=progress)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> State:
        """Read a state. Raises MissingFileError, and BadFileError for any other file and for values not finite."""
        try:
            with open(path, "rb") as file:
                arrays = archives.read_npz(file)
            progress = json.loads(arrays.pop("position").tobytes())
            groups: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "momentum": {}}
            for key, array in arrays.items():
                group, _, name = key.partition("/")
                # The loss scale of half precision, in float64, stands beside the momentum.
                if group not in groups or array.dtype not in (("f4",) if group == "parameter" else ("f4", "f8")):
                    raise ValueError(f"unexpected array {key} of {array.dtype}")
                if not np.isfinite(array).all():
                    raise ValueError(f"{key} is not finite")
                groups[group][name] = array
        except FileNotFoundError:
            raise MissingFileError(f"{path.parent} holds no run to resume: {path} is missing") from None
        except (OSError, ValueError, KeyError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            raise BadFileError(f"{path} is not the state of a run, or damaged: {why}") from None
        return cls(groups["parameter"], groups["momentum"], progress)


class Run:
    """The directory of a run, locked for this process. As a context, it is unlocked at the end.

    `new` is set until a new run has trained a batch: an error in the context removes the directory until then.
    `metadata` is the content of ``run.json``.
    """

    def __init__(self, directory: Path, new: bool = False):
        self.directory, self.new = directory, new
        self.lock = lock(directory)
        # Read now, to report a damaged file before an epoch is trained.
        self.metadata = read_metadata(directory)

    @classmethod
    def create(cls, directory: Path, config: str, state: State, metadata: Mapping[str, object]) -> Run:
        """Make the directory of a new run, with its state before the first step. Raises UnusableError if it exists."""
        check_absent(directory)
        try:
            with files.new_directory(directory) as tmp:
                files.write(tmp / CONFIG, config)
                files.write(tmp / METADATA, _json({**metadata, "checkpoints": {}}))
                state.write(tmp / STATE)
        except UnusableError:
            check_absent(directory)  # another process was faster
            raise
        return cls(directory, new=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        failed = kind is not None and self.new
        if failed:
            shutil.rmtree(self.directory, ignore_errors=True)  # locked: nobody resumes it meanwhile
        left = failed and self.directory.exists()  # Windows removes no open file, as that of the lock
        self.lock.release()
        if left:
            shutil.rmtree(self.directory, ignore_errors=True)

    def save(
        self,
        state: State,
        entries: Mapping[str, Mapping[str, object]],
        averaged: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Save the state, and its parameters under each name in `entries`, with the value as its entry in ``run.json``.

        The `averaged` parameters go to `runs.EMA`. Raises UnusableError, and replaces no file, if the disk is full.
        """
        parameters = dict.fromkeys(entries, formats.dump_params(state.parameters))
        if averaged is not None:
            parameters[runs.EMA] = formats.dump_params(averaged)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in parameters.items()}
        checkpoints = {name: {**entry, "sha256": digests[name]} for name, entry in entries.items()}
        metadata = {**self.metadata, "checkpoints": {**self.metadata["checkpoints"], **checkpoints}}
        contents: dict[str, str | bytes] = {
            **parameters,
            METADATA: _json(metadata),
            STATE: state.content(),
        }
        files.write_together({self.directory / name: content for name, content in contents.items()})
        self.metadata = metadata

    def record(self, file: str, **values: object) -> None:
        """Add values to the entry of a checkpoint in ``run.json``."""
        entry = self.metadata["checkpoints"][file]
        if not values.items() <= entry.items():  # a finished run stays as it is
            entry.update(values)
            files.write(self.directory / METADATA, _json(self.metadata))


def lock(directory: Path) -> FileLock:
    """Lock the directory of a run, or of several. Raises UnusableError."""
    lock = FileLock(directory / ".lock")
    try:
        files.acquire(lock, timeout=0)
    except Timeout:
        raise UnusableError(f"another process is training in {directory}") from None
    except OSError as error:
        raise UnusableError(f"cannot write to {directory}: {error.strerror}") from None
    return lock


def read_history(directory: str | Path) -> History:
    """Read the epochs of a run, also while another process trains it. Raises MissingFileError and BadFileError."""
    path = Path(directory) / STATE
    if not path.exists():
        runs.check_single(path.parent, runs.seeds(path.parent))
    state = State.read(path)
    try:
        return History.from_dicts(state.progress["history"])
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise BadFileError(f"{path} has no history, or a damaged one: {str(error)[:200]}") from None


def _json(metadata: Mapping[str, object]) -> str:
    return json.dumps(metadata, indent=1) + "\n"


def check_new(directory: Path) -> None:
    """Raise UnusableError unless the directory of a new run can be made."""
    check_absent(directory)
    files.check_new_directory(directory)


def check_absent(directory: Path) -> None:
    """Raise UnusableError if the directory of a new run exists."""
    if os.path.lexists(directory):
        resume = f"--resume {shlex.quote(str(directory))}"
        raise UnusableError(f"{directory} exists already: pass {resume}, or another --output")


def check_version(metadata: Mapping[str, Any], directory: Path) -> None:
    """Raise BadFileError for a run of an earlier version with another momentum, or with other validation images."""
    if not {"engine", "config", "data", "sessions"} <= metadata.keys():
        raise BadFileError(f"{directory} was begun by version 0.2 or earlier, with MXNet's own momentum: {NEW_RUN}")
    if runs.SEEN not in metadata and any(metadata["config"].get(f"{part}_fraction") for part in ("val", "test")):
        raise BadFileError(f"{directory} was begun by version 0.4, which split images by their position: {NEW_RUN}")


def check_config(values: Mapping[str, Any], begun: Mapping[str, Any], where: str = "") -> None:
    """Raise InvalidValueError if values of a configuration are not those that a run began with."""
    for key, value in values.items():
        if value != begun.get(key):
            raise InvalidValueError(f"{where}{key} is {value!r}, but the run began with {begun.get(key)!r}; {NEW_RUN}")


def check_data(splits: Splits, metadata: Mapping[str, Any]) -> None:
    """Raise BadFileError if the data has changed since a run began."""
    added = [split for split, dataset in splits._asdict().items() if dataset and split not in metadata["data"]]
    if added:
        raise BadFileError(f"{splits.train.source}: the run began without {added[0]} data; {NEW_RUN}")
    for split, recorded in metadata["data"].items():
        dataset = getattr(splits, split)
        difference = "there is none"
        if dataset:
            difference = provenance.data_difference(recorded, provenance.of_data(dataset), dataset.task.classes)
        if difference:
            source = splits.train.source
            raise BadFileError(f"{source}: the {split} data has changed since the run began: {difference}; {NEW_RUN}")


def check_counts(
    counts: Mapping[str, list[int]], classes: Sequence[str], metadata: Mapping[str, Any], skip_bad: bool
) -> None:
    """Raise BadFileError if a folder has other numbers of files than a run began with, before any is decoded.

    More files may be unreadable ones to skip, or, in ``train``, copies of test images.
    """
    for split, numbers in counts.items():
        names = {split} if "val" in counts or split != "train" else {"train", "val"}
        recorded = metadata["data"].items()
        parts = [data["images_per_class"] for name, data in recorded if name in names or split == folder.ALL]
        begun = [sum(part[label] for part in parts) for label in range(len(classes))]
        more = all(now >= then for now, then in zip(numbers, begun))
        if numbers != begun and not (more and (skip_bad or split == "train")):
            now, then = ({"images": sum(of), "images_per_class": of} for of in (numbers, begun))
            hint = "; --skip-bad skips unreadable ones" if more else ""
            difference = provenance.data_difference(then, now, classes)
            name = "data" if split == folder.ALL else f"{split} data"
            raise BadFileError(f"the {name} has changed since the run began: {difference}{hint}; {NEW_RUN}")
