"""Download data sets and published weights ahead of time."""

from __future__ import annotations

import argparse

from .. import catalog
from ..reporting import listing
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_pattern(parser)
    options.add_data_dir(parser)
    options.add_weights_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    records = options.records(arguments, catalog.RECORDS)
    return 1 if listing.fetch(records, arguments.data_dir, arguments.weights_dir) else 0
