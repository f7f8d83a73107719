"""A session of training, from what a user gives: a new run, or one that goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from .. import fetching, processes
from ..checkpoints import Checkpoint
from ..errors import UserError
from . import prepare, recipes
from .checkpoint import CONFIG, check_new
from .config import Config
from .loop import Loop

AUTO = "auto"


class Session(NamedTuple):
    """What is trained: a configuration, by an engine, in a directory, which holds the run already if it is `resumed`.

    A new run starts from `weights`, looked for in `weights_dir`, if any are given.
    """

    config: Config
    engine: str
    directory: Path
    resumed: bool
    weights: str | os.PathLike[str] | None = None
    weights_dir: Path | None = None


def plan(
    given: Mapping[str, Any],
    recipe: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    weights_dir: Path | None = None,
    data_dir: Path | None = None,
    engine: str = "auto",
) -> Session:
    """The session for the values `given` over those of a `recipe`, and either a new `output` or a run to `resume`.

    With ``auto``, and in a process that torchrun has started again, the run in the output goes on if there is one.
    Raises a UserError for what does not fit. Reads no data, and imports no engine.
    """
    if resume is not None and resume != AUTO:
        if output or recipe or weights:
            raise UserError("--resume takes all of that from the run: leave out --output, --config, --weights")
        directory = fetching.expanded(resume)
        config = prepare.read_config(directory)
        prepare.check_same(given, config)
        return Session(config, prepare.engine_of(directory, engine), directory, resumed=True)
    prepare.check_places(given.get("dataset"), data_dir)
    config = recipes.configure(given, recipe, weights)
    directory = fetching.expanded(output or prepare.default_directory(config))
    if (resume == AUTO or processes.restarted()) and os.path.isfile(directory / CONFIG):
        run = prepare.read_config(directory)
        prepare.check_same({key: value for key, value in vars(config).items() if value != AUTO}, run)
        prepare.check_initial_weights(_initial(run, weights, weights_dir), run, directory)
        return Session(run, prepare.engine_of(directory, engine), directory, resumed=True)
    check_new(directory)
    return Session(config, engine, directory, False, weights, weights_dir)


def _initial(config: Config, weights: str | os.PathLike[str] | None, weights_dir: Path | None) -> Checkpoint | None:
    return None if weights is None else prepare.initial_weights(config, weights, weights_dir)


def opened(session: Session, options: prepare.RunOptions) -> AbstractContextManager[Loop]:
    """The loop of a session. Raises as `prepare.start` and `prepare.resume` do."""
    if session.resumed:
        return prepare.resume(session.directory, options)
    init = _initial(session.config, session.weights, session.weights_dir)
    return prepare.start(session.config, session.directory, options, init)
