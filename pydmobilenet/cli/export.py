"""Write a network as an ONNX file, once it has been shown to answer as the network in the reference engine does."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .. import engine, fetching, files
from ..data import Task, get_dataset
from ..text import printable
from . import options

IMAGES = 100  # on which the file and the reference are compared
TITLES = {"gluon": "Gluon's", "onnxruntime": "the literal network's"}


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    options.add_network(parser)
    option("--output", required=True, metavar="FILE", help="the file to write, as net.onnx")
    option("--uint8-input", action="store_true", help="take (N, 32, 32, 3) in uint8 and normalise inside")
    option("--no-fuse", action="store_true", help="write the literal network: no batch normalisation folded")
    option(
        "--data-dir",
        type=options.directory,
        metavar="DIR",
        help="compare on this data's test images (default: random)",
    )
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    source = options.network(arguments)
    output = fetching.expanded(arguments.output)
    files.check(output)  # before any work is done
    images, kind = comparison_images(source.task, arguments.data_dir, arguments.dataset)
    arguments.device = "cpu"
    reference = options.choose_engine(arguments, fused=False).engine
    engine.check_onnxruntime()
    from ..onnx.export import export

    file, network, arrays = source.file(), source.network, source.arrays()
    metadata = {
        "model": source.name,
        "weights": f"{file.name} {fetching.digest(file, 'sha256')}",
        "fused": str(not arguments.no_fuse),
    }
    answer = reference.load(network, arrays)
    form = not arguments.no_fuse, arguments.uint8_input, metadata
    found = export(network, arrays, source.task, output, images, answer, *form)
    size = output.stat().st_size / 1e6
    print(
        f"{printable(f'wrote {output}: {source.name} for {source.task.title}')}, {size:.2f} MB; on {len(images)} "
        f"{kind} images its logits are within {found.logits:.1e} of their range of {TITLES[reference.name]}, and all "
        "classes are the same"
    )
    return 0


def comparison_images(task: Task, data_dir: Path | None, dataset: str | None) -> tuple[np.ndarray, str]:
    """Images (N, 3, 32, 32) in uint8, and what they are: of the test set where it is at hand, random ones elsewhere.

    A `data_dir` or `dataset` that was given has to be there, and to be of the task.
    """
    if data_dir is not None or task.name == "digits" or (dataset or "").startswith("folder:"):
        test = get_dataset(dataset or task.name, "test", data_dir, skip_bad=True, task=task)  # any of them will do
        return test.images[:IMAGES], "test"
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 32, 32), np.uint8), "random"
