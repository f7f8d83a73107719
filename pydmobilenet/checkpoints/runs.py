"""Checkpoints that were trained with this project, as records: the bundled ones, and those of any run.

``pretrained/manifest.json`` lists the bundled ones: file, hash, error, and the command that made them.
A run's own ``run.json`` lists its checkpoints in the same way.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from .. import fetching, provenance
from ..catalog import Checkpoint, Record, TrainedRecord, parse_name
from ..data import recorded_task
from ..errors import BadFileError, MissingFileError, unknown
from ..resources import PRETRAINED

MANIFEST, METADATA = "manifest.json", "run.json"
BEST = "best.params"
LARGEST = 1 << 27  # bytes of a run.json: it has 17 for each image that a run has seen
SEEN = "seen_images"  # the key of their hashes: those of images that have been learned, or have chosen the epoch
UNKNOWN = "?"  # stands among them for images of weights that record none
# What a file of another kind raises.
WRONG = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def bundled(directory: Path | None = None) -> list[TrainedRecord]:
    """The records of the checkpoints in ``pretrained/``, which comes with the checkout and with the wheel."""
    directory = directory or PRETRAINED
    if not (directory / MANIFEST).is_file():
        return []
    try:
        entries = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return [_record(directory, entry["file"], entry, entry) for entry in entries]
    except (OSError, *WRONG) as error:
        raise BadFileError(f"{directory / MANIFEST} is no list of checkpoints: {why(error)}") from None


def find_run(path: Path) -> TrainedRecord | None:
    """The record of a run, or of one of its files; None for a file of parameters that no run tells of.

    Raises MissingFileError for what is neither, BadFileError for a run that is damaged.
    """
    if not os.path.exists(path):
        raise MissingFileError(f"no such parameter file or run: {path}")
    if os.path.isdir(path):
        return of_run(path)
    return of_run(path) if os.path.isfile(path.parent / METADATA) else None


def of_run(path: Path) -> TrainedRecord:
    """The record of a run's directory, which stands for its best checkpoint, or of one of its files as ``last.params``.

    Raises MissingFileError and BadFileError.
    """
    path = fetching.expanded(path)
    if not os.path.exists(path):
        raise MissingFileError(f"no such run: {path}")
    directory, file = (path, BEST) if os.path.isdir(path) else (path.parent, path.name)
    metadata = read_metadata(directory)
    if not metadata["checkpoints"]:
        raise MissingFileError(f"{directory} has no checkpoint yet: its first epoch is not finished")
    if file not in metadata["checkpoints"]:
        raise unknown("checkpoint", file, metadata["checkpoints"])
    return _record(directory, file, metadata, metadata["checkpoints"][file])


def is_run(record: Record) -> bool:
    """Whether a record is of a run, which tells more of itself than the bundled ones."""
    return isinstance(record, TrainedRecord) and bool(record.images_sha256)


def origin(record: Record) -> list[tuple[str, str]]:
    """Where a checkpoint comes from, as `provenance.rows` tells it; nothing of a published or a bundled one."""
    return provenance.rows(_metadata(record))


def command(record: Record) -> str:
    """The command that began a run; empty where none is recorded."""
    sessions = _metadata(record).get("sessions", [])
    return sessions[0]["command"] if sessions else ""


def _metadata(record: Record) -> dict:
    """What the run of a record says of itself; nothing of any other record."""
    if record.file is None or not os.path.isfile(record.file.parent / METADATA):
        return {}
    metadata = read_metadata(record.file.parent)
    return metadata if record.file.name in metadata["checkpoints"] else {}


def check_put_aside(record: TrainedRecord) -> None:
    """Raises BadFileError for a run of version 0.4 of which images were put aside by another rule than today's."""
    if record.seen == UNKNOWN and any(record.fractions):
        raise BadFileError(
            f"{record.file.parent} was begun by version 0.4, which split images by their position: measure its error "
            "on others, in a folder with test/"
        )


def verified(record: TrainedRecord) -> Path:
    """The file of a record's checkpoint; raises MissingFileError, and BadFileError where it is another one by now."""
    if not os.path.isfile(record.file):
        raise MissingFileError(f"no such parameter file: {record.file}")
    return fetching.verify(record.file, record.checkpoint.digest)


def read_metadata(directory: Path) -> dict:
    """The content of a run's ``run.json``; raises MissingFileError and BadFileError."""
    path = directory / METADATA
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        metadata = json.loads(content)
        if not isinstance(metadata["checkpoints"], dict):
            raise ValueError("it lists no checkpoints")
        for file, checkpoint in metadata["checkpoints"].items():
            _record(directory, file, metadata, checkpoint)
        _check_model(metadata)
        provenance.check(metadata)
        return metadata
    except OSError as error:
        raise MissingFileError(f"{directory} holds no checkpoint of a run: {path} ({error.strerror})") from None
    except WRONG as error:
        raise BadFileError(f"{path} does not describe a run: {why(error)}") from None


def why(error: Exception) -> str:
    """What is wrong with a file, on a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _check_model(model: dict) -> None:
    """Raises ValueError, KeyError or TypeError where a description names no network or data set."""
    if not isinstance(model["model"], str) or not isinstance(model["dataset"], str):
        raise TypeError("a model and a data set have names")
    parse_name(model["model"])
    recorded_task(model["dataset"], model)


def _record(directory: Path, file: str, model: dict, checkpoint: dict) -> TrainedRecord:
    _check_model(model)
    split = "test" if "test_error" in checkpoint else "val"
    error, sha256, epoch = checkpoint[f"{split}_error"], checkpoint["sha256"], checkpoint.get("epoch", 1)
    if type(error) not in (int, float) or not 0 <= error <= 100:
        raise ValueError(f"{split}_error of {file} is no percentage")
    fractions = [model.get("config", {}).get(f"{part}_fraction", 0) for part in ("val", "test")]
    if not all(type(each) in (int, float) and 0 <= each < 1 for each in fractions):
        raise ValueError("a fraction is no share")
    images, seen = model.get("data", {}).get(split, {}).get("sha256", ""), model.get(SEEN, UNKNOWN)
    if not isinstance(images, str) or not isinstance(seen, str):
        raise TypeError("a SHA-256 is a text")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 of {file} is none")
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"epoch of {file} is none")
    return TrainedRecord(
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
        task=recorded_task(model["dataset"], model),
        split=split,
        images_sha256=images,
        fractions=(float(fractions[0]), float(fractions[1])),
        seen=seen,
    )
