"""From a model's name to a network with weights."""

from __future__ import annotations

import os
from pathlib import Path

import mxnet as mx
from mxnet.gluon.block import HybridBlock

from . import catalog, devices, fetching, models, trained, weights
from .data import get_task
from .errors import MissingFileError, UnknownNameError, UserError


def get_model(
    name: str,
    dataset: str = "cifar10",
    classes: int | None = None,
    pretrained: bool = False,
    device: str | mx.Context | None = None,
    root: str | Path | None = None,
) -> HybridBlock:
    """A network of the zoo: normalised images (N, 3, 32, 32) in float32 to logits (N, outputs).

    `name` is ``resnet-29-0.5``, ``mobilenet-56-1.5``, ``pyd-add-29-0.25``, ``pyd-concat-56-0.75``, ``wrn-28-10`` or any
    other of that form (`catalog.parse_name`). `dataset` sets the number of outputs, unless `classes` does, and on
    ``imagenet32`` the wider trunk. `pretrained` loads the authors' weights, found in `root` or as `weights.places`
    says, else downloaded; for ``digits``, those bundled with the checkout. Where `root` is a run of ``train.py``, its
    best parameters are loaded; where it is a file as ``last.params``, that file. Otherwise the parameters are drawn
    anew (He initialisation). `device` is a name that `devices.choose` knows, or a context; by default MXNet's current
    one.

    Raises UnknownNameError, MissingFileError, BadFileError or UnusableError, which are ValueError, FileNotFoundError,
    ValueError and OSError.
    """
    context = devices.choose(device).context if isinstance(device, str) else device
    architecture = catalog.parse_name(name)
    task = get_task(dataset)
    outputs = task.outputs if classes is None else classes
    if type(outputs) is not int or not 1 <= outputs < 2**31:  # True is no number, and MXNet's have 31 bits
        allowed = f"a whole number from 1 to {2**31 - 1}; nearest: {task.outputs}"
        raise UnknownNameError(f"classes is {repr(outputs)[:100]} (allowed: {allowed})")
    root = None if root is None else fetching.expanded(root)
    file = None
    if pretrained or trained.is_own(root):
        file = weights_file(architecture.name, dataset, root, outputs)
    net = build(architecture, dataset, outputs)
    net.initialize(mx.init.MSRAPrelu(), ctx=context)
    if architecture.family == "wrn":  # GluonCV leaves the shapes to the first image
        net(mx.nd.zeros((1, 3, 32, 32), ctx=context))
    if file:
        weights.load(net, file)
    return net


def build(architecture: catalog.Architecture, dataset: str, outputs: int | None = None) -> HybridBlock:
    """The network for a data set, its parameters not yet initialised."""
    trunk = models.IMAGENET32 if dataset == "imagenet32" else models.CIFAR
    return models.build(architecture, outputs or get_task(dataset).outputs, trunk)


def weights_file(name: str, dataset: str, root: Path | None = None, outputs: int | None = None) -> Path:
    """The verified file that `get_model` loads: of the run or the file that `root` is, else a bundled one, else the
    authors'. Raises as `get_model` does.
    """
    if trained.is_own(root):
        if not os.path.isfile((root.parent if root.suffix == ".params" else root) / trained.FACTS):
            return root
        record = trained.of_run(root)
        if (record.model, record.dataset) != (name, dataset):
            raise UnknownNameError(
                f"{root} is of {record.model} on {record.dataset}, not of {name} on {dataset}; "
                f"nearest: get_model({record.model!r}, dataset={record.dataset!r}, …)"
            )
        return trained.verified(record)
    for record in trained.bundled():
        if (record.model, record.dataset) == (name, dataset):
            return trained.verified(record)
    return weights.obtain(_published_checkpoint(name, dataset, outputs or get_task(dataset).outputs), root)


def _published_checkpoint(name: str, dataset: str, outputs: int) -> catalog.Checkpoint:
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
    if outputs != get_task(dataset).outputs:
        raise UserError(
            f"the published weights of {name} for {dataset} have {get_task(dataset).outputs} outputs, not {outputs}"
        )
    return record.checkpoint
