"""A session of training: `plan` decides what is trained and where, `opened` gives a loop that is ready to run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Union

import numpy as np

from .. import checkpoints, fetching, processes, provenance
from ..checkpoints import Checkpoint, formats, runs
from ..checkpoints.runs import METADATA, read_metadata
from ..data import Fractions, Splits, Task, dataset_name, folder, get_splits, get_task, is_own, recorded_task
from ..data.arrays import PREFIX
from ..data.datasets import located
from ..data.splits import hold_out
from ..errors import BadFileError, InvalidValueError, MissingFileError, UnusableError, UserError
from ..text import printable
from . import checkpoint, distillation
from . import config as configuration
from .checkpoint import CONFIG, STATE, Run, State
from .config import AUTO, Config
from .history import Events, History
from .loop import Loop, OnEpoch, Progress, batch_of_update, updates_per_epoch
from .recipe import configure, with_epochs
from .seen import check_unseen, known
from .trainer import Trainer, with_features

PathLike = Union[str, "os.PathLike[str]"]
MakeTrainer = Callable[..., Trainer]
"""Makes an engine's trainer with fresh parameters from a `Config`, a `Task` and, for distillation, a `teacher`."""
MAX_NAME_BYTES = 140  # encrypted file systems take 143, others 255


@dataclass(frozen=True)
class Session:
    """A configuration to train by an engine in a directory. A `resumed` run is there already.

    `weights` start a new run, and it learns from a `teacher`; published ones are looked for in `weights_dir`. `arrays`
    are given images, as by `given_splits`, instead of those on the disk. `progress` shows bars (None: on a terminal);
    False prints nothing. `verbose` prints the configuration. `on_epoch` is called as in `Loop`. The run records
    `command`. Only `config`, the weights, the teacher and `arrays` change the result, apart from rounding.
    """

    config: Config
    directory: Path
    resumed: bool = False
    engine: str = "auto"
    weights: PathLike | None = None
    weights_dir: Path | None = None
    teacher: PathLike | None = None
    data_dir: Path | None = None
    arrays: Splits | None = None
    skip_bad: bool = False
    cache: bool = True
    tensorboard: bool = False
    progress: bool | None = None
    verbose: bool = False
    on_epoch: OnEpoch | None = None
    command: str = field(default_factory=provenance.command)

    def say(self, text: str) -> None:
        """Print a line on standard error, in the first process only."""
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
    """Plan a session with the values `given` over a `recipe`, in a new `output` or a run to `resume`.

    ``resume="auto"``, and a process restarted by torchrun, resume the run in the output if there is one. Raises a
    UserError. Reads no data, and imports no engine.
    """
    teacher = options.get("teacher")
    if weights_dir and weights != checkpoints.PUBLISHED and not (teacher and distillation.is_published(teacher)):
        raise UserError("--weights-dir is only used with --weights published")
    if arrays := options.get("arrays"):
        given = _with_arrays(given, arrays.train.task, options)
    if resume is not None and resume != AUTO:
        if output or recipe or weights:
            raise UserError("--resume reads the run's own settings: leave out --output, --config, --weights")
        return _resumed(fetching.expanded(resume), given, engine, {**options, "weights_dir": weights_dir})
    if options.get("data_dir") and dataset_name(given.get("dataset") or "cifar10").startswith("folder:"):
        raise UserError("pass either a folder or --data-dir, not both")
    present = tuple(split for split, images in arrays._asdict().items() if images) if arrays else ()
    kinds = (folder.ALL,) if present == ("train",) else present
    mirrored = arrays.train.task.mirrored if arrays else None
    config = configure(given, recipe, weights, kinds, teacher is not None, mirrored)
    directory = fetching.expanded(output or default_directory(config))
    if (resume == AUTO or processes.restarted()) and os.path.isfile(directory / CONFIG):
        values = {key: value for key, value in vars(config).items() if value != AUTO}
        if "patience" not in given:  # it changes no epoch: the run's own, as recipes had other ones
            del values["patience"]
        session = _resumed(directory, values, engine, {**options, "weights_dir": weights_dir})
        _check_initial_weights(session, weights, weights_dir)
        if teacher is None and session.teacher is not None:
            raise InvalidValueError(f"the run in {directory} learns from {session.teacher}: add --teacher")
        return session
    checkpoint.check_new(directory)
    return Session(config, directory, False, engine, weights, weights_dir, **options)


def _with_arrays(given: Mapping[str, Any], task: Task, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the name and the size of arrays. Raises a UserError for other ones."""
    if options.get("data_dir"):
        raise UserError("pass either arrays or data_dir, not both")
    size = given.get("image_size", task.image_size)
    if size != task.image_size:
        raise InvalidValueError(f"image_size is {size} (allowed: {task.image_size}, as the given images have)")
    return {**given, "dataset": task.name, "image_size": size}


def _resumed(directory: Path, given: Mapping[str, Any], engine: str, options: Mapping[str, Any]) -> Session:
    """Plan to resume a run, with its own engine by default. Raises InvalidValueError if a given value differs."""
    config = read_config(directory)
    wanted = vars(configuration.make({**vars(config), **given}))
    checkpoint.check_config({key: wanted[key] for key in given}, vars(config))
    if config.dataset.startswith(PREFIX) and not options.get("arrays"):
        raise UserError(f"{directory} was trained on arrays: in Python, pass dataset= (and val=, test=) again")
    metadata = _metadata(directory)
    teacher = distillation.recorded(metadata, options.get("teacher"))
    skip_bad = bool(options.get("skip_bad") or metadata.get(runs.SKIP_BAD))
    options = {**options, "teacher": teacher, "skip_bad": skip_bad}
    return Session(config, directory, True, metadata["engine"] if engine == AUTO else engine, **options)


def _check_initial_weights(session: Session, weights: PathLike | None, weights_dir: Path | None) -> None:
    """Raise InvalidValueError if a run to resume began from other weights."""
    init = initial_weights(session.config, weights, weights_dir, session.arrays)
    begun = _metadata(session.directory).get("initial_weights", {})
    same = init.sha256 == begun.get("sha256") if init else begun.get("source") == _random_weights(session.config)
    if not same:
        source = f"the weights {init.locate()}" if init else "random weights"
        raise InvalidValueError(
            f"the run in {session.directory} began from {begun.get('source')}, not from {source}; "
            "nearest: another --output"
        )


def opened(session: Session, make_trainer: MakeTrainer) -> AbstractContextManager[Loop]:
    """Open the loop of a new run, or of a run exactly where it was interrupted.

    Raises a UserError for whatever is missing, does not fit or has changed. An error before the first batch of a new
    run leaves no directory. All workers have to see the same directory.
    """
    if session.tensorboard:
        Events.check()
    return (_resume if session.resumed else _start)(session, make_trainer)


@contextmanager
def _start(session: Session, make_trainer: MakeTrainer) -> Iterator[Loop]:
    config, directory = session.config, session.directory
    init = initial_weights(config, session.weights, session.weights_dir, session.arrays)
    name = config.dataset
    if name.startswith("folder:"):
        name = f"folder:{os.path.abspath(folder.place(name))}"
    if init is None and is_own(name):
        session.say("weights: random (with --pretrained, fewer images are enough)")
    name = located(name, session.data_dir)
    task = session.arrays.train.task if session.arrays else get_task(name, config.image_size)
    if init and is_own(name):  # its images are normalised as the loaded weights want them
        task = replace(task, mean=init.task.mean, std=init.task.std)
    counts = _counts(name, task)
    if numbers := counts.get("train") or counts.get(folder.ALL):  # too few for a batch: before any is decoded
        updates_per_epoch(config, sum(numbers))
    teacher = _find_teacher(session, task)
    trainer = make_trainer(config, task, **({"teacher": teacher} if teacher else {}))
    if init is not None:
        _load(init, trainer, task, session)
    splits = _read(name, task, session)
    for source in (init, teacher):
        if source is not None:
            check_unseen(splits, source)
    config = trainer.config = with_epochs(config, len(splits.train), pretrained=init is not None)
    updates_per_epoch(config, len(splits.train))  # raises before a directory is made
    progress = Progress(history=History(config.epochs))
    run: AbstractContextManager[Run | None] = nullcontext()
    if trainer.rank == 0:
        state = State(*trainer.state(), progress.to_dict())
        metadata = _describe(config, splits, state, init, teacher, trainer, session.command)
        metadata[runs.SKIP_BAD] = session.skip_bad
        run = Run.create(directory, configuration.text(config), state, metadata)
    with run as output:
        yield _loop(session, trainer, splits, progress, output)


@contextmanager
def _resume(session: Session, make_trainer: MakeTrainer) -> Iterator[Loop]:
    config, directory = session.config, session.directory
    metadata = _metadata(directory)
    values = json.loads(json.dumps(vars(config)))  # with lists, as in the metadata
    checkpoint.check_config(values, {**configuration.DEFAULTS, **metadata["config"]}, f"{directory / CONFIG}: ")
    # The run knows where its data is, and how its classes are numbered.
    name, task = located(metadata["dataset"], session.data_dir), recorded_task(metadata["dataset"], metadata)
    if session.arrays:
        check_begun(session.arrays.train.task, task)
    elif sorted(get_task(name).classes) == sorted(task.classes):  # else `get_splits` names the classes that differ
        checkpoint.check_counts(_counts(name, task), task.classes, metadata, session.skip_bad)
    teacher = _find_teacher(session, task)
    if teacher:
        distillation.check_same(teacher, metadata)
    trainer = make_trainer(config, task, **({"teacher": teacher} if teacher else {}))
    if trainer.name != (engine := metadata["engine"]):
        raise BadFileError(
            f"{directory / STATE} is of engine {engine!r}, not {trainer.name!r}: pass --engine {engine}; "
            f"{checkpoint.NEW_RUN}"
        )
    run: AbstractContextManager[Run | None] = Run(directory) if trainer.rank == 0 else nullcontext()
    with run as output:  # from here on, no other process writes to it
        state = State.read(directory / STATE)
        trainer.load_state(state.parameters, state.momentum)
        splits = _read(name, task, session)
        checkpoint.check_data(splits, metadata)
        progress = Progress.from_dict(state.progress, config, len(splits.train))
        if output is not None:
            begun = provenance.session(trainer.device, trainer.name, session.command)
            sessions = [*output.metadata["sessions"], begun]
            output.metadata = {**output.metadata, "sessions": sessions, runs.SKIP_BAD: session.skip_bad}
        session.say(f"resuming {directory} after {progress.epochs} of {config.epochs} epochs")
        yield _loop(session, trainer, splits, progress, output)


def _loop(session: Session, trainer: Trainer, splits: Splits, progress: Progress, run: Run | None) -> Loop:
    directory = session.directory
    done = np.array([progress.epochs, progress.batches], float)
    if (trainer.all_reduce(done) != trainer.world_size * done).any():  # as by a file system with an older state
        raise UnusableError(f"the processes of this training see {directory} in different states")
    events = Events(run.directory / "events") if session.tensorboard and run else None
    config = trainer.config
    if session.verbose:
        for line in configuration.text(config).splitlines():
            session.say(line)
    if config.from_features:
        session.say("The body is frozen: it runs once, on images without augmentation (--augment true changes that).")
        splits = with_features(trainer, splits, session.progress if run else False)
    elif config.frozen:
        session.say("The body is frozen.")
    images, used = len(splits.train), updates_per_epoch(config, len(splits.train)) * batch_of_update(config)
    if used < 0.9 * images:
        session.say(
            f"Each epoch trains {used:,} of the {images:,} images, drawn anew: the others are too few for a batch of "
            f"{config.batch_size} (--batch-size)."
        )
    if 0 < config.patience < config.epochs:
        session.say(
            f"At most {config.epochs} epochs: training stops if {config.patience} in a row bring no lower validation "
            "error (--patience 0: never)."
        )
    return Loop(trainer, splits, progress, directory, run, events, session.progress, session.on_epoch)


def initial_weights(
    config: Config, weights: PathLike | None, weights_dir: Path | None = None, arrays: Splits | None = None
) -> Checkpoint | None:
    """Find the weights to start from, for `arrays` or the data set of the configuration.

    Raises as `checkpoints.find`, also for weights of another model.
    """
    if weights is None:
        return None
    dataset = arrays.train.task if arrays else config.dataset
    where = weights_dir if weights == checkpoints.PUBLISHED else None  # else it is the teacher's
    return known(checkpoints.find(config.model, dataset, weights, where, config.image_size, to_train=True))


def _find_teacher(session: Session, task: Task) -> Checkpoint | None:
    """Find the teacher of a run, if it has one. Raises as `distillation.find`."""
    if session.teacher is None:
        return None
    return known(distillation.find(session.teacher, session.config, task, session.weights_dir))


def _random_weights(config: Config) -> str:
    """Name the source of random weights, for ``run.json``."""
    return f"{config.initialiser}, seed {config.seed}"


def _load(init: Checkpoint, trainer: Trainer, task: Task, session: Session) -> None:
    """Load the weights of a new run, and say what they assume."""
    config = session.config
    if trainer.load_weights(init.locate(), "optional" if init.task.classes == task.classes else "fresh"):
        if config.qat:
            raise InvalidValueError(
                f"{init.locate()} has other classes: train without --qat first, then from that run with it"
            )
        session.say(f"The last layer is new, for your {task.outputs} classes.")
    size = init.task.image_size
    if size != config.image_size and config.body_rate < 1:
        session.say(f"weights were trained at {size}x{size}; try --body-rate 1")


def _counts(name: str, task: Task) -> dict[str, list[int]]:
    """Count the files of each split of a folder. Empty for other data sets."""
    return folder.count(name, task.classes) if name.startswith("folder:") else {}


def _read(name: str, task: Task, session: Session) -> Splits:
    fractions = Fractions(session.config.val_fraction, session.config.test_fraction)
    if session.arrays:
        train = session.arrays.train.task
        if (train.mean, train.std) != (task.mean, task.std):
            mean, std = ("/".join(f"{value:g}" for value in values) for values in (task.mean, task.std))
            session.say(f"data: normalised as the loaded weights want it: mean {mean}, std {std}")
        same: list[Any] = [dataset and replace(dataset, task=task) for dataset in session.arrays]
        splits = hold_out(Splits(*same), fractions)
    else:
        shown = session.progress if processes.rank() == 0 else False
        splits = get_splits(name, fractions, session.data_dir, session.skip_bad, task, session.cache, shown)
    for dataset in splits:
        if dataset and dataset.note:
            session.say(f"data: {dataset.note}")
    return splits


def _describe(
    config: Config,
    splits: Splits,
    state: State,
    init: Checkpoint | None,
    teacher: Checkpoint | None,
    trainer: Trainer,
    command: str,
) -> dict[str, object]:
    """Describe a run for ``run.json``: it can be used and resumed even if its data has moved."""
    task = splits.train.task
    source = str(init.locate()) if init else _random_weights(config)
    sha256 = init.sha256 if init else hashlib.sha256(formats.dump_params(state.parameters)).hexdigest()
    val = splits.val.hashes if splits.val else ()
    seen = {*splits.train.hashes, *val}
    for used in filter(None, (init, teacher)):
        seen.update(used.seen.split())
    return {
        "model": config.model,
        "dataset": task.name,
        "outputs": task.outputs,
        "engine": trainer.name,
        "classes": task.classes,
        "mean": task.mean,
        "std": task.std,
        "image_size": task.image_size,
        "mirrored": task.mirrored,
        "decoding": task.decoding,
        "config": vars(config),
        "data": {name: provenance.of_data(dataset) for name, dataset in splits._asdict().items() if dataset},
        "initial_weights": {"source": source, "sha256": sha256},
        **({"teacher": distillation.describe(teacher)} if teacher else {}),
        "sessions": [provenance.session(trainer.device, trainer.name, command)],
        runs.SEEN: " ".join(sorted(seen)),
    }


def check_begun(given: Task, begun: Task) -> None:
    """Raise InvalidValueError if arrays have other classes or flips than a run began with."""
    for key in ("classes", "mirrored"):
        value, before = getattr(given, key), getattr(begun, key)
        if value != before:
            raise InvalidValueError(
                f"{key} is {str(value)[:200]}, but the run began with {str(before)[:200]}; {checkpoint.NEW_RUN}"
            )


def _metadata(directory: Path) -> dict[str, Any]:
    """Read ``run.json``. Raises BadFileError, also for a run of an earlier version."""
    metadata = read_metadata(directory) if (directory / METADATA).exists() else {}
    checkpoint.check_version(metadata, directory)
    return metadata


def read_config(directory: Path) -> Config:
    """Read the configuration of a run. Raises MissingFileError if there is none."""
    if not (directory / CONFIG).is_file():
        raise MissingFileError(f"{directory} holds no run: it has no {CONFIG}")
    return configuration.make(configuration.read(directory / CONFIG))


def default_directory(config: Config) -> Path:
    """Name the directory of a run after its model and its data set, validly on every system."""
    dataset = config.dataset
    if dataset.startswith("folder:"):
        dataset = f"folder-{folder.title(dataset)}"
    name = "".join("-" if character in '/\\:*?"<>|' else character for character in f"{config.model}-{dataset}")
    name = name.encode(errors="surrogateescape")[:MAX_NAME_BYTES].decode(errors="ignore")
    return Path("runs") / name.rstrip("- .")
