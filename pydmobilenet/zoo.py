"""From a model's name to its description and its weights."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import catalog, fetching
from .catalog import Record, TrainedRecord
from .checkpoints import described, runs
from .checkpoints import weights as checkpoints
from .data import Task, about, get_task
from .data.dataset import check_image_size
from .data.datasets import tell_of_namesake
from .errors import InvalidValueError, MissingFileError, UserError
from .network import CIFAR, IMAGENET32, Architecture, Network, Widths
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
    name: str | None = None,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    weights_dir: str | os.PathLike[str] | None = None,
) -> Request:
    """The arguments of an engine's `get_model`, checked, with the weights that they name. Raises as it does."""
    if dataset is not None:
        tell_of_namesake(dataset)
    if weights_dir is not None and not pretrained:
        raise UserError("weights_dir is where published weights are looked for: it needs pretrained=True")
    if weights is not None and pretrained:
        raise UserError("weights and pretrained are two beginnings: give one of them")
    path = None if weights is None else fetching.expanded(weights)
    found = path and described.find(path)
    if found:
        described.check_given(found, name, dataset)
        name = found.model
    if name is None:
        raise UserError(f"{path} does not record its model; pass its name" if path else "no network is named")
    architecture = catalog.parse_name(name)
    task = found.task if found else get_task(dataset or "cifar10")
    dataset = dataset or task.name
    outputs = task.outputs if classes is None else classes
    if type(outputs) is not int or not 1 <= outputs < 2**31:  # True is no number, and MXNet's have 31 bits
        allowed = f"a whole number from 1 to {2**31 - 1}; nearest: {task.outputs}"
        raise InvalidValueError(f"classes is {repr(outputs)[:100]} (allowed: {allowed})")
    head: checkpoints.Head = "required" if classes is None else "optional"
    if path:
        file, head = (runs.verified(found), head) if found else (path, "required")
    elif pretrained:
        record = published(architecture.name, dataset) if classes is None else body(architecture.name, dataset)
        file, head = record_file(record, weights_dir), head if record.dataset == dataset else "fresh"
    else:
        return Request(architecture, dataset, outputs, {})
    arrays = checkpoints.load(file, describe(architecture, dataset, outputs), head)
    return Request(architecture, dataset, outputs, arrays)


class Initial(NamedTuple):
    """Weights that a training starts from: their file, the task that they were trained for, if that is known, and the
    images that they have `seen`, as a run records them.
    """

    file: Path
    task: Task | None
    seen: str = ""


class Source(NamedTuple):
    """One network: its name, its task, and the file of its weights, None for the published ones, which are looked for
    first in `weights_dir`.
    """

    name: str
    task: Task
    weights: Path | None
    weights_dir: Path | None

    @property
    def network(self) -> Network:
        """Its description."""
        return describe(self.name, self.task.name, self.task.outputs)

    def file(self) -> Path:
        """The file of its weights, verified."""
        if self.weights is None:
            return record_file(published(self.name, self.task.name), self.weights_dir)
        found = described.find(self.weights)
        return runs.verified(found) if found else self.weights

    def arrays(self) -> dict[str, np.ndarray]:
        """Its parameters."""
        return checkpoints.load(self.file(), self.network)

    @property
    def record(self) -> Record | None:
        """The run, the bundled network or the published row whose weights these are, if there is one."""
        if self.weights is None:
            return published(self.name, self.task.name)
        found = described.find(self.weights)
        return (found.origin or found) if found and found.top1_error is not None else None

    def metadata(self) -> dict[str, str]:
        """What a file of its parameters tells: the model, the task, and the file that they come from."""
        file = self.file()
        sha256 = fetching.digest(file, "sha256").partition(":")[2]
        return {"model": self.name, **about(self.task), "source": file.name, "source_sha256": sha256}


def source(
    model: str | None,
    dataset: str | None = None,
    weights: str | os.PathLike[str] = PUBLISHED,
    weights_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> Source:
    """The network of a model's name, a data set's (default: ``cifar10``) and weights: a path, or ``published``.

    What `described.find` knows tells its model, classes, normalisation and image size itself; a model or data set that
    is given has to be the same. What is assumed of other files is said in a warning. With `image_size`, the network
    sees images of that size. Raises InvalidValueError, MissingFileError and BadFileError.
    """
    if dataset is not None:
        tell_of_namesake(dataset)
    path = None if weights == PUBLISHED else fetching.expanded(weights)
    where = None if weights_dir is None else fetching.expanded(weights_dir)
    if path and where:
        raise UserError("--weights and --weights-dir are two places: give one of them")
    found = path and described.find(path)
    if found:
        described.check_given(found, model, dataset)
        model = found.model
    if model is None:
        raise UserError(
            f"{path} does not record its model; pass --model and --dataset"
            if path
            else "no network is named: add --model NAME, or --weights RUN"
        )
    task = found.task if found else get_task(dataset or "cifar10")
    if image_size is not None:
        task = replace(task, image_size=check_image_size(image_size))
    if path and not found:
        warn_of_assumed(path, task)
    return Source(catalog.parse_name(model).name, task, path, where)


def warn_of_assumed(path: Path, task: Task) -> None:
    """Say which normalisation and image size are taken for a file that does not record them."""
    mean, std = ("/".join(f"{value:g}" for value in values) for values in (task.mean, task.std))
    warnings.warn(
        f"{path} does not record its data set; assumed: {task.title}, mean {mean}, std {std}, "
        f"{task.image_size}x{task.image_size} pixels",
        stacklevel=3,
    )


def published(model: str, dataset: str) -> Record:
    """The row of the bundled or published weights of a model for a data set: what "published" means, everywhere.

    Raises MissingFileError, which says what there is.
    """
    rows = [row for row in (*runs.bundled(), *catalog.RECORDS) if row.checkpoint]
    record = next((row for row in rows if (row.model, row.dataset) == (model, dataset)), None)
    if record:
        return record
    if dataset == "cifar100":
        raise MissingFileError(
            f"no weights of {model} are published for the 100 classes of cifar100: the authors trained their CIFAR-100 "
            "networks on the 20 superclasses; nearest: dataset='cifar100-coarse'"
        )
    names = ", ".join(row.model for row in rows if row.dataset == dataset)
    raise MissingFileError(f"no weights of {model} are published for {dataset} (published: {names or 'none'})")


def body(model: str, dataset: str) -> Record:
    """The row of weights to train from: those `published` for the data set, else CIFAR-10's, said in a warning.

    The head of the latter is not for the data set. Raises MissingFileError where there are neither.
    """
    for name in (dataset, "cifar10") if widths(dataset) == CIFAR else (dataset,):
        with suppress(MissingFileError):
            record = published(model, name)
            if name != dataset:
                text = f"no weights of {model} are published for {dataset}: starting from the body of those for {name}"
                warnings.warn(text, stacklevel=3)
            return record
    raise MissingFileError(f"no weights of {model} are published for {dataset}: --weights FILE takes any others")


def record_file(record: Record, weights_dir: str | os.PathLike[str] | None = None) -> Path:
    """The verified file of a row's weights; published ones are looked for first in `weights_dir`, and downloaded.

    Raises MissingFileError and BadFileError.
    """
    if weights_dir is not None and not os.path.isdir(fetching.expanded(weights_dir)):
        raise MissingFileError(f"no such directory: {weights_dir}")
    if isinstance(record, TrainedRecord):
        return runs.verified(record)
    checkpoint = record.checkpoint or published(record.model, record.dataset).checkpoint
    assert checkpoint is not None
    return checkpoints.obtain(checkpoint, None if weights_dir is None else fetching.expanded(weights_dir))


def record_weights(record: Record, weights_dir: Path | None = None) -> dict[str, np.ndarray]:
    """The parameters of a record's network, from its verified file. Raises MissingFileError and BadFileError."""
    network = describe(record.model, record.dataset, record.outputs)
    return checkpoints.load(record_file(record, weights_dir), network)
