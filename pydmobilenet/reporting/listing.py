"""The zoo and its networks as tables, and their files ahead of time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .. import network, zoo
from ..catalog import Record, TrainedRecord
from ..checkpoints import runs, weights
from ..data import get_dataset, get_task
from ..errors import UserError
from ..text import printable
from .tables import grid


def zoo_table(records: Sequence[Record], root: Path | None = None, width: int | None = None) -> str:
    """A row for each record: exact parameters and multiply-adds, published or recorded error, and where its weights are
    on this machine; only whether, if the rows are to fit a `width`. Where the exact counts were not published, the
    published ones stand, with fewer digits.
    """
    rows = []
    for record in records:
        exact = record.exact or (None if record.published else zoo.describe(record.model, record.dataset).complexity())
        params = f"{exact.parameters / 1e6:.3f}" if exact else f"{record.params_m:g}"
        flops = f"{exact.multiply_adds / 1e6:.1f}" if exact else ""
        top5 = f" (top-5 {record.top5_error:.2f})" if record.top5_error is not None else ""
        rows.append(
            [record.model, record.dataset, params, flops, f"{record.top1_error:.2f}{top5}", _place(record, root)]
        )
    columns = ["model", "data set", "params, M", "mult-adds, M", "error, %", "weights here"]
    alignment = ["left", "left", "right", "right", "left", "left"]
    text = grid(rows, columns, alignment)
    if width is None or len(text.partition("\n")[0]) <= width:
        return text
    rows = [[*cells, "yes" if place else ""] for *cells, place in rows]
    return grid(rows, [*columns[:-1], "here"], alignment)


def layer_table(described: network.Network, image: tuple[int, int, int]) -> str:
    """A network, layer by layer: names as in the checkpoints, output for one image of a shape (3, H, W), parameters,
    multiply-adds.
    """
    shapes = described.shapes(image)
    rows = [
        [
            layer.name if layer.parameters else "",
            layer.operator,
            "x".join(map(str, shapes[layer.name])),
            _number(network.count(layer)),
            _number(layer.multiply_adds(shapes[layer.name])),
        ]
        for layer in described.layers
    ]
    rows.append(["together", "", "", *map(_number, described.complexity(image))])
    columns = ["layer", "operator", "output", "params", "mult-adds"]
    alignment = ["left", "left", "left", "right", "right"]
    return grid(rows, columns, alignment)


def fetch(records: Sequence[Record], data_dir: Path | None = None, weights_dir: Path | None = None) -> int:
    """Bring the data sets and published weights of some records to this machine, and print where each is.

    The answer is how many could not be had; their reasons are printed on standard error.
    """
    missing = 0
    for dataset in dict.fromkeys(record.dataset for record in records):
        for split in ("train", "test"):
            title = f"{get_task(dataset).title}, {split} images"
            missing += _obtained(title, partial(_source, dataset, split, data_dir))
    for record in records:
        if record.published and record.checkpoint:
            title = f"{record.model} for {record.dataset}"
            missing += _obtained(title, partial(weights.obtain, record.checkpoint, weights_dir))
    return missing


def _source(dataset: str, split: str, data_dir: Path | None) -> str:
    """Where a split is, once it is on this machine."""
    return get_dataset(dataset, split, data_dir).source


def _obtained(title: str, obtain: Callable[[], object]) -> bool:
    """Whether something could not be had."""
    try:
        print(printable(f"{title}: {obtain()}"), flush=True)
    except (UserError, OSError) as error:
        print(printable(f"{title}: {error}"), file=sys.stderr, flush=True)
        return True
    return False


def _place(record: Record, root: Path | None) -> str:
    """Where the weights of a record are, or what is wrong with them; nothing where they are not here."""
    if record.checkpoint is None:
        return ""
    try:
        found = runs.verified(record) if isinstance(record, TrainedRecord) else weights.find(record.checkpoint, root)
        return printable(os.path.relpath(found) if found and found.is_relative_to(Path.cwd()) else found or "")
    except UserError as error:
        return printable(f"({error})")


def _number(value: int) -> str:
    return f"{value:,}" if value else ""
