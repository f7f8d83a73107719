"""What has to be as it was for a run to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import provenance
from ..checkpoints import runs
from ..data import Splits
from ..errors import BadFileError
from . import config as configuration
from .checkpoint import CONFIG, STATE
from .config import Config
from .trainer import Trainer


def check_version(metadata: Mapping[str, Any], directory: Path) -> None:
    """Raises BadFileError for a run of version 0.2 or earlier, whose momentum is that of MXNet's own update, and for
    one of version 0.4 whose images were put aside by another rule.
    """
    if not {"engine", "config", "data", "sessions"} <= metadata.keys():
        raise BadFileError(
            f"{directory} was begun by version 0.2 or earlier, whose update this version does not compute: to train "
            "on, start a run with --weights on its last.params"
        )
    if runs.SEEN not in metadata and any(metadata["config"].get(f"{part}_fraction") for part in ("val", "test")):
        raise BadFileError(
            f"{directory} was begun by version 0.4, which split images by their position: to train on, start a run "
            "with --weights on its last.params"
        )


def check_engine(trainer: Trainer, metadata: Mapping[str, Any], directory: Path) -> None:
    """Raises BadFileError where the state of a run is of another engine than the trainer."""
    engine = metadata["engine"]
    if engine != trainer.name:
        raise BadFileError(
            f"{directory / STATE} is of the engine {engine!r}, not of {trainer.name!r}: resume with --engine {engine}, "
            "or start a run with --weights on its last.params"
        )


def check_config(config: Config, metadata: Mapping[str, Any], directory: Path) -> None:
    """Raises BadFileError where a run's configuration is not the one that it began with."""
    begun = {**configuration.DEFAULTS, **metadata["config"]}
    for key, value in json.loads(json.dumps(vars(config))).items():
        if value != begun.get(key):
            raise BadFileError(
                f"{directory / CONFIG} has {key} {value!r}, but the run began with {begun.get(key)!r}: put it back; to "
                "train on with another recipe, start a run with --weights on its last.params"
            )


def check_data(splits: Splits, metadata: Mapping[str, Any]) -> None:
    """Raises BadFileError where the data is not what a run began with."""
    for split, recorded in metadata["data"].items():
        dataset = getattr(splits, split)
        difference = "there is none"
        if dataset:
            difference = provenance.data_difference(recorded, provenance.of_data(dataset), dataset.task.classes)
        if difference:
            raise BadFileError(
                f"{splits.train.source} has not the {split} data that the run began with: {difference}; to train on "
                "with other data, start a run with --weights on its last.params"
            )
