"""From a model's name to a network with weights."""

from __future__ import annotations

import os
from pathlib import Path

import mxnet as mx
from mxnet.gluon.block import HybridBlock

from . import catalog, fetching
from .checkpoints import runs
from .checkpoints import weights as checkpoints
from .data import get_task
from .errors import InvalidValueError, MissingFileError, UserError
from .gluon import build as build_module
from .gluon import devices


def get_model(
    name: str,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    device: str | mx.Context | None = None,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
) -> HybridBlock:
    """A network of the zoo: normalised images (N, 3, 32, 32) in float32 to logits (N, outputs).

    `name` is ``resnet-29-0.5``, ``mobilenet-56-1.5``, ``pyd-add-29-0.25``, ``pyd-concat-56-0.75``, ``wrn-28-10`` or any
    other of that form (`catalog.parse_name`). `dataset`, by default the run's or ``cifar10``, sets the number of
    outputs, unless `classes` does, and on ``imagenet32`` the wider trunk.

    `weights` is a run of ``train.py``, of which the best parameters are loaded, or a file of parameters. `pretrained`
    loads the authors' weights, found in `weights_dir` or where `weights.places` says, else downloaded; for ``digits``,
    those bundled with the checkout. Without either, the parameters are drawn anew (He initialisation). `device` is a
    name that `devices.choose` knows, or a context; by default MXNet's current one.

    Raises InvalidValueError, MissingFileError, BadFileError or UnusableError, which are ValueError, FileNotFoundError,
    ValueError and OSError.
    """
    context = devices.choose(device).context if isinstance(device, str) else device
    architecture = catalog.parse_name(name)
    if weights_dir is not None and not pretrained:
        raise UserError("weights_dir is where published weights are looked for: it needs pretrained=True")
    if weights is not None and pretrained:
        raise UserError("weights and pretrained are two beginnings: give one of them")
    run = None if weights is None else runs.find_run(fetching.expanded(weights))
    if run is not None:
        runs.check_given(run, name, dataset)
    dataset = dataset or (run.dataset if run else "cifar10")
    task = run.task if run else get_task(dataset)
    outputs = task.outputs if classes is None else classes
    if type(outputs) is not int or not 1 <= outputs < 2**31:  # True is no number, and MXNet's have 31 bits
        allowed = f"a whole number from 1 to {2**31 - 1}; nearest: {task.outputs}"
        raise InvalidValueError(f"classes is {repr(outputs)[:100]} (allowed: {allowed})")
    file = weights_file(architecture.name, dataset, weights, weights_dir, outputs) if weights or pretrained else None
    net = build(architecture, dataset, outputs)
    net.initialize(mx.init.MSRAPrelu(), ctx=context)
    if architecture.family == "wrn":  # GluonCV leaves the shapes to the first image
        net(mx.nd.zeros((1, 3, 32, 32), ctx=context))
    if file:
        checkpoints.load(net, file)
    return net


def build(architecture: catalog.Architecture, dataset: str, outputs: int | None = None) -> HybridBlock:
    """The network for a data set, its parameters not yet initialised."""
    trunk = build_module.IMAGENET32 if dataset == "imagenet32" else build_module.CIFAR
    return build_module.build(architecture, outputs or get_task(dataset).outputs, trunk)


def weights_file(
    name: str,
    dataset: str,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
    outputs: int | None = None,
) -> Path:
    """The verified file that `get_model` loads: of the run or the file that `weights` is, else a bundled one, else the
    authors'. Raises as `get_model` does.
    """
    if weights is not None:
        path = fetching.expanded(weights)
        run = runs.find_run(path)
        return runs.verified(run) if run else path
    if weights_dir is not None and not os.path.isdir(fetching.expanded(weights_dir)):
        raise MissingFileError(f"no such directory: {weights_dir}")
    for record in runs.bundled():
        if (record.model, record.dataset) == (name, dataset):
            return runs.verified(record)
    published = _published_checkpoint(name, dataset, outputs or get_task(dataset).outputs)
    return checkpoints.obtain(published, weights_dir and fetching.expanded(weights_dir))


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
