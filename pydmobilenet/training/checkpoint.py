"""A run's directory: everything that is needed to go on, to look back, and to use the result.

``config.yaml``     the effective configuration
``last.state``      all that `--resume` needs, in one file: parameters, momentum, position, history
``last.params``     the parameters alone, for `get_model` and `run_validation.py`; ``best.params``, ``epoch-….params``
``run.json``        what the run says of itself: model, data set, classes, normalisation, configuration, provenance, and
                    the errors of its parameter files
``history.csv``, ``curves.png``, ``events/``

Each file is put in place whole, once all of them are on the disk, ``last.state`` as the last one: a run that is killed
between two of them goes on from the earlier state and writes the others anew, the same as before.
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

import numpy as np
from filelock import FileLock, Timeout

from .. import files
from ..checkpoints import params
from ..checkpoints.runs import METADATA, read_metadata
from ..data import archives
from ..errors import BadFileError, MissingFileError, UnusableError

CONFIG, STATE = "config.yaml", "last.state"


@dataclass(frozen=True)
class State:
    """What a run is at one moment: parameters and momentum by structural name, and a progress that JSON can hold."""

    parameters: Mapping[str, np.ndarray]
    momentum: Mapping[str, np.ndarray]
    progress: Mapping[str, object]

    def write(self, path: Path) -> None:
        """Write one whole file; raises UnusableError where it cannot be written."""
        files.write(path, self.content())

    def content(self) -> bytes:
        """What `write` writes. Made in memory: a zip file that cannot be ended has a traceback of its own."""
        arrays = {f"parameter/{name}": array for name, array in self.parameters.items()}
        arrays.update({f"momentum/{name}": array for name, array in self.momentum.items()})
        position = np.frombuffer(json.dumps(self.progress).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, position=position)  # last: a list that ends too early lacks it
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> State:
        """Raises MissingFileError, and BadFileError for what is no such file, is damaged, or holds a number that is not
        finite.
        """
        try:
            with open(path, "rb") as file:  # nothing in it is packed
                arrays = archives.read_npz(file, largest=os.fstat(file.fileno()).st_size)
            position = json.loads(arrays.pop("position").tobytes())
            parts = {"parameter": {}, "momentum": {}}
            for name, array in arrays.items():
                kind, _, own_name = name.partition("/")
                # Beside the momentum stands the loss scale of half precision, in double precision.
                if kind not in parts or array.dtype not in (("f4",) if kind == "parameter" else ("f4", "f8")):
                    raise ValueError(f"it has an array {name} of {array.dtype}")
                if not params.is_finite(array):
                    raise ValueError(f"{name} is not finite")
                parts[kind][own_name] = array
        except FileNotFoundError:
            raise MissingFileError(f"{path.parent} holds no run that can be resumed: {path} is missing") from None
        except (OSError, ValueError, KeyError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            raise BadFileError(f"{path} is no state of a run, or a damaged one: {why}") from None
        return cls(parts["parameter"], parts["momentum"], position)


class Run:
    """The directory of one run, held by one process at a time. A `new` one has been made by this process.

    `metadata` is what ``run.json`` says; None where an earlier version has not written it before the first checkpoint.
    """

    def __init__(self, directory: Path, new: bool = False):
        self.directory, self.new = directory, new
        self.lock = FileLock(directory / ".lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UnusableError(f"another process is training in {directory}") from None
        except OSError as error:
            raise UnusableError(f"cannot write to {directory}: {error.strerror}") from None
        # Where it is damaged, that is known now and not after an epoch.
        self.metadata = read_metadata(directory) if (directory / METADATA).exists() else None

    @classmethod
    def create(cls, directory: Path, config: str, state: State, metadata: Mapping[str, object]) -> Run:
        """A new run with its configuration, what it says of itself, and its state before the first step.

        Raises UnusableError where the directory exists already or cannot be made.
        """
        check_absent(directory)
        try:
            with files.new_directory(directory) as nascent:
                files.write(nascent / CONFIG, config)
                files.write(nascent / METADATA, _json({**metadata, "checkpoints": {}}))
                state.write(nascent / STATE)
        except UnusableError:
            check_absent(directory)  # another process has been faster
            raise
        return cls(directory, new=True)

    def discard(self) -> None:
        """Remove the directory, of a run that has come to nothing."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.lock.release()

    def save(self, state: State, also: Mapping[str, Mapping[str, object]]) -> None:
        """Save the state, and its parameters as each of the files `also` names, with what is to be known of them.

        Raises UnusableError where the disk is full, say; what was there before stays whole then.
        """
        content = params.dump(state.parameters)
        sha256 = hashlib.sha256(content).hexdigest()
        checkpoints = {**self.metadata["checkpoints"], **{name: {**also[name], "sha256": sha256} for name in also}}
        metadata = {**self.metadata, "checkpoints": checkpoints}
        contents = {
            **dict.fromkeys(also, content),
            METADATA: _json(metadata),
            STATE: state.content(),
        }
        files.write_together({self.directory / name: content for name, content in contents.items()})
        self.metadata = metadata

    def state(self) -> State:
        """The state to go on from."""
        return State.read(self.directory / STATE)


def _json(metadata: Mapping[str, object]) -> str:
    return json.dumps(metadata, indent=1) + "\n"


def check_absent(directory: Path) -> None:
    """Raises UnusableError where something is already at the place of a new run."""
    if os.path.lexists(directory):
        resume = f"--resume {shlex.quote(str(directory))}"
        raise UnusableError(f"{directory} exists already: {resume} goes on with it, --output takes another directory")
