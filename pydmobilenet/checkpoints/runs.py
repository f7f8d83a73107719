"""Descriptions of checkpoints: a run's ``run.json``, and ``pretrained/manifest.json`` for the bundled ones."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import provenance
from ..catalog import Record, parse_name
from ..data import recorded_task
from ..errors import BadFileError, MissingFileError, UserError

METADATA = "run.json"
SEEDS = "seeds"  # the kind of a directory with a run for each seed
BEST = "best.params"
EMA = "ema.params"  # the moving average, after the epoch that is the best for it
SEEN = "seen_images"  # the key for the hashes of images used in training, or to choose the epoch
SKIP_BAD = "skip_bad"  # whether the run skips unreadable pictures
UNKNOWN = "?"  # among the hashes: initial weights have seen unrecorded images
# Raised by wrong content of a file.
WRONG = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def read_metadata(directory: Path) -> dict:
    """Read a run's ``run.json``. Raises MissingFileError, BadFileError, and UserError for that of several runs."""
    path = directory / METADATA
    try:
        metadata = json.loads(path.read_bytes())
        check_single(directory, _seeds(metadata))
        parse_name(metadata["model"])
        recorded_task(metadata["dataset"], metadata)
        for entry in metadata["checkpoints"].values():
            fields(metadata, entry)
        provenance.rows(metadata)
        # These raise for values of another type.
        dict(metadata.get("config", {}))
        "".join([metadata.get("engine", ""), *(start["command"] for start in metadata.get("sessions", []))])
        for data in metadata.get("data", {}).values():
            if sum(map(operator.index, data["images_per_class"])) != data["images"]:
                raise ValueError("images is not the sum of images_per_class")
        return metadata
    except OSError as error:
        raise MissingFileError(f"{directory} holds no checkpoint of a run: {path} ({error.strerror})") from None
    except WRONG as error:
        raise BadFileError(f"{path} does not describe a run: {why(error)}") from None


def seeds(directory: Path) -> list[int]:
    """Return the seeds of a directory with a run for each; none for any other directory."""
    with suppress(OSError, *WRONG):
        return _seeds(json.loads((directory / METADATA).read_bytes()))
    return []


def _seeds(metadata: Mapping[str, Any]) -> list[int]:
    """Return the seeds in the ``run.json`` of several runs; none in any other. Raises one of `WRONG`."""
    return list(map(operator.index, metadata["seeds"])) if metadata.get("kind") == SEEDS else []


def check_single(directory: Path, seeds: list[int]) -> None:
    """Raise UserError if a directory holds a run for each of some `seeds`, instead of one run."""
    if seeds:
        first = seed_directory(directory, seeds[0])
        raise UserError(f"{directory} holds {len(seeds)} runs: give one of them, as {first}")


def seed_directory(directory: Path, seed: int) -> Path:
    """Return the directory of the run of a seed."""
    return directory / f"seed-{seed}"


def fields(metadata: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Checkpoint` from a run's `metadata` and its `entry` for the file. Raises `WRONG`."""
    split = "test" if "test_error" in entry else "val"
    error = entry[f"{split}_error"]
    if type(error) not in (int, float) or not 0 <= error <= 100:
        raise ValueError("an error is no percentage")
    texts = {
        "digest": "sha256:" + entry["sha256"],
        "images_sha256": metadata.get("data", {}).get(split, {}).get("sha256", ""),
        "seen": metadata.get(SEEN, UNKNOWN),
    }
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("a SHA-256 is a text")
    config = metadata.get("config", {})
    return {
        "model": parse_name(metadata["model"]).name,
        "dataset": metadata["dataset"],
        "task": recorded_task(metadata["dataset"], metadata),
        "top1_error": float(error),
        "split": split,
        "fractions": tuple(float(config.get(f"{part}_fraction", 0)) for part in ("val", "test")),
        **texts,
    }


def why(error: Exception) -> str:
    """Return an error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def origin(record: Record) -> list[tuple[str, str]]:
    """Return `provenance.rows` of a run's checkpoint; nothing for others."""
    return provenance.rows(_metadata(record))


def command(record: Record) -> str:
    """Return the first command of a run, if recorded."""
    return first_command(_metadata(record))


def first_command(metadata: Mapping[str, Any]) -> str:
    """Return the command that began the run of a ``run.json``, if recorded."""
    sessions = metadata.get("sessions", [])
    return sessions[0]["command"] if sessions else ""


def skips_bad(record: Record) -> bool:
    """Return whether a checkpoint's run skips unreadable pictures."""
    return bool(_metadata(record).get(SKIP_BAD))


def _metadata(record: Record) -> dict:
    """Return the ``run.json`` of a run's checkpoint; nothing for others."""
    if record.path is None or not os.path.isfile(record.path.parent / METADATA):
        return {}
    metadata = read_metadata(record.path.parent)
    return metadata if record.path.name in metadata["checkpoints"] else {}
