"""Check the published error rates against what the authors' own weights answer, and those of trained networks.

exit code: 0 all that was evaluated is as published or recorded; 1 a row differs or, with --require-all, was not
evaluated; 2 a mistake in the command; 3 nothing could be evaluated. Only the whole official test set is judged.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import catalog, checkpoints, fetching, validation, zoo
from ..catalog import Record
from ..data import dataset_name, get_task
from ..errors import InvalidValueError, UserError
from ..reporting import classes, html, tables
from ..reporting.listing import layer_table
from ..text import printable
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("runs", nargs="*", metavar="RUN", help="as --weights (default: the tables)")
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    option("-d", "--dataset", **several, metavar="NAME", help="cifar10, cifar100-coarse, imagenet32, digits")
    option("-m", "--model", **several, metavar="PATTERN", help="names or wildcards, as 'pyd-concat-*'")
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
    option("--output", type=options.output_directory, metavar="DIR", help=text)
    option("--require-all", action="store_true", help="a row that cannot be evaluated is a failure")
    option("--no-fuse", action="store_true", help="run the networks literally: no batch normalisation folded")
    option("--print-net", action="store_true", help="print each network layer by layer")
    option("-q", "--quiet", action="store_true", help="print a line a data set, and the rows that differ")
    text = "print a line a network as soon as it is evaluated, as on a terminal"
    option("-v", "--verbose", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    records = selected(arguments)
    choice = options.choose_engine(arguments, fused=not arguments.no_fuse)
    if not arguments.quiet:
        print(f"device: {choice.engine.device}; engine: {choice.why}", file=sys.stderr)
    if arguments.verbose or (sys.stderr.isatty() and not arguments.quiet):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.print_net:
        print_networks(records)
    found = validation.validate(
        records,
        choice.engine,
        data_dir=arguments.data_dir,
        weights=partial(checkpoints.load_record, weights_dir=arguments.weights_dir),
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        processes=choice.engine.processes,
        keep_answers=bool(arguments.output) or any(record.run for record in records),
        skip_bad=arguments.skip_bad,
    )
    return show(found, arguments)


def selected(arguments: argparse.Namespace) -> list[Record]:
    """The rows that the options select."""
    chosen = [*arguments.runs, *arguments.weights]
    if set(chosen) == {checkpoints.PUBLISHED}:
        chosen = []
    own = [checkpoints.find(weights=path) for path in chosen]
    rows: list[Record] = [*own] or [*catalog.RECORDS, *checkpoints.bundled()]
    if chosen:
        arguments.data_dir = folder_of_runs(arguments) or arguments.data_dir
    records = catalog.select(arguments.model or ["*"], arguments.dataset or ["*"], arguments.depth, rows)
    if not records:
        raise InvalidValueError("no row has all of the model, data set and depth asked for")
    return records


def folder_of_runs(arguments: argparse.Namespace) -> Path | None:
    """The one folder that ``--dataset folder:PATH`` names for runs to be evaluated on, taken out of the data sets."""
    arguments.dataset = list(map(dataset_name, arguments.dataset))
    folders = [name for name in arguments.dataset if name.startswith("folder:")]
    if len(folders) + (arguments.data_dir is not None) > 1:
        raise UserError("--dataset folder:PATH and --data-dir name several places of the data: give one of them")
    arguments.dataset = [name for name in arguments.dataset if name not in folders]
    return fetching.expanded(folders[0].partition(":")[2]) if folders else None


def print_networks(records: Sequence[Record]) -> None:
    for record in records:
        print(printable(f"{record.model} on {record.dataset}"))
        task = record.task or get_task(record.dataset)
        print(layer_table(zoo.describe(record.model, task.name, task.outputs), task.image))


def show(found: validation.Found, arguments: argparse.Namespace) -> int:
    """Print and write the results as they come; the exit code."""
    shown: list[str] = []
    sections: list[html.Section] = []
    results: list[validation.Result] = []
    width = options.terminal_width()
    for dataset, rows in found:
        if dataset and dataset.note and not arguments.quiet:
            print(printable(f"data: {dataset.note}"), file=sys.stderr)
        own = [classes.markdown(dataset, row) for row in rows if dataset and row.answers and row.record.run]
        shown += [tables.markdown(dataset, rows, origins=True), *own]
        results += rows
        if arguments.output:  # after each data set: an interruption loses no more than the one under way
            sections.append(html.section(dataset, rows, len(sections)))
            tables.write(arguments.output, shown, results, html.page(sections, results))
        if arguments.quiet:
            print(tables.summary(rows), flush=True)
        else:
            print("\n".join([tables.markdown(dataset, rows, width), *own]), flush=True)
    return validation.exit_code(results, arguments.require_all)
