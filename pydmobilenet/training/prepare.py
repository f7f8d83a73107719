"""Start a run from a configuration, or resume one from its directory: both yield a loop that is ready to run."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoints, processes, provenance
from ..checkpoints import Checkpoint, params, runs
from ..checkpoints.runs import METADATA, read_metadata
from ..data import Fractions, Splits, Task, dataset_name, folder, get_splits, get_task, recorded_task
from ..data.datasets import located
from ..errors import InvalidValueError, MissingFileError, UnusableError, UserError
from ..text import printable
from . import checks, recipes, schedule
from . import config as configuration
from .checkpoint import CONFIG, STATE, Run, State
from .config import Config
from .history import Events, History
from .loop import Loop, Progress, updates_per_epoch
from .trainer import Trainer

LONGEST_NAME = 140  # bytes: where names are encrypted, 143 is the limit, elsewhere 255


@dataclass(frozen=True)
class RunOptions:
    """What a session of training needs beside the configuration. The result depends on it by rounding at most.

    `make_trainer` makes the trainer of an engine, with fresh parameters, from a configuration and its task. `progress`
    says whether a progress bar is shown; None: on a terminal. `command` is recorded as what began the session.
    """

    make_trainer: Callable[[Config, Task], Trainer]
    data_dir: Path | None = None
    tensorboard: bool = False
    quiet: bool = False
    skip_bad: bool = False
    progress: bool | None = None
    command: str = field(default_factory=provenance.command)


def check_places(dataset: str | os.PathLike[str] | None, data_dir: Path | None) -> None:
    """Raises UserError where a new run's data set and its directory are two places."""
    if dataset and dataset_name(dataset).startswith("folder:") and data_dir:
        raise UserError("a folder and --data-dir name two places of the data: give one of them")


@contextmanager
def start(config: Config, directory: Path, options: RunOptions, init: Checkpoint | None = None) -> Iterator[Loop]:
    """The loop of a new run in a new directory, from random parameters or from those of `init`.

    Raises a UserError for whatever is missing or does not fit, before anything is written, and as far as can be told
    without them before the images are read. An error before the first batch is done removes the directory.
    """
    if options.tensorboard:
        Events.check()
    name, task = _data_set(config, options, init=init)
    if most := checks.most_training_images(name, task):
        updates_per_epoch(config, most)  # raises where even all of them are too few
    trainer = options.make_trainer(config, task)
    if init is not None:
        file = init.locate()
        if trainer.load_weights(file, "optional" if init.task.classes == task.classes else "fresh"):
            _say(f"{file} has other classes: the dense layer for {task.title} starts anew")
    if init and init.task.image_size != config.image_size and config.body_rate < 1:
        size, body_rate = init.task.image_size, config.body_rate
        _say(
            f"the weights are of {size}x{size} images; body_rate {body_rate:g} leaves them little room: 1 may be better"
        )
    splits = _read(name, task, config, options)
    if init is not None:
        check_unseen(splits, init)
    train = splits.train
    config = trainer.config = recipes.with_epochs(config, len(train), pretrained=init is not None)
    progress = Progress(history=History(config.epochs))
    rates = schedule.make(config, updates_per_epoch(config, len(train)))
    run: AbstractContextManager[Run | None] = nullcontext()
    if trainer.rank == 0:
        state = State(*trainer.state(), progress.to_dict())
        metadata = describe(config, splits, state, init, trainer, options.command)
        run = Run.create(directory, configuration.text(config), state, metadata)
    with run as output:
        yield _loop(trainer, splits, rates, progress, output, directory, options)


def check_unseen(splits: Splits, init: Checkpoint) -> None:
    """Raises InvalidValueError where the weights to start from have seen test images; warns where none can tell."""
    if splits.test is None or not splits.test.hashes:
        return
    seen = set(init.seen.split())
    known = sum(each in seen for each in splits.test.hashes)
    if known:
        raise InvalidValueError(
            f"{init.run} has been trained on {known:,} of the {len(splits.test):,} test images, or chosen by "
            "them: test on others, or start from other weights"
        )
    if runs.UNKNOWN in seen:
        warnings.warn(f"{init.locate()} does not record its images: some of the test may be among them", stacklevel=3)


def describe(
    config: Config, splits: Splits, state: State, init: Checkpoint | None, trainer: Trainer, command: str
) -> dict[str, object]:
    """The content of ``run.json``: what one needs to use a run or to resume it, even if its data has moved."""
    task = splits.train.task
    source = str(init.locate()) if init else random_weights(config)
    sha256 = init.sha256 if init else hashlib.sha256(params.dump(state.parameters)).hexdigest()
    val = splits.val.hashes if splits.val else ()
    seen = {*splits.train.hashes, *val, *(init.seen.split() if init else ())}
    return {
        "model": config.model,
        "dataset": task.name,
        "outputs": task.outputs,
        "engine": trainer.name,
        "classes": task.classes,
        "mean": task.mean,
        "std": task.std,
        "image_size": task.image_size,
        "config": vars(config),
        "data": {name: provenance.of_data(dataset) for name, dataset in splits._asdict().items() if dataset},
        "initial_weights": {"source": source, "sha256": sha256},
        "sessions": [provenance.session(trainer.device, trainer.name, command)],
        runs.SEEN: " ".join(sorted(seen)),
    }


def random_weights(config: Config) -> str:
    """What a run that starts from random weights records as their source."""
    return f"{config.initialiser}, seed {config.seed}"


@contextmanager
def resume(directory: Path, options: RunOptions) -> Iterator[Loop]:
    """The loop of a run, exactly where it was interrupted. All workers have to see the same directory.

    Raises BadFileError where its data or its configuration has changed, and where its state is of another update than
    the trainer's.
    """
    if options.tensorboard:
        Events.check()
    config = read_config(directory)
    metadata = _metadata(directory)
    checks.check_config(config, metadata, directory)
    name, task = _data_set(config, options, metadata)
    checks.check_counts(name, task, metadata, options.skip_bad)
    trainer = options.make_trainer(config, task)
    checks.check_engine(trainer, metadata, directory)
    run: AbstractContextManager[Run | None] = Run(directory) if trainer.rank == 0 else nullcontext()
    with run as output:  # from here on, no other process writes to it
        state = State.read(directory / STATE)
        trainer.load_state(state.parameters, state.momentum)
        splits = _read(name, task, config, options)
        checks.check_data(splits, metadata)
        progress = Progress.from_dict(state.progress, config, len(splits.train))
        rates = schedule.make(config, updates_per_epoch(config, len(splits.train)))
        if output is not None:
            session = provenance.session(trainer.device, trainer.name, options.command)
            output.metadata = {**output.metadata, "sessions": [*output.metadata["sessions"], session]}
        yield _loop(trainer, splits, rates, progress, output, directory, options)


def _loop(
    trainer: Trainer,
    splits: Splits,
    rates: Callable[[int], float],
    progress: Progress,
    run: Run | None,
    directory: Path,
    options: RunOptions,
) -> Loop:
    done = np.array([progress.epochs, progress.batches], float)
    if (trainer.all_reduce(done) != trainer.world_size * done).any():  # as by a file system that shows an older state
        raise UnusableError(f"the processes of this training see {directory} in different states")
    events = Events(run.directory / "events") if options.tensorboard and run else None
    return Loop(trainer, splits, rates, progress, directory, run, events, options.quiet, options.progress)


def engine_of(directory: Path, asked: str = "auto") -> str:
    """The engine to go on with a run by: the one asked for, or with ``auto`` the one that it was begun with, which
    alone can. Raises as `resume` does.
    """
    return _metadata(directory)["engine"] if asked == "auto" else asked


def _metadata(directory: Path) -> dict[str, Any]:
    """What a run says of itself, if it is of this version. Raises BadFileError."""
    metadata = read_metadata(directory) if (directory / METADATA).exists() else {}
    checks.check_version(metadata, directory)
    return metadata


def read_config(directory: Path) -> Config:
    """The configuration of a run. Raises MissingFileError where the directory holds no run."""
    if not (directory / CONFIG).is_file():
        raise MissingFileError(f"{directory} holds no run: it has no {CONFIG}")
    return configuration.make(configuration.read(directory / CONFIG))


def check_same(given: Mapping[str, object], run: Config) -> None:
    """Refuse to go on with a run under another configuration than its own."""
    wanted = configuration.make({**vars(run), **given})
    for key in given:
        if getattr(wanted, key) != getattr(run, key):
            raise InvalidValueError(
                f"{key} is {getattr(wanted, key)!r}, but the run to resume has {getattr(run, key)!r}; to train on with "
                "another recipe, start a run with --weights on its last.params"
            )


def check_initial_weights(init: Checkpoint | None, run: Config, directory: Path) -> None:
    """Refuse to go on with a run that began from other weights than `init`, or than random ones."""
    begun = _metadata(directory).get("initial_weights", {})
    same = init.sha256 == begun.get("sha256") if init else begun.get("source") == random_weights(run)
    if not same:
        weights = f"the weights {init.locate()}" if init else "random weights"
        raise InvalidValueError(
            f"the run in {directory} began from {begun.get('source')}, not from {weights}; nearest: another --output"
        )


def default_directory(config: Config) -> Path:
    """Name the directory of a run after its model and its data set, of a folder by its own name, in so many bytes as
    any file system takes.
    """
    dataset = config.dataset
    if dataset.startswith("folder:"):
        dataset = f"folder-{folder.title(dataset)}"
    name = f"{config.model}-{dataset}".replace("/", "-").replace(":", "-")
    return Path("runs") / name.encode(errors="surrogateescape")[:LONGEST_NAME].decode(errors="ignore").rstrip("- .")


def initial_weights(config: Config, weights: str | os.PathLike[str], weights_dir: Path | None = None) -> Checkpoint:
    """Find the weights to start from. Raises as `checkpoints.find`, also where they are of another model."""
    init = checkpoints.find(config.model, config.dataset, weights, weights_dir, config.image_size, to_train=True)
    # Images of other data sets than folders are divided once and for all.
    harmless = init.recorded and init.seen == runs.UNKNOWN and not init.dataset.startswith("folder:")
    return replace(init, seen="") if harmless else init


def _data_set(
    config: Config,
    options: RunOptions,
    metadata: Mapping[str, Any] | None = None,
    init: Checkpoint | None = None,
) -> tuple[str, Task]:
    """The name and the task of the data. That of a run is found, and its classes numbered, as its `metadata` say; a
    folder's images are normalised as the weights that are loaded want them.
    """
    if metadata:
        name = metadata["dataset"]
        return located(name, options.data_dir), recorded_task(name, metadata)
    name = config.dataset
    if name.startswith("folder:"):
        name = f"folder:{os.path.abspath(folder.place(name))}"
    name = located(name, options.data_dir)
    task = get_task(name, config.image_size)
    if init and name.startswith("folder:"):
        task = replace(task, mean=init.task.mean, std=init.task.std)
    return name, task


def _read(name: str, task: Task, config: Config, options: RunOptions) -> Splits:
    """All images."""
    fractions = Fractions(config.val_fraction, config.test_fraction)
    splits = get_splits(name, fractions, options.data_dir, options.skip_bad, task)
    for dataset in splits:
        if dataset and dataset.note and not options.quiet:
            _say(f"data: {dataset.note}")
    return splits


def _say(text: str) -> None:
    if processes.rank() == 0:
        print(printable(text), file=sys.stderr)
