"""Write a network as an ONNX file, once it has been shown to answer as the network in the reference engine does; or, by
--format huggingface, as a directory that timm reads.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from .. import engine, files, huggingface, processor
from ..checkpoints import Checkpoint
from ..text import printable
from . import options

TITLES = {"gluon": "Gluon's", "pytorch": "PyTorch's", "onnxruntime": "the literal network's"}


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    options.add_network(parser)
    option("--format", default="onnx", metavar="NAME", help="onnx (default), or huggingface: a directory")
    text = "the file to write, as net.onnx, - for standard output, or the directory"
    option("--output", required=True, type=options.output_file, metavar="PATH", help=text)
    option("--uint8-input", action="store_true", help="take (N, H, W, 3) in uint8 and normalise inside")
    option("--no-fuse", action="store_true", help="write the literal network: no batch normalisation folded")
    option("--no-measure", action="store_true", help="leave out latency and memory, which take a second")
    option(
        "--data-dir",
        type=options.directory,
        metavar="DIR",
        help="compare on this data's test images (default: random)",
    )
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    given = (not arguments.no_fuse, arguments.uint8_input, arguments.data_dir, arguments.engine)
    huggingface.check_format(arguments.format, *given)
    source = options.source(arguments)
    output = arguments.output
    if arguments.format == huggingface.FORMAT:
        huggingface.write(source, output)
        print(printable(f"wrote {output}: {source.model} for {source.task.title}, in Hugging Face's layout"))
    else:
        _write_onnx(source, output, arguments)
    return 0


def _write_onnx(source: Checkpoint, output: Path, arguments: argparse.Namespace) -> None:
    files.check(output)  # before any work is done
    engine.choose("onnxruntime", "cpu")  # which checks the file, and has to be here
    from ..onnx import cost, export

    images, kind = export.comparison_images(source.task, arguments.data_dir, arguments.dataset)
    arguments.device = "cpu"
    reference = options.choose_engine(arguments, fused=False).engine
    answers = reference.load(source.network, source.arrays())
    is_stream, status = files.stream(output) is not None, options.status_stream(output)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "net.onnx") if is_stream else output  # a stream cannot be measured
        found = export.export_source(source, file, images, answers, not arguments.no_fuse, arguments.uint8_input)
        if is_stream:
            files.write(output, file.read_bytes())
        print(
            f"{printable(f'wrote {output}: {source.model} for {source.task.title}')}, {file.stat().st_size / 1e6:.2f} "
            f"MB; on {len(images)} {kind} images its logits are within {found.logits:.1e} of their range of "
            f"{TITLES[reference.name]}, and all classes are the same",
            file=status,
        )
        if not arguments.no_measure:
            measured = cost.measure(file)
            print(
                f"one image on one thread takes {measured.p50:.2f} ms (p50), {measured.p99:.2f} ms (p99), on "
                f"{processor.cpu_name()}; a process that does nothing else takes {measured.memory:.0f} MB",
                file=status,
            )
