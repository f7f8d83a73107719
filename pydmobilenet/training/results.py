"""The result of a run as its directory records it, and the spread of errors over seeds. Reads no data."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import catalog
from ..checkpoints import runs
from ..data import Task, recorded_task
from ..errors import BadFileError, MissingFileError
from ..metrics import wilson
from . import config as configuration
from .checkpoint import read_history
from .history import History

SPLITS = {"test": "test", "val": "validation"}


class Figure(NamedTuple):
    """Which error on the images of a `split`: after the ``last`` or ``best`` epoch, or of the best average ``ema``."""

    epoch: str
    split: str

    def __str__(self) -> str:
        parameters = "moving average" if self.epoch == "ema" else f"{self.epoch} epoch"
        return f"{parameters}, {SPLITS[self.split]} error"


FIGURES = [Figure(epoch, split) for epoch in ("last", "best", "ema") for split in ("val", "test")]


@dataclass(frozen=True)
class RunResult:
    """What a run has reached, after `epochs` of those `planned`: errors in %, and the seconds of training.

    `images` has for each split their number and their SHA-256. `recipe` is equal for runs that differ only by `seed`.
    """

    directory: Path
    model: str
    task: Task
    parameters: int
    engine: str
    seed: int | None
    epochs: int
    planned: int
    finished: bool
    errors: Mapping[Figure, float]
    images: Mapping[str, tuple[int, str]]
    seconds: float
    command: str
    recipe: str = field(repr=False)
    history: History = field(repr=False)

    @property
    def split(self) -> str:
        """The images of `error`: ``test``, else ``val``; empty before the first epoch has ended."""
        return next((split for split in SPLITS if Figure("best", split) in self.errors), "")

    @property
    def error(self) -> float:
        """The error of the best epoch in %; nan before the first one has ended."""
        return self.errors.get(Figure("best", self.split), math.nan)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the error in %; None for an unknown number of images."""
        number, _ = self.images.get(self.split, (0, ""))
        return wilson(round(self.error * number / 100), number) if number else None

    @property
    def optimistic(self) -> bool:
        """Whether the images of `error` have chosen the best epoch."""
        return Figure("last", self.split) in self.errors


def read(directory: Path) -> RunResult:
    """Read the result of a run, also while it is trained. Raises MissingFileError and BadFileError."""
    metadata = runs.read_metadata(directory)
    try:
        history = read_history(directory)
    except MissingFileError:  # someone may have sent the best parameters alone
        history = History()
    try:
        return _result(directory, metadata, history)
    except runs.WRONG as error:
        raise BadFileError(f"{directory / runs.METADATA} does not describe a run: {runs.why(error)}") from None


def _result(directory: Path, metadata: Mapping[str, Any], history: History) -> RunResult:
    config, data, checkpoints = (dict(metadata.get(key, {})) for key in ("config", "data", "checkpoints"))
    task, model = recorded_task(metadata["dataset"], metadata), catalog.parse_name(metadata["model"])
    entries = {figure.epoch: checkpoints.get(f"{figure.epoch}.params", {}) for figure in FIGURES}
    last, best = (int(entries[epoch].get("epoch", 0)) for epoch in ("last", "best"))
    planned, patience = int(config.get("epochs", last)), int(config.get("patience", 0))
    errors = {
        figure: float(entries[figure.epoch][key])
        for figure in FIGURES
        if (key := f"{figure.split}_error") in entries[figure.epoch]
    }
    ended = last >= planned or 0 < patience <= last - best or entries["last"].get("ended_by_callback") is True
    measured = Figure("best", "test") in errors or not {"val", "test"} <= data.keys()
    return RunResult(
        directory=directory,
        model=model.name,
        task=task,
        parameters=catalog.describe(model, task.name, task.outputs).complexity(task.image).parameters,
        engine=metadata.get("engine", ""),
        seed=int(config["seed"]) if "seed" in config else None,
        epochs=last,
        planned=planned,
        finished=last > 0 and measured and ended,
        errors=errors,
        images={split: (values["images"], str(values["sha256"])) for split, values in data.items()},
        seconds=sum(row.seconds for row in history.rows),
        command=runs.first_command(metadata),
        recipe=_recipe(metadata, config, data),
        history=history,
    )


def _recipe(metadata: Mapping[str, Any], config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return a key for all that a run depends on, but for its seed."""
    init = dict(metadata.get("initial_weights", {}))
    is_random = init.get("source") == f"{config.get('initialiser')}, seed {config.get('seed')}"
    digests = [values["sha256"] for values in data.values()]
    values = {**configuration.DEFAULTS, **config}  # an earlier version had fewer keys
    others = {key: value for key, value in values.items() if key not in ("seed", "dataset")}  # a folder may move
    weights = None if is_random else init.get("sha256")
    teacher = dict(metadata.get("teacher", {})).get("sha256")
    return json.dumps([others, metadata.get("engine"), digests, weights, teacher], sort_keys=True)


class Spread(NamedTuple):
    """The mean of `n` errors in % and their standard deviation (by n - 1)."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}"


class Seeds(NamedTuple):
    """Finished runs that differ only by their seed, and the spread of each error that all have."""

    results: list[RunResult]
    spreads: dict[Figure, Spread]


def over_seeds(results: Iterable[RunResult]) -> list[Seeds]:
    """Group finished runs that differ only by their seed, at least two; of equal seeds, the first run counts."""
    groups: dict[str, dict[int, RunResult]] = {}
    for result in results:
        if result.finished and result.seed is not None:
            groups.setdefault(result.recipe, {}).setdefault(result.seed, result)
    several = ([group[seed] for seed in sorted(group)] for group in groups.values() if len(group) > 1)
    return [Seeds(members, _spreads(members)) for members in several]


def _spreads(results: Sequence[RunResult]) -> dict[Figure, Spread]:
    spreads = {}
    for figure in FIGURES:
        errors = [result.errors[figure] for result in results if figure in result.errors]
        if len(errors) == len(results):
            spreads[figure] = Spread(statistics.mean(errors), statistics.stdev(errors), len(errors))
    return spreads
