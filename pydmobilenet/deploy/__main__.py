"""python -m pydmobilenet.deploy onnx: a network as an ONNX file, shown to be the same function."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .. import cli, fetching, files
from ..data import Task, get_dataset
from ..gluon import runtime
from ..text import printable

IMAGES = 100  # on which Gluon and ONNX Runtime are compared


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m pydmobilenet.deploy")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    onnx = commands.add_parser(
        "onnx",
        help="write a network as an ONNX file",
        description="Write a network as an ONNX file, once it has been shown to answer as the Gluon network does.",
    )
    option = onnx.add_argument
    cli.add_network(onnx)
    option("--output", required=True, metavar="FILE", help="the file to write, as net.onnx")
    option("--uint8-input", action="store_true", help="take (N, 32, 32, 3) in uint8 and normalise inside")
    option("--no-fuse", action="store_true", help="write the literal network: no batch normalisation folded")
    option("--data-dir", type=cli.directory, metavar="DIR", help="compare on this data's test images (default: random)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    network = cli.network(arguments)
    name, task = network.name, network.task
    output = fetching.expanded(arguments.output)
    files.check(output)  # before any work is done
    images, kind = comparison_images(task, arguments.data_dir, arguments.dataset)

    runtime.use_all_instructions()
    from ..onnx.export import export  # MXNet takes a while to import: not before the command is known to be right

    file, net = network.file(), network.load("cpu")
    metadata = {
        "model": name,
        "weights": f"{file.name} {fetching.digest(file, 'sha256')}",
        "fused": str(not arguments.no_fuse),
    }
    found = export(net, task, output, images, not arguments.no_fuse, arguments.uint8_input, metadata)
    wrote = printable(f"wrote {output}: {name} for {task.title}, {output.stat().st_size / 1e6:.2f} MB")
    print(
        f"{wrote}; on {len(images)} {kind} images its logits are within {found.logits:.1e} of their range of Gluon's, "
        "and all classes are the same"
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


if __name__ == "__main__":
    cli.run(main)
