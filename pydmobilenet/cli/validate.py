"""Check the published error rates against what the authors' own weights answer, and those of trained networks.

exit code: 0 all that was evaluated is as published or recorded; 1 a row differs or, with --require-all, was not
evaluated; 2 a mistake in the command; 3 nothing could be evaluated. Only the whole official test set is judged.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from .. import api, zoo
from ..data import Dataset, get_task
from ..reporting import classes, tables
from ..reporting.listing import layer_table
from ..text import printable
from ..validation import Result, exit_code
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("runs", nargs="*", metavar="RUN", help="as --weights (default: the tables)")
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    option("-d", "--dataset", **several, metavar="NAME", help="cifar10, cifar100-coarse, imagenet32, digits")
    option("-m", "--model", dest="what", **several, metavar="PATTERN", help="names or wildcards, as 'pyd-concat-*'")
    text = "29, 56 or 28 (the Wide ResNets)"
    option("-l", "--depth", **several, type=options.positive, metavar="N", help=text)
    text = "runs, files that record their network, or published (default): the tables and the bundled networks"
    option("--weights", "-r", "--run", **several, metavar="PATH", help=text)
    options.add_device(parser)
    options.add_data_dir(parser)
    options.add_skip_bad(parser)
    options.add_weights_dir(parser)
    options.add_engine(parser)
    option("--batch-size", type=options.positive, metavar="N", help="images a call (default: what is fastest)")
    option("--limit", type=options.positive, metavar="N", help="only the first N images")
    text = "write the table there, as Markdown, CSV, JSON and a web page"
    option("--output", metavar="DIR", help=text)
    option("--require-all", action="store_true", help="a row that cannot be evaluated is a failure")
    text = "run the networks literally: no batch normalisation folded"
    option("--no-fuse", dest="fused", action="store_false", help=text)
    option("--print-net", action="store_true", help="print each network layer by layer")
    option("-q", "--quiet", action="store_true", help="print a line a data set, and the rows that differ")
    text = "print a line a network as soon as it is evaluated, as on a terminal"
    option("-v", "--verbose", action="store_true", help=text)


def run(
    runs: list[str], weights: list[str], print_net: bool, require_all: bool, quiet: bool, verbose: bool, **others: Any
) -> int:
    if verbose or (sys.stderr.isatty() and not quiet):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.use_all_processors()
    width = options.terminal_width()

    def show(dataset: Dataset | None, rows: Sequence[Result]) -> None:
        for record in (row.record for row in rows if print_net):
            print(printable(f"{record.model} on {record.dataset}"))
            task = record.task or get_task(record.dataset)
            print(layer_table(zoo.describe(record.model, task.name, task.outputs), task.image))
        print(tables.summary(rows) if quiet else classes.with_classes(dataset, rows, width), flush=True)

    progress = False if quiet else None
    results = api.validate(weights=[*runs, *weights], processes=None, progress=progress, show=show, **others)
    return exit_code(results, require_all)
