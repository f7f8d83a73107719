"""Classify images, of any size, by a network of the zoo or of a run.

exit code: 0 all images are answered; 1 some were passed over by --skip-bad; 2 a mistake in the command
"""

from __future__ import annotations

import argparse
import json
import sys

from .. import prediction
from ..data.folder import listed, seen_through
from ..errors import BadFileError
from ..text import printable
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, or - for standard input")
    options.add_network(parser)
    parser.add_argument("--top", type=options.positive, default=3, metavar="K", help="classes an image (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_skip_bad(parser)
    options.add_engine(parser)
    options.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    source = options.source(arguments)
    files, skipped = prediction.image_files(arguments.images)
    if skipped:
        print(printable(f"skipped: {listed(skipped)}"), file=sys.stderr)
    predict = options.choose_engine(arguments).engine.load(source.network, source.arrays())
    found = list(prediction.predict(predict, source.task, files, arguments.top, arguments.skip_bad))
    if not found:
        raise BadFileError(f"none of the {len(files)} images can be read")
    resized = sum(each.resized for each in found)
    if resized:
        print(f"{resized} of {len(found)} images resized to 32x32, which networks see", file=sys.stderr)
    transparent = sum(each.transparent for each in found)
    if transparent:
        print(seen_through(transparent, len(found)), file=sys.stderr)
    code = 1 if len(found) < len(files) else 0
    if arguments.json:
        print(json.dumps([each.to_dict() for each in found], indent=1))  # in ASCII: exact on any terminal
        return code
    for each in found:
        classes = ", ".join(f"{name} {100 * share:.1f} %" for _, name, share in each.classes)
        print(printable(f"{each.image}: {classes}"))
    return code
