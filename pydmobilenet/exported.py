"""Files of `export` as rows of a validation: their own answers, beside those of their network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import answers, checkpoints, fetching
from .catalog import Record, parse_name
from .checkpoints import Checkpoint, formats, runs
from .data import Dataset, of_metadata
from .engine import Predict, litert
from .errors import BadFileError, MissingFileError, UserError
from .exporting import of_pixels
from .metrics import Answers
from .processes import processors


@dataclass(frozen=True)
class Exported(Checkpoint):
    """A file of `export`, for the images of its network, the `source`, if that is here."""

    source: Checkpoint | None = None

    @property
    def run(self) -> Path | None:
        return self.source.run if self.source else None

    def load(self) -> Predict:
        """Return the file as a function of normalised images. Raises BadFileError."""
        assert self.path  # as `insert` has it
        content = self.path.read_bytes()
        if _is_tflite(self.path):
            return of_pixels(litert("session").predictor(content, processors()), self.task)
        from .onnx import session

        predict = session.predictor(content)
        return of_pixels(predict, self.task) if session.takes_pixels(content) else predict


def changes(seen: Mapping[Record, Answers], dataset: Dataset | None) -> dict[Record, answers.Change]:
    """Compare the answers of each file of `export` with those of its network, by rows with their answers."""
    found: dict[Record, answers.Change] = {}
    for record, own in seen.items():
        source = record.source if isinstance(record, Exported) else None
        if dataset and source and source in seen:
            labels = dataset.labels[: len(own.classes)]
            found[record] = answers.change(answers.name(source), seen[source].classes, own.classes, labels)
    return found


def runtimes(rows: Iterable[Record]) -> list[tuple[Path, str]]:
    """Return the files of `export` among rows, and what computes each."""
    paths = [row.path for row in rows if isinstance(row, Exported) and row.path]
    return [(path, "LiteRT" if _is_tflite(path) else "ONNX Runtime") for path in paths]


def is_exported(path: str | os.PathLike[str] | None) -> bool:
    """Return whether a path has the suffix of a file of `export`."""
    return path is not None and Path(path).suffix.lower() in formats.EXPORTED and not os.path.isdir(path)


def insert(path: str | os.PathLike[str], rows: Sequence[Checkpoint], weights_dir: Path | None) -> list[Checkpoint]:
    """Return the rows with that of a file of `export` behind its network, which is added if it is not among them.

    An int8 file is not judged: its error is another one than that of its network. Raises BadFileError for a file of
    others, and MissingFileError.
    """
    file = fetching.expanded(path).absolute()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise MissingFileError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        properties = _properties(file, content)
        if not {"model", "weights"} <= properties.keys():
            raise BadFileError("it does not say of which network")
        model, task = parse_name(properties["model"]).name, of_metadata(properties)
        sha256 = properties["weights"].rpartition("sha256:")[2]
    except runs.WRONG as error:
        why = error if isinstance(error, UserError) else runs.why(error)
        raise BadFileError(f"{path} is no file of `pydmobilenet export`: {why}") from None
    known = next((row for row in rows if row.sha256 == sha256), None)
    source = known or _published(sha256, weights_dir)
    if source is None:
        warnings.warn(f"the network of {path} is not here: give its run too, to compare both", stacklevel=2)
    base = source or Checkpoint(model, task.name, path=file, task=task, seen=runs.UNKNOWN)
    values: dict[str, Any] = {**vars(base), "path": file, "digest": "", "source": source}
    values["task"] = replace(base.task, image_size=task.image_size)
    if properties.get("dtype") == "int8":
        values.update(top1_error=None, top5_error=None)
    row, others = Exported(**values), [other for other in rows if isinstance(other, Exported)]
    if known is None:
        return [*rows, *([source] if source else []), row]
    place = list(rows).index(known) + 1 + sum(other.source is known for other in others)  # earlier files stand there
    return [*rows[:place], row, *rows[place:]]


def _is_tflite(path: Path) -> bool:
    return path.suffix.lower() == formats.TFLITE


def _properties(path: Path, content: bytes) -> dict[str, str]:
    if _is_tflite(path):
        return litert("metadata").read(content)
    from .onnx import session

    return session.properties(content)


def _published(sha256: str, weights_dir: Path | None) -> Checkpoint | None:
    """Find the bundled or published weights of a hash, if they are on this machine or can be downloaded."""
    row = checkpoints.origin(sha256)
    if row is None:
        return None
    try:
        found = checkpoints.find(row.model, row.dataset, weights_dir=None if row.path else weights_dir)
        return replace(found, path=found.locate())
    except UserError as error:
        warnings.warn(str(error), stacklevel=3)
        return None
