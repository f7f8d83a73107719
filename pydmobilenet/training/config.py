"""The configuration of a training run: the same keys in a YAML file, on the command line and in Python."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .. import catalog, checkpoints, fetching
from ..data import IMAGE_SIZES, dataset_name, folder, get_task
from ..data.splits import kinds
from ..errors import BadFileError, InvalidValueError, MissingFileError, nearest, unknown
from ..files import CONFIGS

MOST_BYTES = 1 << 16  # of a file: a run's has 600
LARGEST = 2**31 - 1  # MXNet's seeds have 31 bits
SEEN, FROM_RANDOM, FEWEST, MOST = 20_000, 5, 10, 100  # images and epochs that auto stands for
AUTO: Any = "auto"  # stands for a number of epochs until the images have been counted


class Rule(NamedTuple):
    """Which values of its type a key can have: in words, and as a test. No comparison with nan holds."""

    allowed: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def _one_of(*choices: str) -> Rule:
    return Rule(", ".join(choices), lambda value: value in choices, choices)


FROM_0 = Rule(f"a whole number from 0 to {LARGEST}", lambda number: 0 <= number <= LARGEST)
FROM_1 = Rule(f"a whole number from 1 to {LARGEST}", lambda number: 1 <= number <= LARGEST)
EPOCHS = Rule(f"{FROM_1.allowed}, or auto", lambda number: number == AUTO or FROM_1.holds(number))
SIZE = Rule(f"a multiple of 4 from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}", lambda number: number in IMAGE_SIZES)
ABOVE_0 = Rule("a number above 0, at most 1000", lambda number: 0 < number <= 1000)
UP_TO_1000 = Rule("a number from 0 to 1000", lambda number: 0 <= number <= 1000)
UP_TO_1 = Rule("a number above 0, at most 1", lambda number: 0 < number <= 1)
BELOW_1 = Rule("a number from 0 and below 1", lambda number: 0 <= number < 1)
UP_TO_HALF = Rule("a number from 0 to 0.5", lambda number: 0 <= number <= 0.5)
RISING = Rule("rising whole numbers from 1, as 150,225", lambda numbers: [0, *numbers] == sorted({0, *numbers}))
NAME = Rule("a name", lambda name: len(name) <= 4096)  # it may be a path
FLAG = Rule("true, false", lambda value: True, ("true", "false"))


def _key(default: Any, help: str, rule: Rule) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "rule": rule})


@dataclass(frozen=True)
class Config:
    """Everything that the result of a run depends on, except for its machine. `make` checks the values.

    The defaults are the authors' recipe for CIFAR, as in the paper's public training code (arXiv 1811.07083).
    """

    model: str = _key(MISSING, "the network, as pyd-concat-56-0.5", NAME)
    dataset: str = _key(MISSING, "what it learns, as cifar10, digits or a folder of images", NAME)
    image_size: int = _key(32, "pixels, wide and high, of a folder's images", SIZE)
    val_fraction: float = _key(0.0, "share of the training images put aside for validation", UP_TO_HALF)
    test_fraction: float = _key(0.0, "share of class folders alone put aside for the test", UP_TO_HALF)
    patience: int = _key(0, "epochs without a lower validation error, then stop; 0: none", FROM_0)
    epochs: int = _key(320, "passes over the training images; auto: by their number", EPOCHS)
    batch_size: int = _key(128, "images of one pass, over all devices and machines", FROM_1)
    accumulation_steps: int = _key(1, "passes whose gradients are summed before an update", FROM_1)
    learning_rate: float = _key(0.1, "the highest of the schedule", ABOVE_0)
    body_rate: float = _key(1.0, "learning rate of loaded weights, as a share of the head's", UP_TO_1)
    schedule: str = _key("step", "how the learning rate falls", _one_of("step", "cosine"))
    milestones: tuple[int, ...] = _key((150, 225), "epochs after which step decays ('': none)", RISING)
    decay: float = _key(0.1, "the factor at each milestone", UP_TO_1)
    warmup_epochs: float = _key(0.0, "epochs over which the learning rate rises", UP_TO_1000)
    momentum: float = _key(0.9, "Nesterov's", BELOW_1)
    weight_decay: float = _key(0.0001, "pull of the weights towards 0", UP_TO_1000)
    decay_norm_and_bias: bool = _key(True, "whether scales, shifts and biases decay as well", FLAG)
    mixup: float = _key(1.0, "alpha of Beta(alpha, alpha); 0: none", UP_TO_1000)
    mixup_off_epochs: int = _key(20, "last epochs without mixup", FROM_0)
    label_smoothing: float = _key(0.0, "share of the label spread over all classes", BELOW_1)
    class_weights: str = _key("none", "of the loss; balanced: each class counts the same", _one_of("none", "balanced"))
    initialiser: str = _key("msra", "of the first weights", _one_of("xavier", "msra"))  # the authors' code has both
    dtype: str = _key("float32", "of the computation", _one_of("float32", "bfloat16", "float16"))
    seed: int = _key(0, "of all that is random", FROM_0)
    keep_every: int = _key(40, "epochs between checkpoints kept for good; 0: none", FROM_0)


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)
DEFAULTS = {key: field.default for key, field in FIELDS.items() if field.default is not MISSING}
# What keys were called in earlier versions: files, runs and commands of that time still have the old names.
OLD_KEYS = {"accumulate": "accumulation_steps", "plain_epochs": "mixup_off_epochs"}


def make(values: Mapping[str, object]) -> Config:
    """A configuration of the values, all of them checked; a missing one has its default.

    Raises InvalidValueError. A folder of images need not exist.
    """
    values = parse(values)
    for key in ("model", "dataset"):
        if key not in values:
            raise InvalidValueError(f"no {key} is given: add --{key} NAME, or {key} to the config file")
    values["model"] = catalog.parse_name(values["model"]).name
    values["dataset"] = dataset_name(values["dataset"])
    config = Config(**values)
    if not config.dataset.startswith("folder:"):  # which may have moved
        get_task(config.dataset, config.image_size)
    if config.epochs != AUTO and config.warmup_epochs >= config.epochs:
        raise InvalidValueError(
            f"warmup_epochs: '{config.warmup_epochs:g}' (allowed: a number below the {config.epochs} epochs of the run)"
        )
    return config


def parse(values: Mapping[str, object], also: Iterable[str] = ()) -> dict[str, Any]:
    """The values under the keys of today, each valid by itself; None is left out.

    Raises InvalidValueError; for an unknown key it names those that a file can have `also`.
    """
    for old, new in OLD_KEYS.items():
        if old in values and new in values:
            raise InvalidValueError(f"{old} is the old name of {new}: leave out {old}")
    given = {OLD_KEYS.get(key, key): value for key, value in values.items() if value is not None}
    for key in given:
        if key not in FIELDS:
            raise unknown("key", key, [*FIELDS, *also])
    return {key: _parse(key, value) for key, value in given.items()}


def _parse(key: str, value: object) -> Any:
    """The value of a key by its text, for which True is no 1, and 2.5 no 2. Raises InvalidValueError."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    rule, kind = FIELDS[key].metadata["rule"], TYPES[key]
    try:
        if kind is bool:
            converted: Any = {"true": True, "false": False}[text.lower()]
        elif kind in (str, int, float):
            converted = AUTO if text == AUTO else kind(text)
        else:
            converted = tuple(map(int, text.split(","))) if text.strip() else ()
        if rule.holds(converted):
            return converted
    except (LookupError, TypeError, ValueError):
        pass
    shown = text if len(text) <= 100 else f"{text[:100]}…"
    raise InvalidValueError(f"{key}: {shown!r}{nearest(shown, rule.choices)} (allowed: {rule.allowed})")


def text(config: Config) -> str:
    """The YAML of a configuration: `read` and `make` give an equal one back."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each key, which is None if it is not given."""
    # Wide enough for the longest option: each stands on one line with its help.
    formatter: Callable[..., argparse.HelpFormatter] = parser.formatter_class
    parser.formatter_class = functools.partial(formatter, max_help_position=36)
    group = parser.add_argument_group("recipe", "The config file has the defaults.")
    metavars = {str: "NAME", int: "N", float: "X"}
    for key, field in FIELDS.items():
        names = [*{"model": ["-m"], "dataset": ["-d"]}.get(key, []), f"--{key.replace('_', '-')}"]
        metavar = "|".join(field.metadata["rule"].choices) or metavars.get(TYPES[key], "N,N")
        group.add_argument(*names, dest=key, metavar=metavar, help=field.metadata["help"])
    for old, new in OLD_KEYS.items():
        group.add_argument(f"--{old.replace('_', '-')}", dest=new, help=argparse.SUPPRESS)


def read(recipe: str | os.PathLike[str], folder: Path = Path(), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe over those of its ``base``, each valid by itself.

    `recipe` is the name of one in ``configs/``, or the path of a file, from `folder` on; it is the base of those
    `above`. Raises MissingFileError, UnusableError, BadFileError and InvalidValueError.
    """
    bundled = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    path = bundled.get(str(recipe)) or folder / fetching.expanded(recipe)
    place = f"{above[-1]}: base: " if above else ""
    if not os.path.exists(path):
        others = sorted([*bundled, *(other.name for other in path.parent.glob("*.yaml"))])
        raise MissingFileError(f"{place}no such file: {path}{nearest(path.name, others)}")
    if path.resolve() in above:
        raise BadFileError(f"{place}{path} has this file as its own base")
    try:
        values = _load(path)
        base = values.pop("base", None)
        values = parse(values, also=["base"])
    except yaml.YAMLError as error:
        why = " ".join(str(error).replace(f'"{path}", ', "").split())  # which names the file at each line
        raise BadFileError(f"{path}: no valid YAML: {why}") from None
    except InvalidValueError as error:
        raise InvalidValueError(f"{path}: {error}") from None
    return values if base is None else {**read(base, path.parent, (*above, path.resolve())), **values}


class _Loader(yaml.BaseLoader):
    """Leaves every value a text, as YAML 1.1 reads 010 as 8, 1:30 as 90 and 1e-4 as no number; refuses aliases."""

    def fetch_alias(self) -> None:
        raise yaml.MarkedYAMLError(problem="anchors and aliases have no use here", problem_mark=self.get_mark())

    fetch_anchor = fetch_alias


def _load(path: Path) -> dict[str, Any]:
    """The texts in a YAML file by their keys, those of a list with commas. Raises BadFileError and yaml.YAMLError."""
    with fetching.readable(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise BadFileError(f"{path} is no configuration: it has more than {MOST_BYTES} bytes")
        try:
            document = yaml.compose(file, _Loader)
        except RecursionError:
            raise yaml.YAMLError("it is nested too deeply") from None
    if not isinstance(document, yaml.MappingNode):
        raise BadFileError(f"{path} is no configuration (allowed: one 'key: value' a line, as 'epochs: 320')")
    values: dict[str, Any] = {}
    for key, value in document.value:
        texts = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(text, yaml.ScalarNode) for text in (key, *texts)):
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=key.start_mark)
        if key.value in values:
            raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands there a second time", problem_mark=key.start_mark)
        values[key.value] = ",".join(text.value for text in texts)
    return values


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
