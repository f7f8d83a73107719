"""Write a checkpoint of the authors in Gluon's structural format."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import catalog, zoo
from ..checkpoints import weights
from ..data import get_task
from ..text import printable
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a .params file of the authors")
    parser.add_argument("target", type=Path, help="the file to write")
    parser.add_argument("-m", "--model", required=True, metavar="NAME", help="as pyd-concat-56-0.5")
    options.add_dataset(parser)


def run(arguments: argparse.Namespace) -> int:
    architecture = catalog.parse_name(arguments.model)
    dataset = get_task(arguments.dataset or "cifar10").name
    weights.convert(arguments.source, arguments.target, zoo.describe(architecture, dataset))
    print(printable(f"wrote {arguments.target}"))
    return 0
