"""Find the weights of a model: published, bundled, of a run, or in any file of parameters."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalog, fetching
from ..catalog import Record, parse_name
from ..data import Dataset, Task, about, dataset_name, decoded, folder, get_task, is_own, recorded_task
from ..data.arrays import PREFIX
from ..data.dataset import check_image_size
from ..data.datasets import tell_of_namesake
from ..errors import BadFileError, InvalidValueError, MissingFileError, UserError, unknown
from ..files import PRETRAINED
from ..network import CIFAR, widths
from . import formats, runs
from .weights import Head, load, obtain

PUBLISHED = "published"  # instead of a path: the authors' weights, or the bundled ones
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint(Record):
    """A model with its weights, for a `task`: classes, normalisation and image size.

    The weights are in `path`, with the `digest` if there is one. Without a path they are published ones, looked for
    first in `weights_dir`; without a `file` too, they are random. `recorded` is False for an assumed task.

    The error belongs to the images of a `split`, ``test`` or ``val``, put aside by `fractions` (validation, test), with
    the hash `images_sha256`. `seen` has the hashes of all images used in training. `origin` is the bundled or published
    row with the same weights, if any.
    """

    task: Task = None  # type: ignore[assignment]  # always given, but fields before it have defaults
    digest: str = ""
    weights_dir: Path | None = None
    recorded: bool = True
    head: Head = "required"
    split: str = "test"
    images_sha256: str = ""
    fractions: tuple[float, float] = (0.0, 0.0)
    seen: str = field(default="", repr=False)
    origin: Record | None = None

    @property
    def run(self) -> Path | None:
        return self.path.parent if self.path and self.images_sha256 else None

    def cannot_tell(self, dataset: Dataset) -> str:
        """Return why it may have seen images without a record of it; empty if it has a record."""
        if runs.UNKNOWN in self.seen.split():
            return "does not record its images"
        files = bool(dataset.files)  # their bytes are hashed, of arrays the pixels
        other = self.dataset.startswith(PREFIX) if files else self.dataset.startswith("folder:")
        return "records its images by other hashes" if other and self.seen else ""

    def locate(self) -> Path:
        """Find the file of weights, download it if need be, and verify it. Raises MissingFileError and BadFileError."""
        if self.path is None:
            assert self.file  # as `_from_record` has it
            return obtain(self.file, self.weights_dir)
        if self.digest and not os.path.isfile(self.path):
            raise MissingFileError(f"no such parameter file: {self.path}")
        return fetching.verify(self.path, self.digest) if self.digest else self.path

    def arrays(self) -> dict[str, np.ndarray]:
        """Load the parameters as `weights.load` does; none for random weights."""
        return load(self.locate(), self.network, self.head) if self.path or self.file else {}

    @property
    def sha256(self) -> str:
        return _sha256(self.locate())

    def metadata(self) -> dict[str, str]:
        """Return the metadata for a file of these parameters: model, task, and the file that they come from."""
        source = {"source": self.locate().name, "source_sha256": self.sha256}
        return {"model": self.model, **about(self.task), **source}


def find(
    model: str | None = None,
    dataset: str | Task | None = None,
    weights: str | os.PathLike[str] = PUBLISHED,
    weights_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    to_train: bool = False,
    quiet: bool = False,
) -> Checkpoint:
    """Find the weights of a path, or the ``published`` ones of a model for a data set (default: ``cifar10``).

    `dataset` is its name, or the task of arrays.
    If the path records its network, a `model` and `dataset` must be the same. Assumptions about other files are said in
    a warning, unless `quiet`. The network sees images of `image_size`. Weights `to_train` may be of another data set:
    if none are published for this one, CIFAR-10's are taken, with a warning.

    Raises InvalidValueError, MissingFileError and BadFileError.
    """
    if isinstance(dataset, str):
        tell_of_namesake(dataset)
    size: dict[str, Any] = {} if image_size is None else {"image_size": check_image_size(image_size)}
    path = None if weights == PUBLISHED else fetching.expanded(weights)
    if path and weights_dir is not None:
        raise UserError("weights_dir is for published weights: pass either weights_dir or weights")
    checkpoint = inspect(path) if path else None
    if checkpoint:
        _check_same(checkpoint, model, None if to_train or isinstance(dataset, Task) else dataset)
    elif model is None:
        if path is None:
            raise UserError("no network is named: pass a model, or the weights of a run")
        if path.suffix.lower() in formats.EXPORTED:
            raise UserError(f"{path} is a network for other programs, not its weights; pass what it was exported from")
        raise UserError(f"{path} does not record its model and data set; pass both, or `pydmobilenet convert` it")
    else:
        name = parse_name(model).name
        task = dataset if isinstance(dataset, Task) else get_task(dataset or "cifar10")
        if path:
            task = replace(task, **size)
            checkpoint = Checkpoint(name, task.name, path=path, task=task, recorded=False, seen=runs.UNKNOWN)
            if not quiet:
                warnings.warn(_assumption(path, task), stacklevel=2)
        else:
            checkpoint = _from_record(_row(name, task.name, to_train), weights_dir)
    task = replace(checkpoint.task, **size)
    if to_train or task == checkpoint.task:
        return checkpoint
    return replace(checkpoint, task=task, top1_error=None)  # the error is of images of another size


def _assumption(path: Path, task: Task) -> str:
    mean, std = ("/".join(f"{value:g}" for value in values) for values in (task.mean, task.std))
    pixels = f"{task.image_size}x{task.image_size} pixels"
    return f"{path} does not record its data set; assumed: {task.title}, mean {mean}, std {std}, {pixels}"


def resolve(
    name: str | None = None,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    weights_dir: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Return the checkpoint for the arguments of `get_model`, and load no weights yet. Raises as that does."""
    if weights not in (None, PUBLISHED) and pretrained:
        raise UserError("pass either weights or pretrained, not both")
    weights = PUBLISHED if pretrained else weights
    if weights_dir is not None and weights != PUBLISHED:
        raise UserError("weights_dir is for published weights: it needs pretrained=True")
    to_train = weights == PUBLISHED and classes is not None
    if weights is not None:
        checkpoint = find(name, dataset, weights, weights_dir, to_train=to_train, quiet=True)
    elif name is None:
        raise UserError("no network is named: pass a model, or the weights of a run")
    else:
        if dataset is not None:
            tell_of_namesake(dataset)
        task = get_task(dataset or "cifar10")
        checkpoint = Checkpoint(parse_name(name).name, task.name, task=task)
    if classes is None:
        return checkpoint
    if type(classes) is not int or not 1 <= classes < 2**31:  # True is no number, and MXNet's have 31 bits
        allowed = f"a whole number from 1 to {2**31 - 1}; nearest: {checkpoint.task.outputs}"
        raise InvalidValueError(f"classes is {repr(classes)[:100]} (allowed: {allowed})")
    head: Head = "optional" if checkpoint.recorded else "required"
    if to_train and dataset is not None and dataset_name(dataset) != checkpoint.dataset:
        head = "fresh"
    return replace(checkpoint, task=replace(checkpoint.task, outputs=classes), head=head)


def _rows() -> list[Record]:
    """Return all rows with weights: the ``published`` ones, for every command and function."""
    return [row for row in (*bundled(), *catalog.RECORDS) if row.filename]


def _row(model: str, dataset: str, to_train: bool = False) -> Record:
    """Find the row of a model's published weights for a data set, or CIFAR-10's `to_train` from, with a warning.

    Raises MissingFileError with the published models.
    """
    rows = {row.dataset: row for row in reversed(_rows()) if row.model == model}
    if dataset in rows:
        return rows[dataset]
    text = f"no weights of {model} are published for {dataset}"
    if to_train and "cifar10" in rows and widths(dataset) == CIFAR:
        warnings.warn("Starting from the authors' CIFAR-10 weights.", stacklevel=4)
        return rows["cifar10"]
    if to_train:
        raise MissingFileError(f"{text}; pass others by --weights FILE")
    if dataset == "cifar100" and "cifar100-coarse" in rows:
        raise MissingFileError(f"{text}, only for the 20 superclasses of CIFAR-100; nearest: dataset='cifar100-coarse'")
    names = ", ".join(row.model for row in _rows() if row.dataset == dataset)
    raise MissingFileError(f"{text} (published: {names or 'none'})")


def _from_record(record: Record, weights_dir: str | os.PathLike[str] | None) -> Checkpoint:
    """Return the checkpoint of a row. Raises MissingFileError for a missing directory, and as `_row` does."""
    root = None if weights_dir is None else fetching.expanded(weights_dir)
    if root and not os.path.isdir(root):
        raise MissingFileError(f"no such directory: {weights_dir}")
    row = record if record.filename else _row(record.model, record.dataset)
    if isinstance(row, Checkpoint):
        return row
    return Checkpoint(**{**vars(row), "task": get_task(row.dataset), "digest": row.digest, "weights_dir": root})


def load_record(record: Record, weights_dir: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """Load the parameters of a row. Raises MissingFileError and BadFileError."""
    return _from_record(record, weights_dir).arrays()


def bundled() -> list[Checkpoint]:
    """Read the list of checkpoints in ``pretrained/``. Raises BadFileError."""
    path = PRETRAINED / MANIFEST
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Checkpoint(path=PRETRAINED / entry["file"], **runs.fields(entry, entry)) for entry in entries]
    except (OSError, *runs.WRONG) as error:
        raise BadFileError(f"{path} is no list of checkpoints: {runs.why(error)}") from None


def inspect(path: str | os.PathLike[str]) -> Checkpoint | None:
    """Read the model and task that a path records; None for a file of parameters alone.

    They are recorded by a run and its files, a directory in Hugging Face's layout, a ``.safetensors`` file with
    metadata, and a file with a `formats.sidecar`. Published and bundled files are known by their hash.

    Raises MissingFileError for another path, BadFileError for a damaged one and for the sidecar of another file.
    """
    path = fetching.expanded(path)
    is_run, file = os.path.isfile(path / runs.METADATA), path / formats.MODEL_FILE
    if os.path.isdir(path) and (is_run or not os.path.isfile(file)):
        return _of_run(path, runs.BEST)
    file = file if os.path.isdir(path) else path
    head = formats.read_head(file)
    if formats.is_safetensors(head):
        metadata = formats.read_metadata(file)
        if {"model", "dataset"} <= metadata.keys():
            return _described(file, file, metadata)
    if file != path:
        raise BadFileError(f"{file} does not record its model; pass the file itself, with its model and data set")
    sidecar = formats.sidecar(file)
    metadata = _read_json(sidecar) if formats.is_params(head) else {}
    if {"model", "dataset", "sha256"} <= metadata.keys():  # else it is somebody else's
        if metadata["sha256"] != _sha256(file):
            raise BadFileError(f"{sidecar} describes another file than {file}, by its SHA-256; move it away to go on")
        return _described(file, sidecar, metadata)
    if os.path.isfile(path.parent / runs.METADATA):
        return _of_run(path.parent, path.name)
    row = origin(_sha256(file)) if formats.is_params(head) else None
    return _of_file(file, row.model, row.task or get_task(row.dataset), row) if row else None


def _of_run(directory: Path, file: str) -> Checkpoint:
    metadata = runs.read_metadata(directory)
    entries = metadata["checkpoints"]
    if not entries:
        raise MissingFileError(f"{directory} has no checkpoint yet: its first epoch is not finished")
    if file not in entries:
        raise unknown("checkpoint", file, entries)
    return Checkpoint(path=directory / file, **runs.fields(metadata, entries[file]))


def _described(path: Path, source: Path, metadata: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint of a file with `metadata` in it or in its sidecar, the `source`."""
    try:
        values = decoded(metadata) if source == path else metadata
        model, task = parse_name(values["model"]).name, recorded_task(values["dataset"], values)
    except runs.WRONG as error:
        raise BadFileError(f"{source} does not describe a network: {runs.why(error)}") from None
    return _of_file(path, model, task, origin(metadata.get("source_sha256"), metadata.get("sha256")))


def _of_file(path: Path, model: str, task: Task, origin: Record | None) -> Checkpoint:
    errors = (origin.top1_error, origin.top5_error) if origin else (None, None)
    seen = "" if origin else runs.UNKNOWN
    return Checkpoint(model, task.name, *errors, path=path, task=task, seen=seen, origin=origin)


def origin(*sha256: object) -> Record | None:
    """Find the bundled or published row with one of these SHA-256."""
    return next((row for row in _rows() if row.digest.removeprefix("sha256:") in sha256), None)


def _read_json(path: Path) -> dict[str, Any]:
    """Read the object in a file; nothing if there is none."""
    with suppress(OSError, *runs.WRONG):
        return dict(json.loads(path.read_bytes()).items())
    return {}


def _sha256(path: Path) -> str:
    return fetching.digest(path, "sha256").partition(":")[2]


def _check_same(checkpoint: Checkpoint, model: str | None, dataset: str | None) -> None:
    """Raise InvalidValueError for another model or data set than recorded. A folder with the same classes may move."""
    if model is not None and parse_name(model).name != checkpoint.model:
        raise InvalidValueError(
            f"{checkpoint.path} is of {checkpoint.model}, not of {model}; nearest: {checkpoint.model}"
        )
    if dataset is None:
        return
    trained_on, dataset = checkpoint.task.name, dataset_name(dataset)
    both_folders = dataset.startswith("folder:") and is_own(trained_on)
    # A file that was given away has a folder's name alone, and another folder may have the same name.
    if dataset == trained_on and not (both_folders and not checkpoint.run and os.path.isdir(folder.place(dataset))):
        return
    if not both_folders or sorted(get_task(dataset).classes) != sorted(checkpoint.task.classes):
        raise InvalidValueError(
            f"{checkpoint.path} was trained on {trained_on} (classes: {', '.join(checkpoint.task.classes[:10])}), "
            f"not {dataset}; nearest: {trained_on}"
        )
