"""Export of networks to TensorFlow Lite files, compared with an engine's answers before they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import exporting, files, machine
from ..checkpoints import Checkpoint
from ..data import about
from ..exporting import Calibration, Difference
from ..processes import processors
from . import c_array, graph, metadata, quantise, session

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
    calibration: Calibration | None = None,
    as_c: bool = False,
) -> Difference:
    """Export a checkpoint, compared in float32 on `images` of a `kind`; in int8 by a `calibration`.

    `as_c` writes a C array for a microcontroller. `say` is called with the result, and with latency and memory if
    `measure`. Raises BadFileError if the answers differ. No file is left behind then.
    """
    arrays, task = source.arrays(), source.task
    exporting.check_finite(arrays)
    network = graph.prepare(source.network, arrays, task, whole=as_c)
    entries = metadata.dump(properties(source, calibration))
    model = graph.convert(*network, task.image, metadata=entries)
    before = reference.load(source.network, arrays)
    apart = exporting.difference(before, session.predictor(model), task, images, True)
    apart.check(len(images))
    scales = None
    if calibration:
        scales = quantise.scales(*network, task.image, exporting.channels_last(calibration.images))
        model = graph.convert(*network, task.image, scales, entries)
    names = [task.class_name(label) for label in range(source.network.outputs)]
    if as_c:
        model = graph.convert(*network, task.image, scales)
        files.write(output, c_array.dump(model, f"{source.model} for {task.title}", names))
    else:
        files.write(output, metadata.with_labels(model, names))
    say(exporting.written(output, source, len(model), calibration, apart, images, kind, reference.name))
    if calibration:
        kernels = session.BUILT_IN if as_c else session.XNNPACK
        after = session.predictor(model, processors(), kernels)
        say(calibration.cost(before, exporting.of_pixels(after, task)))
    if measure and not as_c:
        p50, p99 = session.latency(model)
        say(f"one image on one thread takes {p50:.2f} ms (p50), {p99:.2f} ms (p99), by LiteRT on {machine.cpu_name()}")
    if measure and (arena := session.arena(model)) is not None:
        say(f"tflite-micro needs {arena / 1e3:.0f} kB of memory (arena) beside the file")
    return apart


def properties(source: Checkpoint, calibration: Calibration | None) -> dict[str, str]:
    """Return what a file says of its network."""
    weights = f"{source.locate().name} sha256:{source.sha256}"
    dtype = "int8" if calibration else "float32"
    return {"model": source.model, "weights": weights, "dtype": dtype, **about(source.task)}
