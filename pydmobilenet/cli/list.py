"""List the zoo: complexity, errors, and the weights on this machine."""

from __future__ import annotations

import argparse

from .. import catalog, checkpoints
from ..reporting.listing import zoo_table
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_pattern(parser)
    options.add_weights_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    records = options.records(arguments, [*catalog.RECORDS, *checkpoints.bundled()])
    print(zoo_table(records, arguments.weights_dir, options.terminal_width()))
    return 0
