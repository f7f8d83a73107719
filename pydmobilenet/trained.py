"""Checkpoints that were trained with this project, as records: the bundled ones, and those of any run.

``pretrained/manifest.json`` of the checkout lists the bundled ones: file, hash, error, and the command that made them.
A run's own ``run.json`` lists its checkpoints in the same way.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from . import fetching
from .catalog import Checkpoint, Record, parse_name
from .errors import BadFileError, MissingFileError, unknown

MANIFEST, FACTS = "manifest.json", "run.json"
BEST = "best.params"
LARGEST = 1 << 24  # bytes of a run.json
WRONG = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what a file of another kind raises


def bundled(directory: Path | None = None) -> list[Record]:
    """The records of the checkpoints in ``pretrained/`` of the checkout; none where there is no checkout."""
    directory = directory or Path(__file__).resolve().parents[1] / "pretrained"
    if not (directory / MANIFEST).is_file():
        return []
    try:
        entries = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return [_record(directory, entry["file"], entry, entry) for entry in entries]
    except (OSError, *WRONG) as error:
        raise BadFileError(f"{directory / MANIFEST} is no list of checkpoints: {_why(error)}") from None


def is_own(path: Path | None) -> bool:
    """Whether a path is the directory of a run, or one file of parameters, and no place to look for several."""
    return path is not None and (path.suffix == ".params" or os.path.isfile(path / FACTS))


def of_run(path: Path) -> Record:
    """The record of a run's directory, which stands for its best checkpoint, or of one of its files as ``last.params``.

    Raises MissingFileError and BadFileError.
    """
    path = fetching.expanded(path)
    if not os.path.exists(path):
        raise MissingFileError(f"no such run: {path}")
    directory, file = (path, BEST) if os.path.isdir(path) else (path.parent, path.name)
    facts = read_facts(directory)
    if file not in facts["checkpoints"]:
        raise unknown("checkpoint", file, facts["checkpoints"])
    return _record(directory, file, facts, facts["checkpoints"][file])


def verified(record: Record) -> Path:
    """The file of a record's checkpoint; raises MissingFileError, and BadFileError where it is another one by now."""
    if not os.path.isfile(record.file):
        raise MissingFileError(f"no such parameter file: {record.file}")
    return fetching.verify(record.file, record.checkpoint.digest)


def read_facts(directory: Path) -> dict:
    """The content of a run's ``run.json``; raises MissingFileError and BadFileError."""
    path = directory / FACTS
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        facts = json.loads(content)
        if not isinstance(facts["checkpoints"], dict):
            raise ValueError("it lists no checkpoints")
        for file, checkpoint in facts["checkpoints"].items():
            _record(directory, file, facts, checkpoint)
        _check_model(facts)
        return facts
    except OSError as error:
        raise MissingFileError(f"{directory} holds no checkpoint of a run: {path} ({error.strerror})") from None
    except WRONG as error:
        raise BadFileError(f"{path} does not describe a run: {_why(error)}") from None


def _why(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _check_model(model: dict) -> None:
    """Raises ValueError, KeyError or TypeError where a description names no network or data set."""
    if not isinstance(model["model"], str) or not isinstance(model["dataset"], str):
        raise TypeError("a model and a data set have names")
    parse_name(model["model"])


def _record(directory: Path, file: str, model: dict, checkpoint: dict) -> Record:
    _check_model(model)
    error, sha256, epoch = checkpoint["test_error"], checkpoint["sha256"], checkpoint.get("epoch", 1)
    if type(error) not in (int, float) or not 0 <= error <= 100:
        raise ValueError(f"test_error of {file} is no percentage")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 of {file} is none")
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"epoch of {file} is none")
    return Record(
        model=model["model"],
        dataset=model["dataset"],
        top1_error=float(error),
        top5_error=None,
        params_m=None,
        flops_m=None,
        exact=None,
        checkpoint=Checkpoint(path=file, bytes=None, sha256=sha256, git_blob_sha1=""),
        note="",
        file=directory / file,
    )
