"""The zoo and its networks as tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .. import network, zoo
from ..catalog import Record
from ..checkpoints import Checkpoint, weights
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


def _place(record: Record, root: Path | None) -> str:
    """Where the weights of a record are, or what is wrong with them; nothing where they are not here."""
    try:
        found = record.locate() if isinstance(record, Checkpoint) else record.file and weights.find(record.file, root)
        return printable(os.path.relpath(found) if found and found.is_relative_to(Path.cwd()) else found or "")
    except UserError as error:
        return printable(f"({error})")


def _number(value: int) -> str:
    return f"{value:,}" if value else ""
