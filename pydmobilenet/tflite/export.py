"""Export of networks to TensorFlow Lite files, compared with an engine's answers before they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import exporting, files, machine
from ..checkpoints import Checkpoint
from ..data import about
from ..exporting import Difference
from ..text import printable
from . import graph, metadata, session

if TYPE_CHECKING:
    from ..engine import Engine


def export_source(
    source: Checkpoint,
    output: Path,
    images: np.ndarray,
    kind: str,
    reference: Engine,
    measure: bool,
    say: Callable[[str], None],
) -> Difference:
    """Export a checkpoint in float32, compared on `images` of a `kind`; `say` the result, and the latency if `measure`.

    Raises BadFileError if the answers differ. No file is left behind then.
    """
    arrays = source.arrays()
    exporting.check_finite(arrays)
    network, folded = graph.prepare(source.network, arrays, source.task)
    model = graph.convert(network, folded, source.task.image, metadata=metadata.dump(properties(source)))
    predict = session.predictor(model)
    apart = exporting.difference(reference.load(source.network, arrays), predict, source.task, images, True)
    apart.check(len(images))
    content = metadata.with_labels(model, source.task.classes)
    files.write(output, content)
    say(
        f"{printable(f'wrote {output}: {source.model} for {source.task.title}')}, {len(content) / 1e6:.2f} MB; on "
        f"{len(images)} {kind} images, same answers as the trained network by {reference.name} (largest difference "
        f"{100 * apart.logits:.5f} %)"
    )
    if measure:
        p50, p99 = session.latency(model)
        say(f"one image on one thread takes {p50:.2f} ms (p50), {p99:.2f} ms (p99), by LiteRT on {machine.cpu_name()}")
    return apart


def properties(source: Checkpoint) -> dict[str, str]:
    """Return what a file says of its network."""
    weights = f"{source.locate().name} sha256:{source.sha256}"
    return {"model": source.model, "weights": weights, **about(source.task)}
