"""Export of networks to ONNX files, compared with an engine's answers before they are written."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx

from .. import files, machine
from ..checkpoints import Checkpoint
from ..data import Task, dataset_name, folder, get_dataset, normalise
from ..data.datasets import located
from ..data.splits import kinds
from ..errors import BadFileError, UnusableError
from ..folding import fold
from ..network import Network
from ..text import printable
from .cost import measure as measure_cost
from .graph import check_finite, convert
from .session import predictor

if TYPE_CHECKING:
    from ..engine import Engine

TOLERANCE = 1e-4  # of the logits' range, for rounding
BATCH = 50
IMAGES = 100  # compared


class Difference(NamedTuple):
    """The largest difference of two functions' logits by the first one's range, and the number of other classes."""

    logits: float
    classes: int


def export(
    network: Network,
    arrays: Mapping[str, np.ndarray],
    task: Task,
    output: Path,
    images: np.ndarray,
    reference: Callable[[np.ndarray], np.ndarray],
    fused: bool = True,
    uint8_input: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Difference:
    """Write a network as an ONNX file, as `graph.convert` describes, folded if `fused`.

    First check it against the standard, and its logits on `images` (N, 3, H, W) in uint8 against the `reference`, a
    function of normalised images. Raises BadFileError if they differ, UnusableError if it cannot be written. No file is
    left behind then.
    """
    check_finite(arrays)  # before folding, which may remove them
    model = convert(*(fold(network, arrays) if fused else (network, arrays)), task, uint8_input, metadata)
    onnx.checker.check_model(model, full_check=True)
    apart = difference(reference, task, model, images, uint8_input)
    if not apart.logits <= TOLERANCE or apart.classes:
        raise BadFileError(
            f"the exported network is another function: on {len(images)} images, its logits are {apart.logits:.1e} of "
            f"their range apart (allowed: {TOLERANCE:.0e}), and {apart.classes} classes differ; nothing was written"
        )
    files.write(output, model.SerializeToString())
    return apart


def difference(
    reference: Callable[[np.ndarray], np.ndarray],
    task: Task,
    model: onnx.ModelProto,
    images: np.ndarray,
    uint8_input: bool = False,
) -> Difference:
    """Compare a model in ONNX Runtime with a reference, on images (N, 3, H, W) in uint8."""
    predict = predictor(model)
    expected, logits = [], []
    for start in range(0, len(images), BATCH):
        pixels = images[start : start + BATCH]
        normal = normalise(pixels, task)
        expected.append(reference(normal))
        logits.append(predict(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if uint8_input else normal))
    expected, logits = np.concatenate(expected), np.concatenate(logits)
    apart = abs(expected - logits).max() / np.ptp(expected)
    return Difference(float(apart), int((expected.argmax(axis=1) != logits.argmax(axis=1)).sum()))


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
        apart = export(source.network, arrays, source.task, file, images, predict, fused, uint8_input, metadata)
        if is_stream:
            files.write(output, file.read_bytes())
        text = f"wrote {shown or output}: {source.model} for {source.task.title}"
        say(
            f"{printable(text)}, {file.stat().st_size / 1e6:.2f} MB; on {len(images)} {kind} images, same answers as "
            f"the trained network by {reference.name} (largest difference {100 * apart.logits:.5f} %)"
        )
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


def comparison_images(task: Task, data_dir: Path | None, dataset: str | None) -> tuple[np.ndarray, str]:
    """Return images (N, 3, H, W) in uint8 and their kind: a split of the data set if it is here, else random.

    A given `data_dir` or `dataset` has to exist and to fit the task.
    """
    here = task.name == "digits"
    if task.name.startswith("folder:"):  # a run records the whole path, a file only its name
        here = os.path.isabs(folder.place(task.name)) and os.path.isdir(folder.place(task.name))
    if data_dir is not None or here or (dataset and dataset_name(dataset).startswith("folder:")):
        name = located(dataset or task.name, data_dir)
        split = kinds(name)[-1]  # any split will do
        images = get_dataset(name, split, data_dir, skip_bad=True, task=task).images[:IMAGES]
        return images, "given" if split == folder.ALL else split
    return np.random.default_rng(0).integers(0, 256, (IMAGES, *task.image), np.uint8), "random"
