#!/usr/bin/env python3
"""Check the published error rates against what the authors' own weights answer, and those of trained networks."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

try:
    from pydmobilenet import catalog, cli, fetching, validation
    from pydmobilenet.checkpoints import runs
    from pydmobilenet.errors import InvalidValueError, UserError, unknown
    from pydmobilenet.gluon import runtime
    from pydmobilenet.reporting import html
    from pydmobilenet.reporting import tables as report
    from pydmobilenet.text import printable
except ImportError as error:
    print(f"run_validation.py: error: {error}", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    print("run_validation.py: interrupted", file=sys.stderr)
    sys.exit(130)

EPILOG = """exit code: 0 all that was evaluated is as published or recorded; 1 a row differs or, with --require-all, was
not evaluated; 2 a mistake in the command; 3 nothing could be evaluated. Only the whole official test set is judged."""


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__, epilog=EPILOG)
    option = parser.add_argument
    option(
        "-d",
        "--dataset",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="cifar10, cifar100-coarse, imagenet32, digits",
    )
    option(
        "-m",
        "--model",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="names or wildcards, as 'pyd-concat-*'",
    )
    option(
        "-l",
        "--depth",
        nargs="+",
        action="extend",
        default=[],
        type=cli.positive,
        metavar="N",
        help="29, 56 or 28 (the Wide ResNets)",
    )
    option(
        "-r",
        "--run",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="DIR",
        help="runs of train.py, or .params files of them, instead of the tables",
    )
    cli.add_device(parser)
    cli.add_data_dir(parser)
    cli.add_skip_bad(parser)
    cli.add_weights_dir(parser)
    option("--engine", default="gluon", metavar="NAME", help="gluon (default), or onnxruntime: the same on the CPU")
    option("--batch-size", type=cli.positive, metavar="N", help="images a call (default: 50 on a CPU, 500 on a GPU)")
    option("--limit", type=cli.positive, metavar="N", help="only the first N images")
    option(
        "--output",
        type=cli.output_directory,
        metavar="DIR",
        help="write the table there, as Markdown, CSV, JSON and a web page",
    )
    option("--require-all", action="store_true", help="a row that cannot be evaluated is a failure")
    option("--no-fuse", action="store_true", help="run the networks literally: no batch normalisation folded")
    option("--print-net", action="store_true", help="print each network layer by layer")
    option("-q", "--quiet", action="store_true", help="print a line a data set, and the rows that differ")
    option(
        "-v",
        "--verbose",
        action="store_true",
        help="print a line a network as soon as it is evaluated, as on a terminal",
    )
    return parser.parse_args()


def folder_of_runs(arguments: argparse.Namespace) -> Path | None:
    """The one folder that ``--dataset folder:PATH`` names for runs to be evaluated on, taken out of the data sets."""
    folders = [name for name in arguments.dataset if name.startswith("folder:")]
    if len(folders) + (arguments.data_dir is not None) > 1:
        raise UserError("--dataset folder:PATH and --data-dir name several places of the data: give one of them")
    arguments.dataset = [name for name in arguments.dataset if name not in folders]
    return fetching.expanded(folders[0].partition(":")[2]) if folders else None


def main() -> int:
    arguments = parse_arguments()
    rows = [runs.of_run(path) for path in arguments.run] or [*catalog.RECORDS, *runs.bundled()]
    if arguments.run:
        arguments.data_dir = folder_of_runs(arguments) or arguments.data_dir
    records = catalog.select(arguments.model or ["*"], arguments.dataset or ["*"], arguments.depth, rows)
    if not records:
        raise InvalidValueError("no row has all of the model, data set and depth asked for")

    runtime.use_all_instructions()
    from pydmobilenet.engine import ENGINES
    from pydmobilenet.gluon import devices  # MXNet takes a while to import: not before the command is known to be right

    if arguments.engine not in ENGINES:
        raise unknown("engine", arguments.engine, ENGINES)
    device = devices.choose(cli.device_name(arguments.device))
    make = ENGINES[arguments.engine]
    engine = make(device.context, arguments.weights_dir, not arguments.no_fuse, arguments.print_net)
    if not arguments.quiet:
        print(f"device: {device.why}", file=sys.stderr)
    if arguments.verbose or (sys.stderr.isatty() and not arguments.quiet):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    batch_size = arguments.batch_size or engine.batch_size
    tables, sections, results = [], [], []
    width = cli.terminal_width()
    options = (
        arguments.data_dir,
        batch_size,
        arguments.limit,
        engine.processes,
        bool(arguments.output),
        arguments.skip_bad,
    )
    for dataset, rows in validation.validate(records, engine, *options):
        if dataset and dataset.note and not arguments.quiet:
            print(printable(f"data: {dataset.note}"), file=sys.stderr)
        tables.append(report.markdown(dataset, rows, origins=True))
        results += rows
        if arguments.output:  # after each data set: an interruption loses no more than the one under way
            sections.append(html.section(dataset, rows, len(sections)))
            report.write(arguments.output, tables, results, html.page(sections, results))
        print(report.summary(rows) if arguments.quiet else report.markdown(dataset, rows, width), flush=True)
    return validation.exit_code(results, arguments.require_all)


if __name__ == "__main__":
    cli.run(main)
