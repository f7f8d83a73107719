"""The configuration of a run: the values that are given, laid over a recipe, and checked against the run's data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import checkpoints
from ..data import dataset_name, folder, get_task, is_own
from ..data.splits import kinds
from ..errors import InvalidValueError
from .config import AUTO, AUTO_EPOCHS, AUTO_IMAGES, DEFAULTS, Config, lay_over, make, read


def configure(
    given: Mapping[str, Any],
    recipe: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    splits: tuple[str, ...] = (),
    distilled: bool = False,
    mirrored: bool | None = None,
) -> Config:
    """Lay the values `given`, of `config.parse`, over a recipe (`read`), by default that of the data set.

    The default for a folder depends on whether `weights` are loaded; their model replaces that of a default recipe.
    Arrays have these `splits`, and are flipped if `mirrored`; other data sets are looked at.
    Only a run `distilled` from a teacher uses the teacher's keys.
    Raises MissingFileError, BadFileError and InvalidValueError.
    """
    dataset = dataset_name(str(given.get("dataset", "cifar10")))
    if not splits:
        get_task(dataset)  # first: a wrong data set explains the other errors
    pretrained = weights is not None
    if recipe is None and "model" not in given and weights is not None and weights != checkpoints.PUBLISHED:
        checkpoint = checkpoints.inspect(weights)
        given = {"model": checkpoint.model, **given} if checkpoint else given
    if recipe is not None:
        chosen = read(recipe)
    elif is_own(dataset):
        chosen = read("finetune" if pretrained else "folder")
    else:
        chosen = read(dataset if dataset in ("digits", "imagenet32") else "cifar")
    if given.get("qat"):
        chosen = {**chosen, **read("qat")}
    values = {**DEFAULTS, **chosen}
    epochs, warmup = given.get("epochs", AUTO), values["warmup_epochs"]
    if "warmup_epochs" not in given and epochs != AUTO and warmup >= epochs:
        total = AUTO_EPOCHS[0] if values["epochs"] == AUTO else values["epochs"]
        values["warmup_epochs"] = warmup * epochs / total
        warnings.warn(
            f"--epochs {epochs} is too short for warmup_epochs {warmup:g} of the recipe's {total} epochs: "
            f"shortened to {values['warmup_epochs']:g}",
            stacklevel=2,
        )
    config = make(lay_over(values, given))
    if not splits:
        get_task(config.dataset, config.image_size)  # of a folder too: it has to exist
    if config.frozen and "augment" not in {**chosen, **given}:  # the features of all epochs are the same
        kept = ("mixup", "cutmix") if recipe is not None else tuple(given)
        mixed: dict[str, Any] = {key: getattr(config, key) if key in kept else 0.0 for key in ("mixup", "cutmix")}
        config = replace(config, augment=False, **mixed)
    if config.qat:
        _check_quantised(config, pretrained)
    if distilled and config.frozen:
        raise InvalidValueError("a teacher sees images, and a last layer alone learns from features: pass either one")
    _warn_of_mixing(config)
    if mirrored is None:
        mirrored = is_own(config.dataset) or get_task(config.dataset).mirrored
    return _without_unused(config, given, pretrained, distilled, splits or kinds(config.dataset), mirrored)


def _check_quantised(config: Config, pretrained: bool) -> None:
    """Raise InvalidValueError if a quantisation-aware run has no weights, or cannot round them."""
    if not pretrained:
        raise InvalidValueError("qat begins at trained weights: add --weights RUN, or --pretrained")
    if config.frozen:
        raise InvalidValueError("qat rounds all layers, and a last layer alone learns from features: pass either one")
    if config.dtype != "float32":
        raise InvalidValueError(f"qat rounds float32, not {config.dtype}; nearest: --dtype float32")


def _warn_of_mixing(config: Config) -> None:
    """Warn if mixup or cutmix would begin after the end. It is no error: runs of earlier versions have it."""
    if config.epochs == AUTO or config.mixup_off_epochs < config.epochs:
        return
    for key in ("mixup", "cutmix"):
        if value := getattr(config, key):
            warnings.warn(
                f"{key} {_shown(value)} has no effect: the last {config.mixup_off_epochs} epochs are without it, "
                f"and the run has {config.epochs}; nearest: --mixup-off-epochs 0",
                stacklevel=3,
            )


def _without_unused(
    config: Config, given: Mapping[str, Any], pretrained: bool, distilled: bool, splits: tuple[str, ...], mirrored: bool
) -> Config:
    """Reset the recipe's keys without effect in this run.

    Raises InvalidValueError if one was given, or if no image is left to choose the best epoch.
    """
    validated = "val" in splits or config.val_fraction > 0
    available = ", ".join(splits)
    no_teacher = not distilled and "there is no teacher: add --teacher"
    plain = not config.augment and "images are not augmented: add --augment true"
    unused = {
        "val_fraction": "val" in splits and f"the data has validation images (it has: {available})",
        "test_fraction": splits != (folder.ALL,) and f"only class folders are split (the data has: {available})",
        "body_rate": not pretrained and "no weights are loaded: add --pretrained or --weights",
        "patience": not validated and "there is no validation error: add --val-fraction, or a folder val/",
        "flip": plain or (not mirrored and f"images of {config.dataset} are never flipped"),
        "trivial_augment": plain,
        "cutout": plain,
        "momentum": config.optimizer == "adamw" and "adamw has betas instead",
        "teacher_share": no_teacher,
        "temperature": no_teacher,
    }
    for key, why in unused.items():
        if not why:
            continue
        is_on = key in ("momentum", "teacher_share", "temperature")  # the others are off by their default
        if key in given and (is_on or given[key] != DEFAULTS[key]):
            if key == "body_rate" and given[key] == 0:
                raise InvalidValueError(f"a last layer alone cannot be trained: {why}")
            closest = "none given" if is_on else _shown(DEFAULTS[key])
            raise InvalidValueError(f"{key} {_shown(given[key])} cannot be used: {why}; nearest: {closest}")
        config = replace(config, **{key: DEFAULTS[key]})
    if not (validated or "test" in splits or config.test_fraction):
        raise InvalidValueError(f"{config.dataset} has no images to choose the best epoch; nearest: --val-fraction 0.2")
    return config


def _shown(value: object) -> str:
    """Format a value as on the command line."""
    return f"{value:g}" if isinstance(value, (int, float)) and type(value) is not bool else str(value).lower()


def with_epochs(config: Config, images: int, pretrained: bool) -> Config:
    """Replace ``auto`` by epochs for so many training images. Raises InvalidValueError if the warm-up does not fit.

    A network sees `AUTO_IMAGES` images, or from random weights five times as many, within the limits `AUTO_EPOCHS`.
    """
    if config.epochs != AUTO:
        return config
    epochs = round(AUTO_IMAGES * (1 if pretrained else 5) / images)
    made = make({**vars(config), "epochs": min(max(epochs, AUTO_EPOCHS[0]), AUTO_EPOCHS[1])})
    _warn_of_mixing(made)
    return made
