"""List the zoo: complexity, errors, and the weights on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import catalog, checkpoints
from ..reporting.listing import zoo_table
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_pattern(parser)
    options.add_weights_dir(parser)


def run(pattern: str, dataset: list[str], weights_dir: Path | None) -> int:
    records = catalog.select([pattern], dataset, records=[*catalog.RECORDS, *checkpoints.bundled()])
    print(zoo_table(records, weights_dir, options.terminal_width()))
    return 0
