"""python -m pydmobilenet: classify images, list the zoo, look into a network, fetch files, convert checkpoints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import catalog, cli
from .checkpoints import runs
from .data import get_task
from .errors import BadFileError, InvalidValueError
from .gluon import runtime
from .text import printable


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m pydmobilenet", description=__doc__.partition(": ")[2].capitalize())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str = "") -> cli.Parser:
        made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
        made.set_defaults(run=COMMANDS[name])
        return made

    ends = "exit code: 0 all images are answered; 1 some were passed over by --skip-bad; 2 a mistake in the command"
    predict = command("predict", "classify images, of any size, by a network of the zoo", ends)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, or - for standard input")
    cli.add_network(predict)
    predict.add_argument("--top", type=cli.positive, default=3, metavar="K", help="classes an image (default: 3)")
    predict.add_argument("--json", action="store_true", help="print JSON")
    cli.add_skip_bad(predict)
    cli.add_device(predict)

    listing = command("list", "list the zoo: complexity, errors, and the weights on this machine")
    _pattern(listing)
    cli.add_weights_dir(listing)

    info = command("info", "show a network layer by layer")
    info.add_argument("model", metavar="MODEL", help="as pyd-concat-56-0.5, or a run of train.py")
    cli.add_dataset(info)

    fetch = command("fetch", "download data sets and published weights ahead of time")
    _pattern(fetch)
    cli.add_data_dir(fetch)
    cli.add_weights_dir(fetch)

    convert = command("convert", "write a checkpoint of the authors in Gluon's structural format")
    convert.add_argument("source", type=Path, help="a .params file of the authors")
    convert.add_argument("target", type=Path, help="the file to write")
    convert.add_argument("-m", "--model", required=True, metavar="NAME", help="as pyd-concat-56-0.5")
    cli.add_dataset(convert)
    return parser.parse_args()


def _pattern(parser: cli.Parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="as 'pyd-concat-*' (default: all)")
    parser.add_argument("-d", "--dataset", nargs="+", metavar="NAME", help="of the tables (default: all)")


def predict(arguments: argparse.Namespace) -> int:
    from .data.folder import listed, seen_through
    from .prediction import image_files, predict

    network = cli.network(arguments)
    files, skipped = image_files(arguments.images)
    if skipped:
        print(printable(f"skipped: {listed(skipped)}"), file=sys.stderr)

    runtime.use_all_instructions()
    from .engine import predictor
    from .gluon import devices  # MXNet takes a while to import: not before the command is known to be right
    from .gluon.inference import fuse

    context = devices.choose(cli.device_name(arguments.device)).context
    net = network.load(context)
    found = list(predict(predictor(fuse(net), context), network.task, files, arguments.top, arguments.skip_bad))
    if not found:
        raise BadFileError(f"none of the {len(files)} images can be read")
    resized = sum(prediction.resized for prediction in found)
    if resized:
        print(f"{resized} of {len(found)} images resized to 32x32, which networks see", file=sys.stderr)
    transparent = sum(prediction.transparent for prediction in found)
    if transparent:
        print(seen_through(transparent, len(found)), file=sys.stderr)
    code = 1 if len(found) < len(files) else 0
    if arguments.json:
        print(json.dumps([prediction.plain() for prediction in found], indent=1))  # in ASCII: exact on any terminal
        return code
    for prediction in found:
        classes = ", ".join(f"{name} {100 * share:.1f} %" for _, name, share in prediction.classes)
        print(printable(f"{prediction.image}: {classes}"))
    return code


def listing(arguments: argparse.Namespace) -> int:
    from .reporting.listing import zoo_table

    records = _records(arguments, [*catalog.RECORDS, *runs.bundled()])
    print(zoo_table(records, arguments.weights_dir, cli.terminal_width()))
    return 0


def info(arguments: argparse.Namespace) -> int:
    path = Path(arguments.model)
    is_run = path.suffix == ".params" or (path / runs.METADATA).exists()  # a folder may have a network's name too
    run = runs.find_run(path) if is_run else None
    if run:
        runs.check_given(run, None, arguments.dataset)
    name = run.model if run else catalog.parse_name(arguments.model).name
    task = run.task if run else get_task(arguments.dataset or "cifar10")
    from .reporting.listing import layer_table

    table = layer_table(name, task)
    print(printable(f"{name} for {task.title}"))
    if run:
        print(printable(f"classes: {', '.join(task.classes)}"))
        for name, text in runs.origin(run):
            print(printable(f"{name}: {text}"))
    print(table)
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    records = _records(arguments, catalog.RECORDS)
    from .reporting.listing import fetch

    return 1 if fetch(records, arguments.data_dir, arguments.weights_dir) else 0


def convert(arguments: argparse.Namespace) -> int:
    architecture = catalog.parse_name(arguments.model)
    dataset = get_task(arguments.dataset or "cifar10").name
    from . import zoo
    from .checkpoints import weights

    weights.convert(arguments.source, arguments.target, zoo.get_model(architecture.name, dataset))
    print(printable(f"wrote {arguments.target}"))
    return 0


COMMANDS = {"predict": predict, "list": listing, "info": info, "fetch": fetch, "convert": convert}


def _records(arguments: argparse.Namespace, rows: list[catalog.Record]) -> list[catalog.Record]:
    records = catalog.select([arguments.pattern], arguments.dataset or ["*"], records=rows)
    if not records:
        raise InvalidValueError(f"no row has both the model {arguments.pattern!r} and the data set asked for")
    return records


def main() -> int:
    arguments = parse_arguments()
    return arguments.run(arguments)


if __name__ == "__main__":
    cli.run(main)
