"""The configuration of a new run: a recipe, and over its values what was given."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import checkpoints
from ..data import dataset_name, folder, get_task
from ..data.splits import kinds
from ..errors import InvalidValueError
from .config import AUTO, DEFAULTS, Config, make, read

SEEN, FROM_RANDOM, FEWEST, MOST = 20_000, 5, 10, 100  # images and epochs that auto stands for


def configure(
    given: Mapping[str, Any],
    recipe: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Config:
    """Lay the values `given` over those of a recipe, as `read` finds it.

    By default it is the recipe of the data set; that of a folder depends on whether `weights` are loaded. The model of
    weights that record it replaces that of a default recipe. Raises MissingFileError, BadFileError and
    InvalidValueError.
    """
    dataset = dataset_name(str(given.get("dataset", "cifar10")))
    get_task(dataset)  # first of all: what is wrong with it explains the rest
    pretrained = weights is not None
    if recipe is None and "model" not in given and weights is not None and weights != checkpoints.PUBLISHED:
        found = checkpoints.inspect(weights)
        given = {"model": found.model, **given} if found else given
    if recipe is None and dataset.startswith("folder:"):
        recipe = "finetune" if pretrained else "folder"
    values = {**DEFAULTS, **read(recipe or (dataset if dataset in ("digits", "imagenet32") else "cifar"))}
    if "warmup_epochs" not in given and given.get("epochs", AUTO) != AUTO:
        _shorten_warmup(values, given["epochs"])
    config = make({**values, **given})
    get_task(config.dataset, config.image_size)  # of a folder too, which has to be there
    return _without_needless(config, given, pretrained)


def _shorten_warmup(values: dict[str, Any], epochs: int) -> None:
    """Shorten the warm-up of a recipe's `values`, where so many epochs leave no room for it, to its share of them."""
    warmup, own = values["warmup_epochs"], FEWEST if values["epochs"] == AUTO else values["epochs"]
    if warmup >= epochs:
        values["warmup_epochs"] = warmup * epochs / own
        shorter = f"{values['warmup_epochs']:g}, its share of the recipe's {own} epochs"
        text = f"warmup_epochs {warmup:g} does not fit into --epochs {epochs}: shortened to {shorter}"
        warnings.warn(text, stacklevel=3)


def _without_needless(config: Config, given: Mapping[str, Any], pretrained: bool) -> Config:
    """Reset what a recipe has and this run cannot use.

    Raises InvalidValueError where it was given, and where no image is left to choose the best epoch by.
    """
    has = kinds(config.dataset)
    validated = "val" in has or config.val_fraction > 0
    found = ", ".join(has)
    needless = {
        "val_fraction": "val" in has and f"the data has validation images (it has: {found})",
        "test_fraction": has != (folder.ALL,) and f"it is for class folders alone (the data has: {found})",
        "body_rate": not pretrained and "it is for loaded weights, as --pretrained or --weights loads them",
        "patience": not validated and "it waits for the validation error: add --val-fraction, or a folder val/",
    }
    for key, why in needless.items():
        if why and getattr(config, key) != DEFAULTS[key]:
            if key in given:
                raise InvalidValueError(f"{key} {given[key]:g} cannot be used: {why}; nearest: {DEFAULTS[key]:g}")
            config = replace(config, **{key: DEFAULTS[key]})
    if not (validated or "test" in has or config.test_fraction):
        raise InvalidValueError(
            f"{config.dataset} leaves no image to choose the best epoch by; nearest: --val-fraction 0.2"
        )
    return config


def with_epochs(config: Config, images: int, pretrained: bool) -> Config:
    """Replace ``auto`` by the epochs in which a network sees `SEEN` of so many training images, within `FEWEST` and
    `MOST`; from random weights `FROM_RANDOM` times as many. Raises InvalidValueError for a warm-up without room.
    """
    if config.epochs != AUTO:
        return config
    epochs = min(max(round(SEEN * (1 if pretrained else FROM_RANDOM) / images), FEWEST), MOST)
    return make({**vars(config), "epochs": epochs})
