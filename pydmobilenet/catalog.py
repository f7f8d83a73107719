"""Names and published figures: the only home of both. Knows no data and no engine.

`catalog.csv` holds one row for each figure of the two published tables (README of the authors' repository, and
arXiv 1811.07083): the error rates in %, parameters in millions, multiply-adds ("FLOPs") in millions, the exact counts
of the authors' own graphs, and the checkpoint that belongs to the row. An empty cell: nothing was published.
"""

from __future__ import annotations

import csv
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import network
from .errors import InvalidValueError, unknown
from .network import FAMILIES, Architecture, Complexity, Network

if TYPE_CHECKING:
    from .data import Task

NAME_FORM = "FAMILY-DEPTH-MULTIPLIER, as pyd-concat-56-0.5, or wrn-DEPTH-WIDTH, as wrn-28-10"
# Data sets of the published tables, and the labels whose errors they count.
LABEL_SETS = {"cifar10": "10 classes", "cifar100-coarse": "20 superclasses", "imagenet32": "1,000 classes"}
# The published parameters are those of the 10-way head; for CIFAR-100, says the authors' README, add this.
HEAD_DIFFERENCE = (128 + 1) * (100 - 10)


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights in the authors' repository. `bytes` and `sha256` of the three ImageNet32 files are unknown."""

    path: str
    bytes: int | None
    sha256: str
    git_blob_sha1: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def digest(self) -> str:
        """The strongest digest known, as `fetching.digest` writes it."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git:{self.git_blob_sha1}"


@dataclass(frozen=True)
class Record:
    """A row of a table: errors in %, parameters and multiply-adds in millions.

    `exact` holds the counts of the authors' own graph (None for the Wide ResNets), `file` their weights, `note` a
    caveat. `path` and `task` are those of a `checkpoints.Checkpoint`, which is a row too.
    """

    model: str
    dataset: str
    top1_error: float | None = None
    top5_error: float | None = None
    params_m: float | None = None
    flops_m: float | None = None
    exact: Complexity | None = None
    file: PublishedFile | None = None
    note: str = ""
    path: Path | None = None
    task: Task | None = None

    @property
    def published(self) -> bool:
        """Whether the figures are the published ones."""
        return self.path is None

    @property
    def run(self) -> Path | None:
        """The directory of its run, which tells more than other checkpoints do; None where it is of none."""
        return None

    @property
    def digest(self) -> str:
        """What the file of its weights has to have, as `fetching.digest` writes it; empty where nothing is known."""
        return self.file.digest if self.file else ""

    @property
    def filename(self) -> str:
        """The name of the file of its weights; empty where none is published."""
        return self.path.name if self.path else self.file.name if self.file else ""

    @property
    def place(self) -> str:
        """``RUN/FILE`` of a checkpoint that was trained with this project; empty for a published one."""
        return f"{self.path.parent.name}/{self.path.name}" if self.path else ""

    @property
    def outputs(self) -> int | None:
        """The outputs that were recorded; None where the data set tells them."""
        return self.task.outputs if self.task else None

    @property
    def depth(self) -> int:
        return parse_name(self.model).depth

    @property
    def labels(self) -> str:
        """The label set that the error counts."""
        return LABEL_SETS[self.dataset]

    @property
    def params_tolerance_m(self) -> float:
        """How far the published parameters may be from the exact count, in millions: the table rounds and cuts."""
        if self.model.startswith("wrn"):
            return 0.05
        return 0.01 if self.dataset == "imagenet32" else 0.001


def _number(text: str, kind: type = float) -> Any:
    return kind(text) if text else None


def _read() -> tuple[Record, ...]:
    text = Path(__file__).with_name("catalog.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    ten_way = {row["model"]: row for row in rows if row["dataset"] == "cifar10"}
    records = []
    for row in rows:
        params, flops = _number(row["params_m"]), _number(row["flops_m"])
        if row["dataset"] == "cifar100-coarse":  # the table has one column for both, and the authors' README the rule
            params = round(float(ten_way[row["model"]]["params_m"]) + HEAD_DIFFERENCE / 1e6, 3)
            flops = float(ten_way[row["model"]]["flops_m"])
        file = PublishedFile(row["path"], _number(row["bytes"], int), row["sha256"], row["git_blob_sha1"])
        records.append(
            Record(
                model=row["model"],
                dataset=row["dataset"],
                top1_error=float(row["top1_error"]),
                top5_error=_number(row["top5_error"]),
                params_m=params,
                flops_m=flops,
                exact=Complexity(int(row["exact_parameters"]), int(row["exact_multiply_adds"]))
                if row["exact_parameters"]
                else None,
                file=file if row["path"] else None,
                note=row["note"],
            )
        )
    return tuple(records)


RECORDS = _read()


def parse_name(name: str) -> Architecture:
    """The architecture that a model's name stands for, published or not.

    Raises InvalidValueError, which names the nearest valid names.
    """
    families = "|".join(map(re.escape, FAMILIES))
    match = re.fullmatch(rf"({families})-([1-9]\d{{,3}})-((?:0|[1-9]\d{{,3}})(?:\.\d{{1,9}})?)", str(name))
    if match is None:
        spoken = re.sub("pyd(mobile)?net", "pyd", str(name).lower()).replace("_", "-")  # as papers write it
        if spoken in list_models():
            raise InvalidValueError(f"unknown model {name!r}; nearest: {spoken}")
        raise unknown("model", name, list_models(), NAME_FORM)
    key, depth, multiplier = match[1], int(match[2]), float(match[3])
    family = FAMILIES[key]
    step, offset = family.layers_per_block, family.other_layers
    if depth < step + offset or (depth - offset) % step:
        valid = offset + step * max(1, round((depth - offset) / step))
        raise InvalidValueError(
            f"unknown model {name!r}: the depth of {key} is {step}n + {offset}; "
            f"nearest: {Architecture(key, valid, multiplier).name}"
        )
    if family.whole_multiplier and (multiplier < 1 or multiplier % 1):
        nearest = Architecture(key, depth, max(1, round(multiplier)))
        raise InvalidValueError(
            f"unknown model {name!r}: a width factor is a whole number from 1; nearest: {nearest.name}"
        )
    if int(32 * multiplier) < 1:
        raise InvalidValueError(
            f"unknown model {name!r}: the multiplier leaves no channel of 32; "
            f"nearest: {Architecture(key, depth, 1 / 32).name}"
        )
    return Architecture(key, depth, multiplier)


def describe(model: str | Architecture, dataset: str = "cifar10", outputs: int | None = None) -> Network:
    """Return a model's network for a data set, with so many outputs or as many as the data set needs.

    Raises InvalidValueError for an unknown name.
    """
    from .data import get_task  # imports NumPy and Pillow, not needed for names

    architecture = parse_name(model) if isinstance(model, str) else model
    return network.describe(architecture, outputs or get_task(dataset).outputs, network.widths(dataset))


def timm_name(architecture: Architecture) -> str:
    """The name in timm's manner, with the multiplier in hundredths; of a Wide ResNet, with its width factor.

    >>> timm_name(parse_name("pyd-concat-56-0.5"))
    'pyd_concat_56_050'
    """
    family, multiplier = architecture.family, architecture.multiplier
    ending = f"{multiplier:.0f}" if FAMILIES[family].whole_multiplier else f"{round(100 * multiplier):03}"
    return f"{family.replace('-', '_')}_{architecture.depth}_{ending}"


def list_models(pattern: str = "*", dataset: str | None = None) -> list[str]:
    """The names of the published models that match a wildcard `pattern`, in the order of the tables.

    With `dataset`, only those that have a published figure on it; raises InvalidValueError where none has.
    """
    if dataset is not None and dataset not in LABEL_SETS:
        raise unknown("data set", dataset, LABEL_SETS)
    names = [record.model for record in RECORDS if dataset in (None, record.dataset)]
    return [name for name in dict.fromkeys(names) if fnmatch.fnmatchcase(name, pattern)]


def find(model: str, dataset: str) -> Record | None:
    """The published row of a model on a data set, if there is one."""
    name = parse_name(model).name
    return next((record for record in RECORDS if (record.model, record.dataset) == (name, dataset)), None)


def select(
    models: Sequence[str] = ("*",),
    datasets: Sequence[str] = ("*",),
    depths: Sequence[int] = (),
    records: Sequence[Record] = RECORDS,
) -> list[Record]:
    """The rows of `records`, by default the published ones, whose model and data set match one of the wildcard
    patterns, in their order.

    Raises InvalidValueError for a pattern or depth that matches none of them, and where no row has all of them.
    """
    names = dict.fromkeys(record.dataset for record in records)
    for pattern in datasets:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            if pattern == "cifar100":
                raise InvalidValueError(
                    "no published figure is for 'cifar100' with its 100 classes: "
                    "the published CIFAR-100 column counts the 20 superclasses; nearest: cifar100-coarse"
                )
            raise unknown("data set", pattern, names)
    published = any(record.published for record in records)
    own = list(dict.fromkeys(record.model for record in records))
    for pattern in models:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in own):
            if not re.search(r"[*?\[]", pattern):
                parse_name(pattern)  # raises for what is no name at all
            kind, allowed = ("published model", "a name or a wildcard, as 'pyd-*-56-*'") if published else ("model", "")
            raise unknown(kind, pattern, own, allowed)
    own_depths = sorted({record.depth for record in records})
    for depth in depths:
        if depth not in own_depths:
            raise unknown("depth", depth, own_depths)
    found = [
        record
        for record in records
        if any(fnmatch.fnmatchcase(record.model, pattern) for pattern in models)
        and any(fnmatch.fnmatchcase(record.dataset, pattern) for pattern in datasets)
        and (not depths or record.depth in depths)
    ]
    if not found:
        asked = [value for value in (*models, *datasets, *map(str, depths)) if value != "*"]
        raise InvalidValueError(f"no row has all that is asked for: {', '.join(asked)}")
    return found
