"""Networks as ONNX files, which are put in place only once they have been shown to be the same function."""

from __future__ import annotations

import os
import tempfile
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
from ..errors import BadFileError
from ..folding import fold
from ..network import Network
from ..text import printable
from . import cost
from .graph import check_finite, convert
from .session import predictor

if TYPE_CHECKING:
    from ..engine import Engine

TOLERANCE = 1e-4  # of the logits' range: what rounding may differ by
BATCH = 50  # images compared at once
IMAGES = 100  # on which a file and the reference are compared
OWNERS = {"gluon": "Gluon's", "pytorch": "PyTorch's", "onnxruntime": "the literal network's"}


class Difference(NamedTuple):
    """How far two functions are apart: the largest difference of their logits by the range of the first one's, and how
    many images they put into different classes.
    """

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
    """Write a network as an ONNX file, folded unless `fused` says otherwise; `graph.convert` has the form.

    Before the file is put in place, it is checked against the standard, and its logits on `images` (N, 3, H, W) in
    uint8 are compared with those of the `reference`: an engine's, for normalised images, of the network as it stands.
    Raises BadFileError where they differ by more than rounding, or `graph.convert` does; UnusableError where the file
    cannot be written. No file is left behind then.
    """
    check_finite(arrays)  # before they are folded: what is not finite may be gone then
    model = convert(*(fold(network, arrays) if fused else (network, arrays)), task, uint8_input, metadata)
    onnx.checker.check_model(model, full_check=True)
    found = difference(reference, task, model, images, uint8_input)
    if not found.logits <= TOLERANCE or found.classes:
        raise BadFileError(
            f"the exported network is another function: on {len(images)} images, its logits are {found.logits:.1e} of "
            f"their range apart (allowed: {TOLERANCE:.0e}), and {found.classes} classes differ; nothing was written"
        )
    files.write(output, model.SerializeToString())
    return found


def difference(
    reference: Callable[[np.ndarray], np.ndarray],
    task: Task,
    model: onnx.ModelProto,
    images: np.ndarray,
    uint8_input: bool = False,
) -> Difference:
    """How far ONNX Runtime's answers of a model are from those of a reference, on images (N, 3, H, W) in uint8."""
    other = predictor(model)
    expected, found = [], []
    for start in range(0, len(images), BATCH):
        pixels = images[start : start + BATCH]
        normal = normalise(pixels, task)
        expected.append(reference(normal))
        found.append(other(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if uint8_input else normal))
    expected, found = np.concatenate(expected), np.concatenate(found)
    apart = abs(expected - found).max() / np.ptp(expected)
    return Difference(float(apart), int((expected.argmax(axis=1) != found.argmax(axis=1)).sum()))


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
) -> Difference:
    """`export` for a network of the zoo or of a run, whose file tells its name and the hash of its weights.

    `say` is called with what was written and compared with the `reference` on images of a `kind`, and to `measure` the
    file with its latency and memory. The output may be a stream.
    """
    weights, arrays = f"{source.locate().name} sha256:{source.sha256}", source.arrays()
    told = {"model": source.model, "weights": weights, "fused": str(fused)}
    answers = reference.load(source.network, arrays)
    is_stream = files.stream(output) is not None
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "net.onnx") if is_stream else output  # a stream cannot be measured
        found = export(source.network, arrays, source.task, file, images, answers, fused, uint8_input, told)
        if is_stream:
            files.write(output, file.read_bytes())
        say(
            f"{printable(f'wrote {output}: {source.model} for {source.task.title}')}, {file.stat().st_size / 1e6:.2f} "
            f"MB; on {len(images)} {kind} images its logits are within {found.logits:.1e} of their range of "
            f"{OWNERS[reference.name]}, and all classes are the same"
        )
        if measure:
            measured = cost.measure(file)
            say(
                f"one image on one thread takes {measured.p50:.2f} ms (p50), {measured.p99:.2f} ms (p99), on "
                f"{machine.cpu_name()}; a process that does nothing else takes {measured.memory:.0f} MB"
            )
    return found


def comparison_images(task: Task, data_dir: Path | None, dataset: str | None) -> tuple[np.ndarray, str]:
    """Images (N, 3, H, W) in uint8, and what they are: of the data set where it is at hand, random ones elsewhere.

    A `data_dir` or `dataset` that was given has to be there, and to be of the task.
    """
    own = task.name == "digits"
    if task.name.startswith("folder:"):  # with its whole path in a run; in a file, it may be any of that name
        own = os.path.isabs(folder.place(task.name)) and os.path.isdir(folder.place(task.name))
    if data_dir is not None or own or (dataset and dataset_name(dataset).startswith("folder:")):
        name = located(dataset or task.name, data_dir)
        split = kinds(name)[-1]  # any of them will do
        images = get_dataset(name, split, data_dir, skip_bad=True, task=task).images[:IMAGES]
        return images, "given" if split == folder.ALL else split
    return np.random.default_rng(0).integers(0, 256, (IMAGES, *task.image), np.uint8), "random"
