"""The configuration of a training run: the same keys in a YAML file and on the command line.

Only the files of configs/ have defaults. The text of a value is read by the same rule in both places.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from .. import catalog, fetching
from ..data import IMAGE_SIZES, dataset_name, get_task
from ..errors import BadFileError, InvalidValueError, MissingFileError, nearest, unknown

LARGEST = 1 << 16  # bytes of a file: the recipes have 1,500
LONGEST = 4096  # characters of a name, which may be a path
AUTO: Any = "auto"  # stands for a number of epochs until the images have been counted
SEEN, FROM_RANDOM, FEWEST, MOST = 20_000, 5, 10, 100  # the images and epochs that it stands for
DEEPEST = 3  # a list in a mapping, and one more for an error that names its key


class Rule(NamedTuple):
    """What the value of a key has to be. `parse` takes a text or a value and raises ValueError for a wrong one."""

    allowed: str
    metavar: str
    parse: Callable[[object], Any]
    choices: tuple[str, ...] = ()


def _number(kind: Callable[[str], Any], holds: Callable[[Any], bool]) -> Callable[[object], Any]:
    def parse(value: object) -> Any:
        number = kind(str(value))  # of the text: True is no 1, and 2.5 no 2
        if not holds(number):
            raise ValueError
        return number

    return parse


def _text(value: object) -> str:
    if isinstance(value, os.PathLike):  # of a folder of images, in Python
        value = os.fspath(value)
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError
    return value


def _rising(value: object) -> tuple[int, ...]:
    if isinstance(value, str):
        value = value.split(",") if value.strip() else ()
    if not isinstance(value, (list, tuple)):
        raise ValueError
    epochs = tuple(POSITIVE.parse(epoch) for epoch in value)
    if list(epochs) != sorted(set(epochs)):
        raise ValueError
    return epochs


def _epochs(value: object) -> int:
    return AUTO if value == AUTO else POSITIVE.parse(value)


def _one_of(*choices: str) -> Rule:
    return Rule(", ".join(choices), "|".join(choices), lambda value: choices[choices.index(value)], choices)


# Every comparison refuses nan. No number is larger than makes sense: MXNet's seeds have 31 bits.
POSITIVE = Rule(f"a whole number from 1 to {2**31 - 1}", "N", _number(int, lambda number: 1 <= number < 2**31))
NATURAL = Rule(f"a whole number from 0 to {2**31 - 1}", "N", _number(int, lambda number: 0 <= number < 2**31))
ABOVE_0 = Rule("a number above 0, at most 1000", "X", _number(float, lambda number: 0 < number <= 1000))
FROM_0 = Rule("a number from 0 to 1000", "X", _number(float, lambda number: 0 <= number <= 1000))
UP_TO_1 = Rule("a number above 0, at most 1", "X", _number(float, lambda number: 0 < number <= 1))
BELOW_1 = Rule("a number from 0 and below 1", "X", _number(float, lambda number: 0 <= number < 1))
UP_TO_HALF = Rule("a number from 0 to 0.5", "X", _number(float, lambda number: 0 <= number <= 0.5))
EPOCHS = Rule(f"{POSITIVE.allowed}, or auto", "N", _epochs)
SIZE = Rule(
    f"a multiple of 4 from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}",
    "N",
    _number(int, lambda number: number in IMAGE_SIZES),
)
NAME = Rule("a name", "NAME", _text)
RISING = Rule("rising whole numbers from 1, as 150,225", "N,N", _rising)
FLAG = _one_of("true", "false")._replace(parse=lambda value: ("false", "true").index(str(value).lower()) == 1)


def _key(rule: Rule, help: str) -> Any:
    return dataclasses.field(metadata={"rule": rule, "help": help})


@dataclass(frozen=True)
class Config:
    """Everything that the result of a run depends on, except for its machine. Made by `make`."""

    model: str = _key(NAME, "the network, as pyd-concat-56-0.5")
    dataset: str = _key(NAME, "what it learns, as cifar10, digits or a folder of images")
    image_size: int = _key(SIZE, "pixels, wide and high, of a folder's images")
    val_fraction: float = _key(UP_TO_HALF, "share of the training images put aside for validation")
    test_fraction: float = _key(UP_TO_HALF, "share of class folders alone put aside for the test")
    patience: int = _key(NATURAL, "epochs without a lower validation error, then stop; 0: none")
    epochs: int = _key(EPOCHS, "passes over the training images; auto: by their number")
    batch_size: int = _key(POSITIVE, "images of one pass, over all devices and machines")
    accumulation_steps: int = _key(POSITIVE, "passes whose gradients are summed before an update")
    learning_rate: float = _key(ABOVE_0, "the highest of the schedule")
    body_rate: float = _key(UP_TO_1, "learning rate of loaded weights, as a share of the head's")
    schedule: str = _key(_one_of("step", "cosine"), "how the learning rate falls")
    milestones: tuple[int, ...] = _key(RISING, "epochs after which step decays ('': none)")
    decay: float = _key(UP_TO_1, "the factor at each milestone")
    warmup_epochs: float = _key(FROM_0, "epochs over which the learning rate rises")
    momentum: float = _key(BELOW_1, "Nesterov's")
    weight_decay: float = _key(FROM_0, "pull of the weights towards 0")
    decay_norm_and_bias: bool = _key(FLAG, "whether scales, shifts and biases decay as well")
    mixup: float = _key(FROM_0, "alpha of Beta(alpha, alpha); 0: none")
    mixup_off_epochs: int = _key(NATURAL, "last epochs without mixup")
    label_smoothing: float = _key(BELOW_1, "share of the label spread over all classes")
    class_weights: str = _key(_one_of("none", "balanced"), "of the loss; balanced: each class counts the same")
    initialiser: str = _key(_one_of("xavier", "msra"), "of the first weights")
    dtype: str = _key(_one_of("float32", "bfloat16", "float16"), "of the computation")
    seed: int = _key(NATURAL, "of all that is random")
    keep_every: int = _key(NATURAL, "epochs between checkpoints kept for good; 0: none")


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# What files of versions before 0.4 mean by keys that they do not have.
NEW_KEYS = {
    "image_size": 32,
    "val_fraction": 0,
    "test_fraction": 0,
    "patience": 0,
    "body_rate": 1,
    "class_weights": "none",
}
# What keys were called in earlier versions: files, runs and commands of that time still have the old names.
OLD_KEYS = {"accumulate": "accumulation_steps", "plain_epochs": "mixup_off_epochs"}


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a YAML file under the keys of today, each of them checked on its own.

    Raises MissingFileError, UnusableError, BadFileError and InvalidValueError.
    """
    path = fetching.expanded(path)
    if not os.path.exists(path):
        others = sorted(other.name for other in path.parent.glob("*.yaml"))
        raise MissingFileError(f"no such file: {path}{nearest(path.name, others)}")
    try:
        with fetching.readable(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise BadFileError(f"{path} is no configuration: it has more than {LARGEST} bytes")
        values = yaml.load(content, _Loader)
    except yaml.YAMLError as error:
        raise BadFileError(f"{path}{_why(error)}") from None
    if not isinstance(values, dict):
        raise BadFileError(f"{path} is no configuration (allowed: one 'key: value' a line, as 'epochs: 320')")
    try:
        values = renamed(values)
        _check_keys(values)
        return {key: _parse(key, value, key) for key, value in values.items()}
    except InvalidValueError as error:
        raise InvalidValueError(f"{path}: {error}") from None


def renamed(values: Mapping[str, object]) -> dict[str, object]:
    """The values with their keys of today. Raises InvalidValueError where an old and a new name of one key meet."""
    for old, new in OLD_KEYS.items():
        if old in values and new in values:
            raise InvalidValueError(f"{old} is the old name of {new}: leave out {old}")
    return {OLD_KEYS.get(key, key): value for key, value in values.items()}


def make(values: Mapping[str, object]) -> Config:
    """A configuration from a value for every key, all of them checked.

    Raises InvalidValueError. A folder of images need not exist.
    """
    _check_keys(values)
    values = {**NEW_KEYS, **values}
    for key in FIELDS:
        if key not in values:
            option = f"{_option(key)} {FIELDS[key].metadata['rule'].metavar}"
            raise InvalidValueError(f"no {key} is given: add {option}, or {key} to the config file")
    checked = {key: _parse(key, values[key], key) for key in FIELDS}
    checked["model"] = catalog.parse_name(checked["model"]).name
    checked["dataset"] = dataset_name(checked["dataset"])
    if not checked["dataset"].startswith("folder:"):  # which may have moved
        get_task(checked["dataset"], checked["image_size"])
    config = Config(**checked)
    if config.epochs != AUTO and config.warmup_epochs >= config.epochs:
        raise InvalidValueError(
            f"warmup_epochs: '{config.warmup_epochs:g}' (allowed: a number below the {config.epochs} epochs of the run)"
        )
    return config


def with_epochs(config: Config, images: int, pretrained: bool) -> Config:
    """The configuration with a number of epochs: for ``auto``, that of so many training images.

    A network sees `SEEN` images in all, from random weights `FROM_RANDOM` times as many, within `FEWEST` and `MOST`
    epochs. Raises InvalidValueError for a warm-up that leaves no room.
    """
    if config.epochs != AUTO:
        return config
    epochs = min(max(round(SEEN * (1 if pretrained else FROM_RANDOM) / images), FEWEST), MOST)
    return make({**vars(config), "epochs": epochs})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each key, which is None if it is not given."""
    # Wide enough for the longest option: each stands on one line with its help.
    formatter: Callable[..., argparse.HelpFormatter] = parser.formatter_class
    parser.formatter_class = functools.partial(formatter, max_help_position=36)
    group = parser.add_argument_group("recipe", "The config file has the defaults.")
    for key, field in FIELDS.items():
        short = {"model": ["-m"], "dataset": ["-d"]}.get(key, [])
        group.add_argument(
            *short, _option(key), dest=key, metavar=field.metadata["rule"].metavar, help=field.metadata["help"]
        )
    for old, new in OLD_KEYS.items():
        group.add_argument(_option(old), dest=new, help=argparse.SUPPRESS)


def checked(values: Mapping[str, object]) -> dict[str, Any]:
    """The values that are not None, each of them valid as far as it can be judged alone. Raises InvalidValueError."""
    values = renamed(values)
    _check_keys(values)
    return {key: _parse(key, value, key) for key, value in values.items() if value is not None}


def given(namespace: argparse.Namespace) -> dict[str, Any]:
    """The values of the options that were given. Raises InvalidValueError, as `read` does."""
    texts = {key: getattr(namespace, key, None) for key in FIELDS}
    return {key: _parse(key, text, f"argument {_option(key)}") for key, text in texts.items() if text is not None}


def text(config: Config) -> str:
    """The YAML of a configuration: `read` and `make` give an equal one back."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)


class _Loader(yaml.BaseLoader):
    """Leaves every value a text: YAML 1.1 reads 010 as 8, 1:30 as 90 and 1e-4 as no number.

    Refuses a key that stands twice, deep nesting, and aliases: a few lines of them can fill the memory.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:  # an alias has one too
            raise yaml.composer.ComposerError(
                problem="anchors and aliases have no use here", problem_mark=event.start_mark
            )
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(problem="it is nested too deeply", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        keys = set()
        for key, _ in node.value:
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands there a second time", problem_mark=key.start_mark
                )
            keys.add(key.value)
        return mapping


def _why(error: yaml.YAMLError) -> str:
    """Where a file stops being YAML, and why, on one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:  # bytes that are no text
        return f": no valid YAML: {' '.join(str(error).split())}"
    mark, why = error.problem_mark, ", ".join(filter(None, (error.context, error.problem)))
    return f", line {mark.line + 1}, column {mark.column + 1}: no valid YAML: {why}"


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _check_keys(values: Iterable[str]) -> None:
    for key in values:
        if key not in FIELDS:
            raise unknown("key", key, FIELDS)


def _parse(key: str, value: object, place: str) -> Any:
    """The checked value of a key. Raises InvalidValueError, which names the place."""
    rule = FIELDS[key].metadata["rule"]
    try:
        return rule.parse(value)
    except ValueError:
        shown = _shown(value)
        raise InvalidValueError(f"{place}: {shown!r}{nearest(shown, rule.choices)} (allowed: {rule.allowed})") from None


def _shown(value: object) -> str:
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
