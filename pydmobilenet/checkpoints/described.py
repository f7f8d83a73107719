"""Which network is this? What a path of parameters records of itself, found in one place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import catalog, fetching
from ..catalog import Checkpoint, Record, TrainedRecord, parse_name
from ..data import Task, dataset_name, folder, get_task, of_metadata, recorded_task
from ..errors import BadFileError, InvalidValueError, UserError
from . import params, runs, safetensors


def find(path: Path) -> TrainedRecord | None:
    """Return what parameters record of themselves; None for a file that records nothing.

    These record their network: a run and its files, a directory in Hugging Face's layout, a ``.safetensors`` file with
    metadata, and a file with a `params.sidecar`. Files of published weights, and bundled ones, are known by their hash.

    Raises MissingFileError for a path that is none of them, BadFileError for one that is damaged or has the sidecar of
    another file.
    """
    directory = os.path.isdir(path)
    if directory and (os.path.isfile(path / runs.METADATA) or not os.path.isfile(path / safetensors.FILE)):
        return runs.of_run(path)
    path = path / safetensors.FILE if directory else path
    found = _of_safetensors(path) or _of_sidecar(path)
    if directory and found is None:
        raise BadFileError(f"{path} does not record its model; pass the file itself, with --model and --dataset")
    return found or runs.find_run(path) or _of_hash(path)


def get(path: Path) -> TrainedRecord:
    """Return what `find` does; raises UserError where a file records nothing."""
    found = find(path)
    if found is None:
        raise UserError(f"{path} does not record its model and data set; `pydmobilenet convert` makes a file that does")
    return found


def _of_safetensors(path: Path) -> TrainedRecord | None:
    if not safetensors.recognised(path):
        return None
    metadata = safetensors.read(path).metadata
    if "model" not in metadata or "dataset" not in metadata:
        return None
    try:
        return _record(path, metadata, of_metadata(metadata))
    except runs.WRONG as error:
        raise BadFileError(f"{path} does not describe a network: {runs.why(error)}") from None


def _of_sidecar(path: Path) -> TrainedRecord | None:
    file = params.sidecar(path)
    metadata = _read_json(file) if params.recognised(path) and os.path.isfile(file) else {}
    if not {"model", "dataset", "sha256"} <= metadata.keys():  # somebody else's
        return None
    if metadata["sha256"] != _sha256(path):
        raise BadFileError(f"{file} describes another file than {path}, by its SHA-256; move it away to go on")
    try:
        return _record(path, metadata, recorded_task(metadata["dataset"], metadata))
    except runs.WRONG as error:
        raise BadFileError(f"{file} does not describe a network: {runs.why(error)}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(runs.LARGEST))
    except (OSError, *runs.WRONG):
        return {}
    return content if isinstance(content, dict) else {}


def _of_hash(path: Path) -> TrainedRecord | None:
    row = _origin({_sha256(path)}) if os.path.isfile(path) and params.recognised(path) else None
    if row is None:
        return None
    return _record(path, {"model": row.model}, row.task or get_task(row.dataset))


def _record(path: Path, metadata: Mapping[str, Any], task: Task) -> TrainedRecord:
    sha256 = _sha256(path)
    origin = _origin({sha256, metadata.get("source_sha256")})
    return TrainedRecord(
        model=parse_name(metadata["model"]).name,
        dataset=task.name,
        top1_error=origin.top1_error if origin else None,
        top5_error=origin.top5_error if origin else None,
        params_m=None,
        flops_m=None,
        exact=None,
        checkpoint=Checkpoint(path=path.name, bytes=None, sha256=sha256, git_blob_sha1=""),
        note="",
        file=path,
        task=task,
        seen="" if origin else runs.UNKNOWN,
        origin=origin,
    )


def _origin(digests: set[str | None]) -> Record | None:
    """Return the bundled or published row of one of these SHA-256."""
    rows = [row for row in (*runs.bundled(), *catalog.RECORDS) if row.checkpoint and row.checkpoint.sha256]
    return next((row for row in rows if row.checkpoint and row.checkpoint.sha256 in digests), None)


def _sha256(path: Path) -> str:
    return fetching.digest(path, "sha256").partition(":")[2]


def check_given(found: TrainedRecord, model: str | None, dataset: str | None) -> None:
    """Raises InvalidValueError where a model or data set, if it is given, is another one than parameters tell. A folder
    may have moved, if its classes are the same.
    """
    if model is not None and parse_name(model).name != found.model:
        raise InvalidValueError(f"{found.file} is of {found.model}, not of {model}; nearest: {found.model}")
    learned = found.task.name
    if dataset is None:
        return
    dataset = dataset_name(dataset)
    both_folders = all(name.startswith("folder:") for name in (dataset, learned))
    # A file that was given away has a folder's name alone: another folder may be called so.
    if dataset == learned and not (both_folders and not runs.is_run(found) and os.path.isdir(folder.place(dataset))):
        return
    if not both_folders or sorted(get_task(dataset).classes) != sorted(found.task.classes):
        raise InvalidValueError(
            f"{found.file} has learned {learned} (classes: {', '.join(found.task.classes[:10])}), not {dataset}; "
            f"nearest: {learned}"
        )
