"""python -m pydmobilenet convert: a checkpoint of the authors in Gluon's structural format."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import catalog, cli
from .data import get_task


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m pydmobilenet")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser(
        "convert",
        help="write a checkpoint of the authors in Gluon's structural format",
        description="Write a checkpoint of the authors in Gluon's structural format, as net.load_parameters reads it.",
    )
    convert.add_argument("source", type=Path, help="a .params file of the authors")
    convert.add_argument("target", type=Path, help="the file to write")
    convert.add_argument("-m", "--model", required=True, metavar="NAME", help="as pyd-concat-56-0.5")
    convert.add_argument("-d", "--dataset", default="cifar10", metavar="NAME", help="default: cifar10")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    architecture = catalog.parse_name(arguments.model)
    get_task(arguments.dataset)

    from . import weights, zoo  # MXNet takes a while to import: not before the command is known to be right

    net = zoo.build(architecture, arguments.dataset)
    net.initialize()
    weights.convert(arguments.source, arguments.target, net)
    print(f"wrote {arguments.target}")
    return 0


if __name__ == "__main__":
    cli.run(main)
