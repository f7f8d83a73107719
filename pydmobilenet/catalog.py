"""Names of models, and their published figures.

`catalog.csv` has a row for each figure of the two published tables (README of the authors' repository, and
arXiv 1811.07083): error rates in %, parameters and multiply-adds ("FLOPs") in millions, exact counts of the authors'
graphs, and the checkpoint. An empty cell was not published.
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
# Data sets of the published tables, and their labels.
LABEL_SETS = {"cifar10": "10 classes", "cifar100-coarse": "20 superclasses", "imagenet32": "1,000 classes"}
# The published parameters are those of the 10-way head; for CIFAR-100, says the authors' README, add this.
HEAD_DIFFERENCE = (128 + 1) * (100 - 10)


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights in the authors' repository. For ImageNet32, `bytes` and `sha256` are unknown."""

    path: str
    bytes: int | None
    sha256: str
    git_blob_sha1: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def digest(self) -> str:
        """The strongest known digest, in the form of `fetching.digest`."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git:{self.git_blob_sha1}"


@dataclass(frozen=True)
class Record:
    """A row of a table: errors in %, parameters and multiply-adds in millions.

    `exact` has the counts of the authors' graph (None for Wide ResNets), `file` their weights, `note` a caveat. A
    `checkpoints.Checkpoint` is a row with a `path` and a `task`.
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
        return self.path is None

    @property
    def run(self) -> Path | None:
        """The directory of its run, if it has one."""
        return None

    @property
    def digest(self) -> str:
        """The digest of its weights, in the form of `fetching.digest`; empty if unknown."""
        return self.file.digest if self.file else ""

    @property
    def filename(self) -> str:
        """The name of its file of weights; empty if none is published."""
        return self.path.name if self.path else self.file.name if self.file else ""

    @property
    def short_path(self) -> str:
        """``RUN/FILE`` of a checkpoint, ``RUN/seed-N/FILE`` of one of several seeds; empty for a published row."""
        if self.path is None:
            return ""
        run = self.path.parent
        return "/".join([*([run.parent.name] if run.name.startswith("seed-") else []), run.name, self.path.name])

    @property
    def network(self) -> Network:
        return describe(self.model, self.dataset, self.task.outputs if self.task else None)

    @property
    def depth(self) -> int:
        return parse_name(self.model).depth

    @property
    def labels(self) -> str:
        return LABEL_SETS[self.dataset]

    @property
    def params_tolerance_m(self) -> float:
        """The tolerance of the published parameters in millions: the table rounds and cuts."""
        if self.model.startswith("wrn"):
            return 0.05
        return 0.01 if self.dataset == "imagenet32" else 0.001


def _number(text: str, kind: type = float) -> Any:
    return kind(text) if text else None


def _read() -> tuple[Record, ...]:
    text = Path(__file__).with_name("catalog.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    ten_way = {row["model"]: row for row in rows if row["dataset"] == "cifar10"}
    return tuple(_record(row, ten_way) for row in rows)


def _record(row: dict[str, str], ten_way: dict[str, dict[str, str]]) -> Record:
    params, flops = _number(row["params_m"]), _number(row["flops_m"])
    if row["dataset"] == "cifar100-coarse":  # the table has one column for both
        params = round(float(ten_way[row["model"]]["params_m"]) + HEAD_DIFFERENCE / 1e6, 3)
        flops = float(ten_way[row["model"]]["flops_m"])
    exact = [_number(row[f"exact_{count}"], int) for count in ("parameters", "multiply_adds")]
    return Record(
        model=row["model"],
        dataset=row["dataset"],
        top1_error=float(row["top1_error"]),
        top5_error=_number(row["top5_error"]),
        params_m=params,
        flops_m=flops,
        exact=Complexity(*exact) if all(exact) else None,
        file=PublishedFile(row["path"], _number(row["bytes"], int), row["sha256"], row["git_blob_sha1"])
        if row["path"]
        else None,
        note=row["note"],
    )


RECORDS = _read()


def parse_name(name: str) -> Architecture:
    """Parse a model's name, published or not. Raises InvalidValueError with the nearest valid names."""
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
    nearest = reason = None
    if depth < step + offset or (depth - offset) % step:
        reason = f"the depth of {key} is {step}n + {offset}"
        nearest = Architecture(key, offset + step * max(1, round((depth - offset) / step)), multiplier)
    elif family.whole_multiplier and (multiplier < 1 or multiplier % 1):
        reason = "a width factor is a whole number from 1"
        nearest = Architecture(key, depth, max(1, round(multiplier)))
    elif int(32 * multiplier) < 1:
        reason, nearest = "the multiplier leaves no channel of 32", Architecture(key, depth, 1 / 32)
    if nearest:
        raise InvalidValueError(f"unknown model {name!r}: {reason}; nearest: {nearest.name}")
    return Architecture(key, depth, multiplier)


def describe(model: str | Architecture, dataset: str = "cifar10", outputs: int | None = None) -> Network:
    """Return a model's network for a data set, by default with its number of outputs. Raises InvalidValueError."""
    from .data import get_task  # imports NumPy and Pillow, not needed for names

    architecture = parse_name(model) if isinstance(model, str) else model
    return network.describe(architecture, outputs or get_task(dataset).outputs, network.widths(dataset))


def timm_name(architecture: Architecture) -> str:
    """Return the name in timm's form, with the multiplier in hundredths, or the width factor of a Wide ResNet.

    >>> timm_name(parse_name("pyd-concat-56-0.5"))
    'pyd_concat_56_050'
    """
    family, multiplier = architecture.family, architecture.multiplier
    ending = f"{multiplier:.0f}" if FAMILIES[family].whole_multiplier else f"{round(100 * multiplier):03}"
    return f"{family.replace('-', '_')}_{architecture.depth}_{ending}"


def list_models(pattern: str = "*", dataset: str | None = None) -> list[str]:
    """List the published models that match a wildcard `pattern`, in the order of the tables.

    With `dataset`, only those with a published figure for it. Raises InvalidValueError for another data set.
    """
    if dataset is not None and dataset not in LABEL_SETS:
        raise unknown("data set", dataset, LABEL_SETS)
    names = [record.model for record in RECORDS if dataset in (None, record.dataset)]
    return [name for name in dict.fromkeys(names) if fnmatch.fnmatchcase(name, pattern)]


def find(model: str, dataset: str) -> Record | None:
    """Find the published row of a model for a data set."""
    name = parse_name(model).name
    return next((record for record in RECORDS if (record.model, record.dataset) == (name, dataset)), None)


def select(
    models: Sequence[str] = ("*",),
    datasets: Sequence[str] = ("*",),
    depths: Sequence[int] = (),
    records: Sequence[Record] = RECORDS,
) -> list[Record]:
    """Select rows by wildcards for model and data set, and by depth, in their order.

    Raises InvalidValueError for a pattern or depth without any row, and for no row that matches all of them.
    """
    names = dict.fromkeys(record.dataset for record in records)
    for pattern in datasets:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            if pattern == "cifar100":
                raise InvalidValueError(
                    "the published CIFAR-100 figures are for the 20 superclasses; nearest: cifar100-coarse"
                )
            raise unknown("data set", pattern, names)
    model_names = list(dict.fromkeys(record.model for record in records))
    for pattern in models:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in model_names):
            if not re.search(r"[*?\[]", pattern):
                parse_name(pattern)  # raises for an invalid name
            if any(record.published for record in records):
                raise unknown("published model", pattern, model_names, "a name or a wildcard, as 'pyd-*-56-*'")
            raise unknown("model", pattern, model_names)
    all_depths = sorted({record.depth for record in records})
    for depth in depths:
        if depth not in all_depths:
            raise unknown("depth", depth, all_depths)
    selected = [
        record
        for record in records
        if any(fnmatch.fnmatchcase(record.model, pattern) for pattern in models)
        and any(fnmatch.fnmatchcase(record.dataset, pattern) for pattern in datasets)
        and (not depths or record.depth in depths)
    ]
    if not selected:
        given = [value for value in (*models, *datasets, *map(str, depths)) if value != "*"]
        raise InvalidValueError(f"no row matches all of {', '.join(given)}")
    return selected
