"""From a configuration, or from a run that was interrupted, to a loop that is ready to go."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mxnet as mx
from mxnet.contrib import amp
from mxnet.gluon.block import HybridBlock

from .. import catalog, weights, zoo
from ..data import Dataset, get_dataset, get_task
from ..errors import MissingFileError, UnusableError
from ..text import printable
from . import config as configuration
from . import schedule
from .checkpoint import CONFIG, Run, State
from .config import Config
from .history import Events, History
from .learner import INITIALISERS, Learner
from .loop import Loop, Position, updates_per_epoch
from .workers import Workers


@dataclass(frozen=True)
class Circumstances:
    """What a run is trained on and with, which its result does not depend on but for rounding."""

    contexts: Sequence[mx.Context]
    kvstore: str = "local"
    data_dir: Path | None = None
    tensorboard: bool = False
    quiet: bool = False
    skip_bad: bool = False


def begin(config: Config, directory: Path, on: Circumstances, init: Path | None = None) -> Loop:
    """A new run in a new directory, from random parameters or from those of the file `init`.

    Raises a UserError for whatever is missing or does not fit, before anything is written.
    """
    workers = Workers(on.kvstore)
    train, test = _data(config, on)
    learner = _learner(config, on, workers)
    if init is not None and weights.load(learner.net, init, other_head=True):
        _say(f"{init} has a head of another size: the dense layer for {train.task.title} starts anew")
    position = Position(history=History(config.epochs))
    # Made before the directory: what can go wrong in it should leave nothing behind.
    rates = schedule.make(config, updates_per_epoch(config, len(train)))
    if on.tensorboard:
        Events.check()
    run = None
    if workers.rank == 0:
        state = State(*learner.arrays(), position.plain())
        run = Run.create(directory, configuration.text(config), state)
    return Loop(learner, train, test, rates, position, run, _events(on, run), on.quiet)


def resume(directory: Path, on: Circumstances) -> Loop:
    """The run of a directory, exactly where it was interrupted. All workers have to see the same directory."""
    workers = Workers(on.kvstore)
    config = read_config(directory)
    run = Run(directory) if workers.rank == 0 else None
    state = State.read(directory / "last.state")
    train, test = _data(config, on)
    learner = _learner(config, on, workers)
    learner.restore(state.parameters, state.momentum)
    position = Position.restored(state.position, config, len(train))
    rates = schedule.make(config, updates_per_epoch(config, len(train)))
    return Loop(learner, train, test, rates, position, run, _events(on, run), on.quiet)


def read_config(directory: Path) -> Config:
    """The configuration of a run; raises MissingFileError where the directory holds none."""
    if not (directory / CONFIG).is_file():
        raise MissingFileError(f"{directory} holds no run: it has no {CONFIG}")
    return configuration.make(configuration.read(directory / CONFIG))


def published_weights(config: Config, root: Path | None = None) -> Path:
    """The file of the authors' weights to start from: those for the same data set, or else those for CIFAR-10."""
    own, other = (catalog.find(config.model, name) for name in (config.dataset, "cifar10"))
    record = own or other
    if record is None or record.checkpoint is None:
        raise MissingFileError(
            f"no weights of {config.model} are published for {config.dataset}: --init FILE takes any others"
        )
    if own is None:
        _say(f"no weights are published for {config.dataset}: starting from those for cifar10")
    return weights.obtain(record.checkpoint, root)


def _learner(config: Config, on: Circumstances, workers: Workers) -> Learner:
    if config.dtype == "float16":
        if any(context.device_type != "gpu" for context in on.contexts):
            raise UnusableError("dtype 'float16' needs a GPU (allowed on a CPU: float32)")
        amp.init()  # before the network is made
    net = zoo.build(catalog.parse_name(config.model), config.dataset)
    initialise(net, config, on.contexts)
    return Learner(net, config, on.contexts, workers)


def initialise(net: HybridBlock, config: Config, contexts: Sequence[mx.Context]) -> None:
    """Draw the parameters; the same ones for the same seed, whatever the devices are."""
    mx.random.seed(config.seed)
    net.initialize(INITIALISERS[config.initialiser](), ctx=list(contexts))
    if any(0 in (each.shape or (0,)) for each in net.collect_params().values()):  # GluonCV's, that wait for an image
        for context in contexts:
            net(mx.nd.zeros((1, 3, 32, 32), ctx=context))


def _data(config: Config, on: Circumstances) -> tuple[Dataset, Dataset]:
    get_task(config.dataset)
    train, test = (get_dataset(config.dataset, split, on.data_dir, on.skip_bad) for split in ("train", "test"))
    for dataset in (train, test):
        if dataset.note and not on.quiet:
            _say(f"data: {dataset.note}")
    return train, test


def _events(on: Circumstances, run: Run | None) -> Events | None:
    return Events(run.directory / "events") if on.tensorboard and run else None


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
