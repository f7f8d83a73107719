"""Export of networks to ONNX files, compared with an engine's answers before they are written."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from .. import exporting, files, machine
from ..checkpoints import Checkpoint
from ..data import Task, normalise
from ..errors import UnusableError
from ..exporting import Calibration, Difference, Predict, check_finite, comparison_images
from ..folding import fold
from ..network import Network
from .cost import measure as measure_cost
from .graph import convert
from .quantise import quantise
from .session import predictor

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["comparison_images", "difference", "export", "export_source"]


def export(
    network: Network,
    arrays: Mapping[str, np.ndarray],
    task: Task,
    output: Path,
    images: np.ndarray,
    reference: Predict,
    fused: bool = True,
    uint8_input: bool = False,
    metadata: Mapping[str, str] | None = None,
    calibration: Calibration | None = None,
) -> Difference:
    """Write a network as an ONNX file, as `graph.convert` describes, folded if `fused`; in int8 by a `calibration`.

    First check it against the standard, and its logits on `images` (N, 3, H, W) in uint8 against the `reference`, a
    function of normalised images. Raises BadFileError if they differ, UnusableError if it cannot be written. No file is
    left behind then.
    """
    check_finite(arrays)  # before folding, which may remove them
    model = convert(*(fold(network, arrays) if fused else (network, arrays)), task, uint8_input, metadata)
    onnx.checker.check_model(model, full_check=True)
    apart = difference(reference, task, model, images, uint8_input)
    apart.check(len(images))
    content = model.SerializeToString()
    if calibration:
        pixels = calibration.images
        content = quantise(model, exporting.channels_last(pixels) if uint8_input else normalise(pixels, task))
    files.write(output, content)
    return apart


def difference(
    reference: Predict, task: Task, model: onnx.ModelProto, images: np.ndarray, uint8_input: bool = False
) -> Difference:
    """Compare a model in ONNX Runtime with a reference, on images (N, 3, H, W) in uint8."""
    return exporting.difference(reference, predictor(model), task, images, uint8_input)


def export_source(
    source: Checkpoint,
    output: Path,
    images: np.ndarray,
    kind: str,
    reference: Engine,
    fused: bool,
    uint8_input: bool,
    measure: bool,
    say: Callable[[str], None],
    shown: Path | None = None,
    calibration: Calibration | None = None,
) -> Difference:
    """Export a checkpoint with its name and hash as metadata, compared on `images` of a `kind`.

    `say` is called with the result, under the name `shown` (by default the output's), and with latency and memory if
    `measure`. The output may be a stream.
    """
    weights, arrays = f"{source.locate().name} sha256:{source.sha256}", source.arrays()
    metadata = {"model": source.model, "weights": weights, "fused": str(fused)}
    predict = reference.load(source.network, arrays)
    is_stream = files.stream(output) is not None
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "net.onnx") if is_stream else output  # a stream cannot be measured
        how: dict[str, Any] = {"metadata": {**metadata, **({"dtype": "int8"} if calibration else {})}}
        how["calibration"] = calibration
        apart = export(source.network, arrays, source.task, file, images, predict, fused, uint8_input, **how)
        content = file.read_bytes()
        if is_stream:
            files.write(output, content)
        say(exporting.written(shown or output, source, len(content), calibration, apart, images, kind, reference.name))
        if calibration:
            net = predictor(content)
            say(calibration.cost(predict, exporting.of_pixels(net, source.task) if uint8_input else net))
        if measure:
            try:
                cost = measure_cost(file)
            except UnusableError as error:  # the file is written all the same
                warnings.warn(str(error), stacklevel=2)
                return apart
            say(
                f"one image on one thread takes {cost.p50:.2f} ms (p50), {cost.p99:.2f} ms (p99), on "
                f"{machine.cpu_name()}; a process that does nothing else takes {cost.memory:.0f} MB"
            )
    return apart
