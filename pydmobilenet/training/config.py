"""The configuration of a training run: the same keys in a YAML file, on the command line and in Python."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .. import catalog, fetching
from ..data import IMAGE_SIZES, dataset_name, get_task, is_own
from ..data.augmentation import FLIPS, Augmentation
from ..errors import BadFileError, InvalidValueError, MissingFileError, nearest, unknown
from ..files import CONFIGS

MAX_BYTES = 1 << 16  # of a recipe
MAX_INT = 2**31 - 1  # MXNet's seeds have 31 bits
AUTO: Any = "auto"  # epochs, until the images are counted
AUTO_IMAGES, AUTO_EPOCHS = 20_000, (10, 100)
USUAL_RATES = {"sgd": 0.1, "adamw": 0.001}


class Rule(NamedTuple):
    """The allowed values of a key, in words and as a test. No comparison with nan holds."""

    allowed: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def _one_of(*choices: str) -> Rule:
    return Rule(", ".join(choices), lambda value: value in choices, choices)


FROM_0 = Rule(f"a whole number from 0 to {MAX_INT}", lambda number: 0 <= number <= MAX_INT)
FROM_1 = Rule(f"a whole number from 1 to {MAX_INT}", lambda number: 1 <= number <= MAX_INT)
EPOCHS = Rule(f"{FROM_1.allowed}, or auto", lambda number: number == AUTO or FROM_1.holds(number))
SIZE = Rule(f"a multiple of 4 from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}", lambda number: number in IMAGE_SIZES)
ABOVE_0 = Rule("a number above 0, at most 1000", lambda number: 0 < number <= 1000)
UP_TO_1000 = Rule("a number from 0 to 1000", lambda number: 0 <= number <= 1000)
UP_TO_1 = Rule("a number above 0, at most 1", lambda number: 0 < number <= 1)
FROM_0_TO_1 = Rule("a number from 0 to 1", lambda number: 0 <= number <= 1)
BELOW_1 = Rule("a number from 0 and below 1", lambda number: 0 <= number < 1)
UP_TO_HALF = Rule("a number from 0 to 0.5", lambda number: 0 <= number <= 0.5)
RISING = Rule("rising whole numbers from 1, as 150,225", lambda numbers: [0, *numbers] == sorted({0, *numbers}))
NAME = Rule("a name", lambda name: len(name) <= 4096)  # it may be a path
FLAG = Rule("true, false", lambda value: True, ("true", "false"))


def _key(default: Any, help: str, rule: Rule) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "rule": rule})


@dataclass(frozen=True)
class Config:
    """All that a run's result depends on, but for the machine. `make` checks the values.

    The defaults are the authors' recipe for CIFAR, from the paper's public training code (arXiv 1811.07083).
    """

    model: str = _key(MISSING, "network, as pyd-concat-56-0.5", NAME)
    dataset: str = _key(MISSING, "data set: cifar10, digits, ..., or a folder of images", NAME)
    image_size: int = _key(32, "width and height of a folder's images, in pixels", SIZE)
    val_fraction: float = _key(0.0, "fraction of the training images for validation", UP_TO_HALF)
    test_fraction: float = _key(0.0, "fraction of class folders for the test", UP_TO_HALF)
    patience: int = _key(0, "stop after N epochs without a lower validation error; 0: never", FROM_0)
    epochs: int = _key(320, "number of epochs; auto: by the number of images", EPOCHS)
    batch_size: int = _key(128, "images per batch, over all devices and processes", FROM_1)
    accumulation_steps: int = _key(1, "batches per update, with their gradients summed", FROM_1)
    learning_rate: float = _key(0.1, "peak learning rate", ABOVE_0)
    body_rate: float = _key(1.0, "rate of loaded weights, as a factor of the head's; 0: frozen", FROM_0_TO_1)
    schedule: str = _key("step", "learning rate schedule", _one_of("step", "cosine", "htd"))
    milestones: tuple[int, ...] = _key((150, 225), "epochs after which step decays ('': none)", RISING)
    decay: float = _key(0.1, "factor at each milestone", UP_TO_1)
    warmup_epochs: float = _key(0.0, "epochs of linear warm-up", UP_TO_1000)
    optimizer: str = _key("sgd", "adamw: betas 0.9 and 0.999, eps 1e-8", _one_of(*USUAL_RATES))
    momentum: float = _key(0.9, "sgd's Nesterov momentum", BELOW_1)
    weight_decay: float = _key(0.0001, "weight decay, of adamw decoupled", UP_TO_1000)
    decay_norm_and_bias: bool = _key(True, "decay scales, shifts and biases too", FLAG)
    clip_gradient: float = _key(0.0, "clip the norm of all gradients together; 0: do not", UP_TO_1000)
    augment: bool = _key(True, "random crops and flips (default with --freeze: false)", FLAG)
    flip: str = _key("random", "horizontal flips; alternating: in every other epoch", _one_of(*FLIPS))
    trivial_augment: bool = _key(False, "a random operation of random strength an image", FLAG)
    cutout: int = _key(0, "side of a random square set to the mean, in pixels; 0: none", FROM_0)
    mixup: float = _key(1.0, "mixup's alpha; 0: none", UP_TO_1000)
    cutmix: float = _key(0.0, "cutmix's alpha; 0: none. Beside mixup: half of the batches", UP_TO_1000)
    mixup_off_epochs: int = _key(20, "last epochs without mixup and cutmix", FROM_0)
    label_smoothing: float = _key(0.0, "label smoothing", BELOW_1)
    ema: float = _key(0.0, "decay of a moving average of the weights, by PyTorch; 0: none", BELOW_1)
    qat: bool = _key(False, "round as int8 files do, from weights, by PyTorch", FLAG)
    class_weights: str = _key("none", "of the loss; balanced: all classes count the same", _one_of("none", "balanced"))
    # Both as in the code of Tian, Krishnan and Isola, 2019 (arXiv 1910.10699), for small networks on CIFAR-100.
    teacher_share: float = _key(0.9, "weight of the teacher's soft targets in the loss", UP_TO_1)
    temperature: float = _key(4.0, "of the soft targets", ABOVE_0)
    initialiser: str = _key("msra", "of the random weights", _one_of("xavier", "msra"))  # the authors' code has both
    dtype: str = _key("float32", "data type of the computation", _one_of("float32", "bfloat16", "float16"))
    seed: int = _key(0, "random seed", FROM_0)
    keep_every: int = _key(40, "epochs between checkpoints to keep; 0: none", FROM_0)

    @property
    def frozen(self) -> bool:
        """True if the head alone is trained; the body's batch normalisation has fixed statistics too."""
        return self.body_rate == 0

    @property
    def from_features(self) -> bool:
        """True if an image has the same features in all epochs, so that the body has to see it only once."""
        return self.frozen and not self.augment and self.mixup == self.cutmix == 0

    @property
    def augmentation(self) -> Augmentation:
        """What else than a random crop changes an image."""
        return Augmentation(self.flip, self.trivial_augment, self.cutout)

    @property
    def augmented_on_host(self) -> bool:
        """True if batches need what a loader on a device does not make."""
        return self.augment and self.trivial_augment


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)
DEFAULTS = {key: field.default for key, field in FIELDS.items() if field.default is not MISSING}
# Names of keys in earlier versions: files, runs and commands of that time still have them.
OLD_KEYS = {"accumulate": "accumulation_steps", "plain_epochs": "mixup_off_epochs"}


def make(values: Mapping[str, object]) -> Config:
    """Build a configuration and check it; a missing key has its default. Raises InvalidValueError.

    A folder of images need not exist.
    """
    values = parse(values)
    for key in ("model", "dataset"):
        if key not in values:
            raise InvalidValueError(f"no {key} is given: add --{key} NAME, or {key} to the config file")
    values["model"] = catalog.parse_name(values["model"]).name
    values["dataset"] = dataset_name(values["dataset"])
    config = Config(**values)
    if not is_own(config.dataset):  # a folder may have moved
        get_task(config.dataset, config.image_size)
    if config.epochs != AUTO and config.warmup_epochs >= config.epochs:
        raise InvalidValueError(
            f"warmup_epochs: '{config.warmup_epochs:g}' (allowed: a number below the {config.epochs} epochs of the run)"
        )
    if config.cutout >= config.image_size:
        raise InvalidValueError(
            f"cutout: '{config.cutout}' (allowed: a whole number below the {config.image_size} pixels of an image)"
        )
    return config


def parse(values: Mapping[str, object], also: Iterable[str] = ()) -> dict[str, Any]:
    """Check each value by itself and rename old keys; None is left out.

    Raises InvalidValueError. For an unknown key it names the nearest one, also of those in `also`.
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
    """Convert a value by its text: True is not 1, and 2.5 is not 2."""
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
    """Format a configuration as YAML. `read` and `make` give an equal one back."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each key, None by default."""
    # Wide enough for the longest option: each stands on one line with its help.
    formatter: Callable[..., argparse.HelpFormatter] = parser.formatter_class
    parser.formatter_class = functools.partial(formatter, max_help_position=36)
    group = parser.add_argument_group("recipe", "The config file has the defaults.")
    metavars = {str: "NAME", int: "N", float: "X"}
    for key, field in FIELDS.items():
        names = [*{"model": ["-m"], "dataset": ["-d"]}.get(key, []), f"--{key.replace('_', '-')}"]
        metavar = "|".join(field.metadata["rule"].choices) or metavars.get(TYPES[key], "N,N")
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if field.default is False else {}
        group.add_argument(*names, dest=key, metavar=metavar, help=field.metadata["help"], **switch)
    for old, new in OLD_KEYS.items():
        group.add_argument(f"--{old.replace('_', '-')}", dest=new, help=argparse.SUPPRESS)


def read(recipe: str | os.PathLike[str], folder: Path = Path(), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe over its ``base``; each value is checked by itself.

    `recipe` is a name in ``configs/`` or a path relative to `folder`. It is the base of the files in `above`. Raises
    MissingFileError, UnusableError, BadFileError and InvalidValueError.
    """
    bundled = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    path = bundled.get(str(recipe)) or folder / fetching.expanded(recipe)
    where = f"{above[-1]}: base: " if above else ""
    if not os.path.exists(path):
        others = sorted([*bundled, *(other.name for other in path.parent.glob("*.yaml"))])
        raise MissingFileError(f"{where}no such file: {path}{nearest(path.name, others)}")
    if path.resolve() in above:
        raise BadFileError(f"{where}{path} has this file as its own base")
    try:
        with fetching.readable(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadFileError(f"{path} is not a configuration: it has more than {MAX_BYTES:,} bytes")
        values = yaml.load(io.BytesIO(content), _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).replace('"<file>", ', "").split())
        raise BadFileError(f"{path}: no valid YAML: {why}") from None
    if not isinstance(values, dict):
        raise BadFileError(f"{path} is not a configuration (allowed: one 'key: value' per line, as 'epochs: 320')")
    base = values.pop("base", None)
    try:
        values = parse(values, also=["base"])
    except InvalidValueError as error:
        raise InvalidValueError(f"{path}: {error}") from None
    below = {} if base is None else read(str(base), path.parent, (*above, path.resolve()))
    return lay_over(below, values, f"{path}: ")


def lay_over(below: Mapping[str, Any], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Lay values over others. Raises InvalidValueError for another optimizer at the first one's learning rate."""
    optimizer, before = values.get("optimizer"), below.get("optimizer", DEFAULTS["optimizer"])
    if optimizer not in (None, before) and "learning_rate" not in values:
        raise InvalidValueError(
            f"{where}optimizer {optimizer} needs another learning_rate than {before}: set both; "
            f"nearest: learning_rate {USUAL_RATES[optimizer]:g}"
        )
    return {**below, **values}


class _Loader(yaml.BaseLoader):
    """Keeps values as text, for YAML 1.1 reads 010 as 8, 1:30 as 90 and 1e-4 as a string.

    Refuses duplicate keys, and aliases: a few lines of these may stand for any number of values.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=mark)
        return super().construct_mapping(node, deep)
