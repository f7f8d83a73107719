"""From a configuration, or from a run that was interrupted, to a loop that is ready to go."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mxnet as mx
from mxnet.contrib import amp
from mxnet.gluon.block import HybridBlock

from .. import catalog, fetching, provenance, zoo
from ..checkpoints import params, weights
from ..checkpoints.runs import METADATA, read_metadata
from ..data import Dataset, Task, get_dataset, recorded_task
from ..errors import BadFileError, MissingFileError, UnusableError
from ..gluon.network import load_weights
from ..gluon.trainer import INITIALISERS, Learner
from ..gluon.workers import Workers
from ..text import printable
from . import config as configuration
from . import schedule
from .checkpoint import CONFIG, Run, State
from .config import Config
from .history import Events, History
from .loop import Loop, Position, updates_per_epoch


@dataclass(frozen=True)
class Circumstances:
    """What a run is trained on and with, which its result does not depend on but for rounding."""

    contexts: Sequence[mx.Context]
    kvstore: str = "local"
    data_dir: Path | None = None
    tensorboard: bool = False
    quiet: bool = False
    skip_bad: bool = False

    @property
    def devices(self) -> str:
        """The devices' names."""
        return ", ".join(map(str, self.contexts))


def begin(config: Config, directory: Path, on: Circumstances, init: Path | None = None) -> Loop:
    """A new run in a new directory, from random parameters or from those of the file `init`.

    Raises a UserError for whatever is missing or does not fit, before anything is written.
    """
    workers = Workers(on.kvstore)
    train, test = _data(config, on)
    learner = _learner(config, train.task, on, workers)
    if init is not None and load_weights(learner.net, init, other_head=True):
        _say(f"{init} has a head of another size: the dense layer for {train.task.title} starts anew")
    position = Position(history=History(config.epochs))
    # Made before the directory: what can go wrong in it should leave nothing behind.
    rates = schedule.make(config, updates_per_epoch(config, len(train)))
    if on.tensorboard:
        Events.check()
    run = None
    if workers.rank == 0:
        state = State(*learner.arrays(), position.plain())
        metadata = described(config, train, test, state, init, on)
        run = Run.create(directory, configuration.text(config), state, metadata)
    return Loop(learner, train, test, rates, position, run, _events(on, run), on.quiet)


def described(
    config: Config, train: Dataset, test: Dataset, state: State, init: Path | None, on: Circumstances
) -> dict[str, object]:
    """What a run says of itself: all that is needed to use it, or to go on with it, where its data is not at hand."""
    task = train.task
    drawn = hashlib.sha256(params.dump(state.parameters)).hexdigest()
    source = str(init) if init else f"{config.initialiser}, seed {config.seed}"
    return {
        "model": config.model,
        "dataset": task.name,
        "outputs": task.outputs,
        "classes": task.classes,
        "mean": task.mean,
        "std": task.std,
        "config": vars(config),
        "data": {"train": provenance.of_data(train), "test": provenance.of_data(test)},
        "initial_weights": {"source": source, "sha256": fetching.digest(init, "sha256")[7:] if init else drawn},
        "sessions": [provenance.session(on.devices)],
    }


def resume(directory: Path, on: Circumstances) -> Loop:
    """The run of a directory, exactly where it was interrupted. All workers have to see the same directory.

    Raises BadFileError where its data or its configuration is no longer the same.
    """
    workers = Workers(on.kvstore)
    config = read_config(directory)
    run = Run(directory) if workers.rank == 0 else None
    metadata = read_metadata(directory) if (directory / METADATA).exists() else {}
    check_config(config, metadata, directory)
    state = State.read(directory / "last.state")
    train, test = _data(config, on, metadata)
    check_data(train, test, metadata, directory)
    learner = _learner(config, train.task, on, workers)
    learner.restore(state.parameters, state.momentum)
    position = Position.restored(state.position, config, len(train))
    rates = schedule.make(config, updates_per_epoch(config, len(train)))
    if run is not None:
        known = metadata or {**described(config, train, test, state, None, on), "checkpoints": {}, "sessions": []}
        run.metadata = {**known, "sessions": [*known.get("sessions", []), provenance.session(on.devices)]}
    return Loop(learner, train, test, rates, position, run, _events(on, run), on.quiet)


def check_config(config: Config, metadata: Mapping[str, object], directory: Path) -> None:
    """Raises BadFileError where a run's configuration is not the one that it began with."""
    begun = metadata.get("config")
    if begun is None:
        return
    for key, value in json.loads(json.dumps(vars(config))).items():
        if value != begun.get(key):
            raise BadFileError(
                f"{directory / CONFIG} has {key} {value!r}, but the run began with {begun.get(key)!r}: put it back; to "
                "train on with another recipe, start a run with --init on its last.params"
            )


def check_data(train: Dataset, test: Dataset, metadata: Mapping[str, object], directory: Path) -> None:
    """Raises BadFileError where the data is not what a run began with; warns where the run does not tell."""
    recorded = metadata.get("data")
    if recorded is None:
        warnings.warn(
            f"{directory} is of an earlier version and does not tell its data: it is not compared", stacklevel=2
        )
        return
    for split, dataset in (("train", train), ("test", test)):
        difference = provenance.data_difference(recorded[split], dataset)
        if difference:
            raise BadFileError(
                f"{dataset.source} is not the {split} data that the run began with: {difference}; to train on with "
                "other data, start a run with --init on its last.params"
            )


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


def _learner(config: Config, task: Task, on: Circumstances, workers: Workers) -> Learner:
    if config.dtype == "float16":
        if any(context.device_type != "gpu" for context in on.contexts):
            raise UnusableError("dtype 'float16' needs a GPU (allowed on a CPU: float32)")
        amp.init()  # before the network is made
    net = zoo.build(catalog.parse_name(config.model), config.dataset, task.outputs)
    initialise(net, config, on.contexts)
    return Learner(net, config, on.contexts, workers)


def initialise(net: HybridBlock, config: Config, contexts: Sequence[mx.Context]) -> None:
    """Draw the parameters; the same ones for the same seed, whatever the devices are."""
    mx.random.seed(config.seed)
    net.initialize(INITIALISERS[config.initialiser](), ctx=list(contexts))
    if any(0 in (each.shape or (0,)) for each in net.collect_params().values()):  # GluonCV's, that wait for an image
        for context in contexts:
            net(mx.nd.zeros((1, 3, 32, 32), ctx=context))


def _data(config: Config, on: Circumstances, metadata: Mapping[str, object] | None = None) -> tuple[Dataset, Dataset]:
    """The data of a configuration; that of a run is labelled as its `metadata` say, and found where they say."""
    name, task = config.dataset, None
    if metadata:
        name = metadata["dataset"]
        task = recorded_task(name, metadata)
    elif name.startswith("folder:"):
        name = f"folder:{os.path.abspath(fetching.expanded(name.partition(':')[2]))}"
    train, test = (get_dataset(name, split, on.data_dir, on.skip_bad, task) for split in ("train", "test"))
    for dataset in (train, test):
        if dataset.note and not on.quiet:
            _say(f"data: {dataset.note}")
    return train, test


def _events(on: Circumstances, run: Run | None) -> Events | None:
    return Events(run.directory / "events") if on.tensorboard and run else None


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
