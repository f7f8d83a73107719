"""Write a network as an ONNX file, once it has been shown to answer as the network in the reference engine does; or, by
--format huggingface, as a directory that timm reads.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from .. import api
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    options.add_network(parser)
    option("--format", default="onnx", metavar="NAME", help="onnx (default), or huggingface: a directory")
    text = "the file to write, as net.onnx, - for standard output, or the directory"
    option("--output", required=True, type=options.output_file, metavar="PATH", help=text)
    option("--uint8-input", action="store_true", help="take (N, H, W, 3) in uint8 and normalise inside")
    text = "write the literal network: no batch normalisation folded"
    option("--no-fuse", dest="fused", action="store_false", help=text)
    text = "leave out latency and memory, which take a second"
    option("--no-measure", dest="measure", action="store_false", help=text)
    text = "compare on this data's test images (default: random)"
    option("--data-dir", type=options.directory, metavar="DIR", help=text)
    options.add_engine(parser)


def run(output: Path, **others: Any) -> int:
    options.use_all_processors()
    api.export(output=output, **others, say=functools.partial(print, file=options.status_stream(output)))
    return 0
