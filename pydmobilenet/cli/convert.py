"""Write parameters under their structural names, as Gluon's or a safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import checkpoints
from ..checkpoints import weights
from ..text import printable
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=f"a run, {options.WEIGHTS_FILES}")
    parser.add_argument("target", type=Path, help="the file to write, .params or .safetensors")
    text = "as pyd-concat-56-0.5; of a source that tells it, its own"
    parser.add_argument("-m", "--model", metavar="NAME", help=text)
    options.add_dataset(parser)


def run(source: Path, target: Path, model: str | None, dataset: str | None) -> int:
    weights.check_target(target)
    found = checkpoints.find(model, dataset, source)
    weights.write(target, found.arrays(), found.metadata())
    print(printable(f"wrote {target}"))
    return 0
