"""From a model's name to its description and its weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import catalog, fetching
from .catalog import Architecture, Record, TrainedRecord
from .checkpoints import described, runs
from .checkpoints import weights as checkpoints
from .data import Task, about, get_task
from .data.dataset import check_image_size
from .data.datasets import tell_of_namesake
from .errors import InvalidValueError, MissingFileError, UserError
from .network import CIFAR, IMAGENET32, Network, Widths
from .network import describe as describe_architecture

PUBLISHED = "published"  # in the place of a file of weights: the authors', or the bundled ones


def describe(model: str | Architecture, dataset: str = "cifar10", outputs: int | None = None) -> Network:
    """The description of a model's network on a data set, with the outputs that this asks for or with so many.

    Raises InvalidValueError for an unknown name.
    """
    architecture = catalog.parse_name(model) if isinstance(model, str) else model
    return describe_architecture(architecture, outputs or get_task(dataset).outputs, widths(dataset))


def widths(dataset: str) -> Widths:
    """How wide the networks for a data set are."""
    return IMAGENET32 if dataset == "imagenet32" else CIFAR


class Request(NamedTuple):
    """What `get_model` is asked for: an architecture with so many outputs, on a data set, and parameters to load, which
    lack those of the dense layer where that is to be another one.
    """

    architecture: Architecture
    dataset: str
    outputs: int
    arrays: dict[str, np.ndarray]


def request(
    name: str,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
) -> Request:
    """The arguments of an engine's `get_model`, checked, with the weights that they name. Raises as it does."""
    architecture = catalog.parse_name(name)
    if dataset is not None:
        tell_of_namesake(dataset)
    if weights_dir is not None and not pretrained:
        raise UserError("weights_dir is where published weights are looked for: it needs pretrained=True")
    if weights is not None and pretrained:
        raise UserError("weights and pretrained are two beginnings: give one of them")
    found = None if weights is None else described.find(fetching.expanded(weights))
    if found is not None:
        described.check_given(found, name, dataset)
    task = found.task if found else get_task(dataset or "cifar10")
    dataset = dataset or task.name
    outputs = task.outputs if classes is None else classes
    if type(outputs) is not int or not 1 <= outputs < 2**31:  # True is no number, and MXNet's have 31 bits
        allowed = f"a whole number from 1 to {2**31 - 1}; nearest: {task.outputs}"
        raise InvalidValueError(f"classes is {repr(outputs)[:100]} (allowed: {allowed})")
    if not (weights or pretrained):
        return Request(architecture, dataset, outputs, {})
    file = weights_file(architecture.name, dataset, weights, weights_dir)
    other_head = classes is not None and (pretrained or found is not None)
    arrays = checkpoints.load(file, describe(architecture, dataset, outputs), other_head)
    return Request(architecture, dataset, outputs, arrays)


class Initial(NamedTuple):
    """Weights that a training starts from: their file, the task that they were trained for, if that is known, and the
    images that they have `seen`, as a run records them.
    """

    file: Path
    task: Task | None
    seen: str = ""


def initial(path: Path) -> Initial:
    """Find the weights of a run or a file to start from, with the task and the images that they record.

    Images are unknown where they may be of a folder: not of other data sets, and not of published weights.
    """
    found = described.find(path)
    file, task = (described.verified(found), found.task) if found else (path, None)
    seen = found.record.seen if found and found.record else runs.UNKNOWN
    if seen == runs.UNKNOWN:
        digests = checkpoints.origins(file)
        published = any(record.checkpoint and record.checkpoint.sha256 in digests for record in catalog.RECORDS)
        if published or (task and not task.name.startswith("folder:")):
            seen = ""
    return Initial(file, task, seen)


class Source(NamedTuple):
    """One network: its name, its task, and the file of its weights, None for the published ones, which are looked for
    first in `weights_dir`.
    """

    name: str
    task: Task
    weights: Path | None
    weights_dir: Path | None

    def resized(self, image_size: int | None) -> Source:
        """The network for images of another size, if one is given. Raises InvalidValueError for an impossible one."""
        if image_size is None:
            return self
        return self._replace(task=replace(self.task, image_size=check_image_size(image_size)))

    @property
    def network(self) -> Network:
        """Its description."""
        return describe(self.name, self.task.name, self.task.outputs)

    def file(self) -> Path:
        """The file of its weights, verified."""
        return weights_file(self.name, self.task.name, self.weights, self.weights_dir)

    def arrays(self) -> dict[str, np.ndarray]:
        """Its parameters."""
        return checkpoints.load(self.file(), self.network)

    @property
    def record(self) -> Record | None:
        """The run, the bundled network or the published row whose weights these are, if there is one."""
        rows = [*runs.bundled(), *catalog.RECORDS]
        if self.weights is None:
            return next((row for row in rows if (row.model, row.dataset) == (self.name, self.task.name)), None)
        found = described.find(self.weights)
        if found and found.record:
            return found.record
        digests = checkpoints.origins(self.file())
        return next((row for row in rows if row.checkpoint and row.checkpoint.sha256 in digests), None)

    def metadata(self) -> dict[str, str]:
        """What a file of its parameters tells: the model, the task, and the file that they come from."""
        file = self.file()
        sha256 = fetching.digest(file, "sha256").partition(":")[2]
        return {"model": self.name, **about(self.task), "source": file.name, "source_sha256": sha256}


def source(
    model: str | None,
    dataset: str | None = None,
    weights: str | Path = PUBLISHED,
    weights_dir: str | Path | None = None,
) -> Source:
    """The network of a model's name, a data set's (default: ``cifar10``) and weights: a file, a run, or ``published``.

    A run, and a .safetensors file with metadata, tell their model, classes and normalisation themselves; where others
    are given, they have to be the same. Raises InvalidValueError, MissingFileError and BadFileError.
    """
    if dataset is not None:
        tell_of_namesake(dataset)
    path = None if weights == PUBLISHED else fetching.expanded(weights)
    where = None if weights_dir is None else fetching.expanded(weights_dir)
    if path is not None:
        if where is not None:
            raise UserError("--weights and --weights-dir are two places: give one of them")
        found = described.find(path)
        if found is not None:
            described.check_given(found, model, dataset)
            return Source(found.model, found.task, path, None)
        if model is None:
            raise UserError(f"{path} is of no run, which would tell its network: add --model and --dataset")
    if model is None:
        raise UserError("no network is named: add --model NAME, or --weights RUN")
    return Source(catalog.parse_name(model).name, get_task(dataset or "cifar10"), path, where)


def record_weights(record: Record, weights_dir: Path | None = None) -> dict[str, np.ndarray]:
    """The parameters of a record's network, from its verified file. Raises MissingFileError and BadFileError."""
    if isinstance(record, TrainedRecord):
        file = runs.verified(record)
    else:
        published = record.checkpoint or _published_checkpoint(record.model, record.dataset)
        file = checkpoints.obtain(published, weights_dir)
    return checkpoints.load(file, describe(record.model, record.dataset, record.outputs))


def weights_file(
    name: str,
    dataset: str,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
) -> Path:
    """The verified file that `get_model` loads: of the run or the file that `weights` is, else a bundled one, else the
    authors'. Raises as `get_model` does.
    """
    if weights is not None:
        path = fetching.expanded(weights)
        found = described.find(path)
        return described.verified(found) if found else path
    if weights_dir is not None and not os.path.isdir(fetching.expanded(weights_dir)):
        raise MissingFileError(f"no such directory: {weights_dir}")
    for record in runs.bundled():
        if (record.model, record.dataset) == (name, dataset):
            return runs.verified(record)
    published = _published_checkpoint(name, dataset)
    return checkpoints.obtain(published, fetching.expanded(weights_dir) if weights_dir else None)


def _published_checkpoint(name: str, dataset: str) -> catalog.Checkpoint:
    """The checkpoint that the authors published for a model on a data set; raises where there is none, and says why."""
    if dataset == "cifar100":
        raise MissingFileError(
            f"no weights of {name} are published for the 100 classes of cifar100: the authors trained their CIFAR-100 "
            "networks on the 20 superclasses; nearest: dataset='cifar100-coarse'"
        )
    record = catalog.find(name, dataset)
    if record is None or record.checkpoint is None:
        published = [record.model for record in catalog.RECORDS if record.dataset == dataset and record.checkpoint]
        raise MissingFileError(
            f"no weights of {name} are published for {dataset} (published: {', '.join(published) or 'none'})"
        )
    return record.checkpoint
