"""Which weights? A network with its weights: published, bundled, of a run, or of any file of parameters."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import catalog, fetching
from ..catalog import Record, parse_name
from ..data import Task, about, dataset_name, decoded, folder, get_task, recorded_task
from ..data.dataset import check_image_size
from ..data.datasets import tell_of_namesake
from ..errors import BadFileError, InvalidValueError, MissingFileError, UserError, unknown
from ..files import PRETRAINED
from ..network import CIFAR, Architecture, Network, widths
from . import formats, runs
from .weights import Head, load, obtain

if TYPE_CHECKING:  # for the types of `Record`'s fields
    from ..catalog import PublishedFile  # noqa: F401
    from ..network import Complexity  # noqa: F401

PUBLISHED = "published"  # in the place of a file of weights: the authors', or the bundled ones
MANIFEST = "manifest.json"  # of the bundled ones


@dataclass(frozen=True)
class Checkpoint(Record):
    """A network with its weights, for a `task`: classes, normalisation and image size.

    The weights are those of `path`, which has to have the `digest`, if any; without a path they are the authors',
    looked for first in `weights_dir`. Where nothing has `recorded` the task, it is an assumption.

    The error is that of the images of a `split`, ``test`` or ``val``. Of a run, `images_sha256` tells these from
    others, `fractions` (validation, test) tell how they were put aside, and `seen` has the hashes of the images that it
    has learned or chosen its epoch by. `origin` is the bundled or published row whose weights these are, if any.
    """

    task: Task = None  # type: ignore[assignment]  # it is always given: others before it have defaults
    digest: str = ""
    weights_dir: Path | None = None
    recorded: bool = True
    split: str = "test"
    images_sha256: str = ""
    fractions: tuple[float, float] = (0.0, 0.0)
    seen: str = field(default="", repr=False)
    origin: Record | None = None

    @property
    def network(self) -> Network:
        """The description of its network."""
        return catalog.describe(self.model, self.task.name, self.task.outputs)

    @property
    def run(self) -> Path | None:
        return self.path.parent if self.path and self.images_sha256 else None

    def locate(self) -> Path:
        """Find the file of its weights, download it if need be, and verify it.

        Raises MissingFileError, and BadFileError where it is another file by now.
        """
        if self.path is None:
            assert self.file  # as `_from_record` has it
            return obtain(self.file, self.weights_dir)
        if self.digest and not os.path.isfile(self.path):
            raise MissingFileError(f"no such parameter file: {self.path}")
        return fetching.verify(self.path, self.digest) if self.digest else self.path

    def arrays(self, network: Network | None = None, head: Head = "required") -> dict[str, np.ndarray]:
        """Load its parameters, for another network of its kind if one is given, as `weights.load` does."""
        return load(self.locate(), network or self.network, head)

    @property
    def sha256(self) -> str:
        """The SHA-256 of its file."""
        return _sha256(self.locate())

    def metadata(self) -> dict[str, str]:
        """What a file of its parameters tells: the model, the task, and the file that they come from."""
        source = {"source": self.locate().name, "source_sha256": self.sha256}
        return {"model": self.model, **about(self.task), **source}


def find(
    model: str | None = None,
    dataset: str | None = None,
    weights: str | os.PathLike[str] = PUBLISHED,
    weights_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    to_train: bool = False,
    quiet: bool = False,
) -> Checkpoint:
    """Find the weights of a path, or the ``published`` ones of a model for a data set (default: ``cifar10``).

    A path that records its network tells model and task itself: a model or data set that is given has to be the same.
    What is assumed of other files is said in a warning, unless `quiet`. With `image_size`, the network sees images of
    that size. Weights `to_train` may be of another data set: where none are published for this one, they are
    CIFAR-10's, with a warning. `dataset` and `image_size` are then only assumed of files that record none.

    Raises InvalidValueError, MissingFileError and BadFileError.
    """
    if dataset is not None:
        tell_of_namesake(dataset)
    size: dict[str, Any] = {} if image_size is None else {"image_size": check_image_size(image_size)}
    path = None if weights == PUBLISHED else fetching.expanded(weights)
    if path and weights_dir is not None:
        raise UserError("weights_dir is where published weights are looked for: pass either that or weights")
    found = path and inspect(path)
    if found:
        _check_same(found, model, None if to_train else dataset)
    elif model is None:
        raise UserError(
            f"{path} does not record its model and data set; pass both, or `pydmobilenet convert` it"
            if path
            else "no network is named: pass a model, or the weights of a run"
        )
    else:
        name, task = parse_name(model).name, get_task(dataset or "cifar10")
        if path:
            task = replace(task, **size)
            found = Checkpoint(name, task.name, path=path, task=task, recorded=False, seen=runs.UNKNOWN)
        else:
            found = _from_record(_row(name, task.name, to_train), weights_dir)
    if not found.recorded and not quiet:
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (task.mean, task.std))
        pixels = f"{task.image_size}x{task.image_size} pixels"
        text = f"{path} does not record its data set; assumed: {task.title}, mean {mean}, std {std}, {pixels}"
        warnings.warn(text, stacklevel=2)
    return found if to_train else replace(found, task=replace(found.task, **size))


class Request(NamedTuple):
    """What `get_model` is asked for. The `arrays` lack those of a dense layer that is to be another one."""

    architecture: Architecture
    dataset: str
    outputs: int
    arrays: dict[str, np.ndarray]


def resolve(
    name: str | None = None,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    weights_dir: str | os.PathLike[str] | None = None,
) -> Request:
    """Check the arguments of an engine's `get_model`, and load the weights that they name. Raises as it does."""
    if weights not in (None, PUBLISHED) and pretrained:
        raise UserError("pass either weights or pretrained, not both")
    weights = PUBLISHED if pretrained else weights
    if weights_dir is not None and weights != PUBLISHED:
        raise UserError("weights_dir is where published weights are looked for: it needs pretrained=True")
    found, to_train = None, weights == PUBLISHED and classes is not None
    if weights is not None:
        found = find(name, dataset, weights, weights_dir, to_train=to_train, quiet=True)
    elif dataset is not None:
        tell_of_namesake(dataset)
    name = found.model if found else name
    if name is None:
        raise UserError("no network is named")
    task = found.task if found else get_task(dataset or "cifar10")
    outputs = task.outputs if classes is None else classes
    if type(outputs) is not int or not 1 <= outputs < 2**31:  # True is no number, and MXNet's have 31 bits
        allowed = f"a whole number from 1 to {2**31 - 1}; nearest: {task.outputs}"
        raise InvalidValueError(f"classes is {repr(outputs)[:100]} (allowed: {allowed})")
    architecture, dataset = parse_name(name), dataset or task.name
    if found is None:
        return Request(architecture, dataset, outputs, {})
    head: Head = "required" if classes is None or not found.recorded else "optional"
    if to_train and dataset_name(dataset) != found.dataset:
        head = "fresh"
    return Request(architecture, dataset, outputs, found.arrays(catalog.describe(architecture, dataset, outputs), head))


def _rows() -> list[Record]:
    """All rows with weights: what "published" means, everywhere."""
    return [row for row in (*bundled(), *catalog.RECORDS) if row.filename]


def _row(model: str, dataset: str, to_train: bool = False) -> Record:
    """Find the row of a model's published weights for a data set, or those `to_train` from, with a warning.

    Raises MissingFileError, which says what there is.
    """
    rows = {row.dataset: row for row in reversed(_rows()) if row.model == model}
    if dataset in rows:
        return rows[dataset]
    text = f"no weights of {model} are published for {dataset}"
    if to_train and "cifar10" in rows and widths(dataset) == CIFAR:
        warnings.warn(f"{text}: starting from the body of those for cifar10", stacklevel=4)
        return rows["cifar10"]
    if to_train:
        raise MissingFileError(f"{text}: --weights FILE takes any others")
    if dataset == "cifar100":
        raise MissingFileError(
            f"no weights of {model} are published for the 100 classes of cifar100: the authors trained their CIFAR-100 "
            "networks on the 20 superclasses; nearest: dataset='cifar100-coarse'"
        )
    names = ", ".join(row.model for row in _rows() if row.dataset == dataset)
    raise MissingFileError(f"{text} (published: {names or 'none'})")


def _from_record(record: Record, weights_dir: str | os.PathLike[str] | None) -> Checkpoint:
    """Make the checkpoint of a row. Raises MissingFileError where there is no such directory, or none are published."""
    root = None if weights_dir is None else fetching.expanded(weights_dir)
    if root and not os.path.isdir(root):
        raise MissingFileError(f"no such directory: {weights_dir}")
    row = record if record.filename else _row(record.model, record.dataset)
    if isinstance(row, Checkpoint):
        return row
    return Checkpoint(**{**vars(row), "task": get_task(row.dataset), "digest": row.digest, "weights_dir": root})


def load_record(record: Record, weights_dir: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """Load the parameters of a row's network. Raises MissingFileError and BadFileError."""
    return _from_record(record, weights_dir).arrays()


def bundled() -> list[Checkpoint]:
    """Read the checkpoints in ``pretrained/``, which comes with the checkout and with the wheel."""
    path = PRETRAINED / MANIFEST
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Checkpoint(path=PRETRAINED / entry["file"], **runs.fields(entry, entry)) for entry in entries]
    except (OSError, *runs.WRONG) as error:
        raise BadFileError(f"{path} is no list of checkpoints: {runs.why(error)}") from None


def inspect(path: str | os.PathLike[str]) -> Checkpoint | None:
    """Read what a path records of its network; None for a file that records nothing.

    These record it: a run and its files, a directory in Hugging Face's layout, a ``.safetensors`` file with metadata,
    and a file with a `formats.sidecar`. Files of published weights, and bundled ones, are known by their hash.

    Raises MissingFileError for a path that is none of them, BadFileError for one that is damaged or has the sidecar of
    another file.
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
    origin = _origin(_sha256(file)) if formats.is_params(head) else None
    return _of_file(file, origin.model, origin.task or get_task(origin.dataset), origin) if origin else None


def _of_run(directory: Path, file: str) -> Checkpoint:
    metadata = runs.read_metadata(directory)
    entries = metadata["checkpoints"]
    if not entries:
        raise MissingFileError(f"{directory} has no checkpoint yet: its first epoch is not finished")
    if file not in entries:
        raise unknown("checkpoint", file, entries)
    return Checkpoint(path=directory / file, **runs.fields(metadata, entries[file]))


def _described(path: Path, where: Path, metadata: Mapping[str, Any]) -> Checkpoint:
    """Make the checkpoint of a file from the `metadata` in it, or `where` they are."""
    try:
        values = decoded(metadata) if where == path else metadata
        model, task = parse_name(values["model"]).name, recorded_task(values["dataset"], values)
    except runs.WRONG as error:
        raise BadFileError(f"{where} does not describe a network: {runs.why(error)}") from None
    return _of_file(path, model, task, _origin(metadata.get("source_sha256"), metadata.get("sha256")))


def _of_file(path: Path, model: str, task: Task, origin: Record | None) -> Checkpoint:
    errors = (origin.top1_error, origin.top5_error) if origin else (None, None)
    seen = "" if origin else runs.UNKNOWN
    return Checkpoint(model, task.name, *errors, path=path, task=task, seen=seen, origin=origin)


def _origin(*sha256: object) -> Record | None:
    """Find the bundled or published row of one of these SHA-256."""
    return next((row for row in _rows() if row.digest.removeprefix("sha256:") in sha256), None)


def _read_json(path: Path) -> dict[str, Any]:
    """Read the object in a file; nothing where it holds none."""
    with suppress(OSError, *runs.WRONG):
        return dict(json.loads(path.read_bytes()).items())
    return {}


def _sha256(path: Path) -> str:
    return fetching.digest(path, "sha256").partition(":")[2]


def _check_same(found: Checkpoint, model: str | None, dataset: str | None) -> None:
    """Raises InvalidValueError where a model or data set, if it is given, is another one than parameters tell. A folder
    may have moved, if its classes are the same.
    """
    if model is not None and parse_name(model).name != found.model:
        raise InvalidValueError(f"{found.path} is of {found.model}, not of {model}; nearest: {found.model}")
    if dataset is None:
        return
    learned, dataset = found.task.name, dataset_name(dataset)
    both_folders = all(name.startswith("folder:") for name in (dataset, learned))
    # A file that was given away has a folder's name alone: another folder may be called so.
    if dataset == learned and not (both_folders and not found.run and os.path.isdir(folder.place(dataset))):
        return
    if not both_folders or sorted(get_task(dataset).classes) != sorted(found.task.classes):
        raise InvalidValueError(
            f"{found.path} has learned {learned} (classes: {', '.join(found.task.classes[:10])}), not {dataset}; "
            f"nearest: {learned}"
        )
