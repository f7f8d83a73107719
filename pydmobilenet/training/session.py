"""One start of training: `plan` says what is trained and where, `opened` gives a loop that is ready to run."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Union

import numpy as np

from .. import checkpoints, fetching, processes, provenance
from ..checkpoints import Checkpoint, formats, runs
from ..checkpoints.runs import METADATA, read_metadata
from ..data import Fractions, Splits, Task, dataset_name, folder, get_splits, get_task, recorded_task
from ..data.datasets import located
from ..errors import InvalidValueError, MissingFileError, UnusableError, UserError
from ..text import printable
from . import checkpoint
from . import config as configuration
from .checkpoint import CONFIG, STATE, Run, State, check_new
from .config import AUTO, Config
from .history import Events, History
from .loop import Loop, Progress, updates_per_epoch
from .trainer import Trainer, learning_rates

PathLike = Union[str, "os.PathLike[str]"]
MakeTrainer = Callable[[Config, Task], Trainer]
"""Makes the trainer of an engine, with fresh parameters, from a configuration and its task."""
LONGEST_NAME = 140  # bytes: where names are encrypted, 143 is the limit, elsewhere 255


@dataclass(frozen=True)
class Session:
    """What is trained: a configuration, by an engine, in a directory, which holds the run already if it is `resumed`.

    A new run starts from `weights`, looked for in `weights_dir`, if any are given. With `verbose`, the configuration is
    printed first. Progress bars are shown if `progress` says so (None: on a terminal); where it is False, nothing is
    printed. The run records `command`. The result depends on all but the configuration by rounding at most.
    """

    config: Config
    directory: Path
    resumed: bool = False
    engine: str = "auto"
    weights: PathLike | None = None
    weights_dir: Path | None = None
    data_dir: Path | None = None
    skip_bad: bool = False
    tensorboard: bool = False
    progress: bool | None = None
    verbose: bool = False
    command: str = field(default_factory=provenance.command)

    def say(self, text: str) -> None:
        """Print a line on standard error, by the first process alone."""
        if self.progress is not False and processes.rank() == 0:
            print(printable(text), file=sys.stderr)


def plan(
    given: Mapping[str, Any],
    recipe: PathLike | None = None,
    output: PathLike | None = None,
    resume: PathLike | None = None,
    engine: str = "auto",
    weights: PathLike | None = None,
    weights_dir: Path | None = None,
    **options: Any,
) -> Session:
    """The session for the values `given` over those of a `recipe`, and either a new `output` or a run to `resume`.

    With ``auto``, and in a process that torchrun has started again, the run in the output goes on if there is one.
    Raises a UserError for what does not fit. Reads no data, and imports no engine.
    """
    if weights_dir and weights != checkpoints.PUBLISHED:
        raise UserError("--weights-dir is where --weights published looks: add that, or leave it out")
    if resume is not None and resume != AUTO:
        if output or recipe or weights:
            raise UserError("--resume takes all of that from the run: leave out --output, --config, --weights")
        directory = fetching.expanded(resume)
        config = read_config(directory)
        check_same(given, config)
        return Session(config, directory, True, _engine_of(directory, engine), **options)
    if options.get("data_dir") and dataset_name(given.get("dataset") or "cifar10").startswith("folder:"):
        raise UserError("a folder and --data-dir name two places of the data: give one of them")
    config = configuration.configure(given, recipe, weights)
    directory = fetching.expanded(output or default_directory(config))
    if (resume == AUTO or processes.restarted()) and os.path.isfile(directory / CONFIG):
        run = read_config(directory)
        check_same({key: value for key, value in vars(config).items() if value != AUTO}, run)
        session = Session(run, directory, True, _engine_of(directory, engine), **options)
        check_initial_weights(initial_weights(run, weights, weights_dir), run, directory)
        return session
    check_new(directory)
    return Session(config, directory, False, engine, weights, weights_dir, **options)


def opened(session: Session, make_trainer: MakeTrainer) -> AbstractContextManager[Loop]:
    """The loop of a session: of a new run, or of one exactly where it was interrupted.

    Raises a UserError for whatever is missing, does not fit or has changed, as far as can be told without them before
    the images are read. An error before the first batch of a new run is done leaves no directory. All workers have to
    see the same directory.
    """
    if session.tensorboard:
        Events.check()
    return (_resume if session.resumed else _start)(session, make_trainer)


@contextmanager
def _start(session: Session, make_trainer: MakeTrainer) -> Iterator[Loop]:
    config, directory = session.config, session.directory
    init = initial_weights(config, session.weights, session.weights_dir)
    name, task = _data_set(config, session.data_dir, init)
    if init is None and config.dataset.startswith("folder:"):
        session.say("weights: random; --pretrained starts from the authors', which take fewer images")
    if most := checkpoint.most_training_images(name, task):
        updates_per_epoch(config, most)  # raises where even all of them are too few
    trainer = make_trainer(config, task)
    if init is not None:
        _load(init, trainer, task, session)
    splits = _read(name, task, session)
    if init is not None:
        check_unseen(splits, init)
    config = trainer.config = configuration.with_epochs(config, len(splits.train), pretrained=init is not None)
    progress = Progress(history=History(config.epochs))
    rates = _rates(config, splits)
    run: AbstractContextManager[Run | None] = nullcontext()
    if trainer.rank == 0:
        state = State(*trainer.state(), progress.to_dict())
        metadata = _describe(config, splits, state, init, trainer, session.command)
        run = Run.create(directory, configuration.text(config), state, metadata)
    with run as output:
        yield _loop(session, trainer, splits, rates, progress, output)


@contextmanager
def _resume(session: Session, make_trainer: MakeTrainer) -> Iterator[Loop]:
    config, directory = session.config, session.directory
    metadata = _metadata(directory)
    checkpoint.check_config(config, metadata, directory)
    # The data is looked for, and its classes are numbered, as the run says.
    name, task = located(metadata["dataset"], session.data_dir), recorded_task(metadata["dataset"], metadata)
    checkpoint.check_counts(name, task, metadata, session.skip_bad)
    trainer = make_trainer(config, task)
    checkpoint.check_engine(trainer, metadata, directory)
    run: AbstractContextManager[Run | None] = Run(directory) if trainer.rank == 0 else nullcontext()
    with run as output:  # from here on, no other process writes to it
        state = State.read(directory / STATE)
        trainer.load_state(state.parameters, state.momentum)
        splits = _read(name, task, session)
        checkpoint.check_data(splits, metadata)
        progress = Progress.from_dict(state.progress, config, len(splits.train))
        rates = _rates(config, splits)
        if output is not None:
            begun = provenance.session(trainer.device, trainer.name, session.command)
            output.metadata = {**output.metadata, "sessions": [*output.metadata["sessions"], begun]}
        yield _loop(session, trainer, splits, rates, progress, output)


def _rates(config: Config, splits: Splits) -> Callable[[int], float]:
    return learning_rates(config, updates_per_epoch(config, len(splits.train)))


def _loop(
    session: Session,
    trainer: Trainer,
    splits: Splits,
    rates: Callable[[int], float],
    progress: Progress,
    run: Run | None,
) -> Loop:
    directory, config = session.directory, trainer.config
    done = np.array([progress.epochs, progress.batches], float)
    if (trainer.all_reduce(done) != trainer.world_size * done).any():  # as by a file system that shows an older state
        raise UnusableError(f"the processes of this training see {directory} in different states")
    events = Events(run.directory / "events") if session.tensorboard and run else None
    loop = Loop(trainer, splits, rates, progress, directory, run, events, session.progress)
    if session.resumed:
        session.say(f"resuming {directory} after {progress.epochs} of {config.epochs} epochs")
    for line in configuration.text(config).splitlines() if session.verbose else ():
        session.say(line)
    return loop


def initial_weights(config: Config, weights: PathLike | None, weights_dir: Path | None = None) -> Checkpoint | None:
    """The weights that a run starts from. Raises as `checkpoints.find`, also where they are of another model."""
    if weights is None:
        return None
    init = checkpoints.find(config.model, config.dataset, weights, weights_dir, config.image_size, to_train=True)
    # Images of other data sets than folders are divided once and for all.
    harmless = init.recorded and init.seen == runs.UNKNOWN and not init.dataset.startswith("folder:")
    return replace(init, seen="") if harmless else init


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


def check_initial_weights(init: Checkpoint | None, run: Config, directory: Path) -> None:
    """Refuse to go on with a run that began from other weights than `init`, or than random ones."""
    begun = _metadata(directory).get("initial_weights", {})
    same = init.sha256 == begun.get("sha256") if init else begun.get("source") == random_weights(run)
    if not same:
        weights = f"the weights {init.locate()}" if init else "random weights"
        raise InvalidValueError(
            f"the run in {directory} began from {begun.get('source')}, not from {weights}; nearest: another --output"
        )


def random_weights(config: Config) -> str:
    """What a run that starts from random weights records as their source."""
    return f"{config.initialiser}, seed {config.seed}"


def _data_set(config: Config, data_dir: Path | None, init: Checkpoint | None) -> tuple[str, Task]:
    """The name and the task of a new run's data; a folder's images are normalised as the loaded weights want them."""
    name = config.dataset
    if name.startswith("folder:"):
        name = f"folder:{os.path.abspath(folder.place(name))}"
    name = located(name, data_dir)
    task = get_task(name, config.image_size)
    if init and name.startswith("folder:"):
        task = replace(task, mean=init.task.mean, std=init.task.std)
    return name, task


def _load(init: Checkpoint, trainer: Trainer, task: Task, session: Session) -> None:
    """Have a new run start from weights, and say what is assumed of them."""
    config = session.config
    if trainer.load_weights(init.locate(), "optional" if init.task.classes == task.classes else "fresh"):
        session.say(f"The last layer is new, for your {task.outputs} classes.")
    if init.task.image_size != config.image_size and config.body_rate < 1:
        size, body_rate = init.task.image_size, config.body_rate
        session.say(
            f"the weights are of {size}x{size} images; body_rate {body_rate:g} leaves them little room: 1 may be better"
        )


def _read(name: str, task: Task, session: Session) -> Splits:
    """All images."""
    fractions = Fractions(session.config.val_fraction, session.config.test_fraction)
    splits = get_splits(name, fractions, session.data_dir, session.skip_bad, task)
    for dataset in splits:
        if dataset and dataset.note:
            session.say(f"data: {dataset.note}")
    return splits


def _describe(
    config: Config, splits: Splits, state: State, init: Checkpoint | None, trainer: Trainer, command: str
) -> dict[str, object]:
    """The content of ``run.json``: what one needs to use a run or to resume it, even if its data has moved."""
    task = splits.train.task
    source = str(init.locate()) if init else random_weights(config)
    sha256 = init.sha256 if init else hashlib.sha256(formats.dump_params(state.parameters)).hexdigest()
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


def _engine_of(directory: Path, asked: str) -> str:
    """The engine asked for, or with ``auto`` the one that a run was begun with, which alone can go on with it."""
    begun = _metadata(directory)["engine"]
    return begun if asked == AUTO else asked


def _metadata(directory: Path) -> dict[str, Any]:
    """What a run says of itself, if it is of this version. Raises BadFileError."""
    metadata = read_metadata(directory) if (directory / METADATA).exists() else {}
    checkpoint.check_version(metadata, directory)
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


def default_directory(config: Config) -> Path:
    """Name the directory of a run after its model and its data set, of a folder by its own name, in so many bytes as
    any file system takes.
    """
    dataset = config.dataset
    if dataset.startswith("folder:"):
        dataset = f"folder-{folder.title(dataset)}"
    name = f"{config.model}-{dataset}".replace("/", "-").replace(":", "-")
    return Path("runs") / name.encode(errors="surrogateescape")[:LONGEST_NAME].decode(errors="ignore").rstrip("- .")
