"""Classify images, of any size, by a network of the zoo or of a run. Answers are written as they come: of many
images, no more than the names are kept.

exit code: 0 all images are answered; 1 some were passed over by --skip-bad; 2 a mistake in the command
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import files, prediction, progress
from ..data.folder import listed, seen_through
from ..errors import BadFileError, UserError, unknown
from ..prediction import Prediction
from ..text import encodable, printable
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("images", nargs="+", metavar="IMAGE", help="a file, a folder, or - for standard input")
    options.add_network(parser)
    option("--top", type=options.positive, default=3, metavar="K", help="classes an image (default: 3)")
    form = parser.add_mutually_exclusive_group().add_argument
    form("--format", default="text", metavar="NAME", help="text (default), csv or json")
    for name in ("csv", "json"):
        form(f"--{name}", dest="format", action="store_const", const=name, help=f"the same as --format {name}")
    option("--probabilities", action="store_true", help="with --csv: a column for each class")
    text = "write the answers there, whole or not at all; - for standard output (default)"
    option("--output", type=options.output_file, metavar="FILE", help=text)
    options.add_skip_bad(parser)
    options.add_engine(parser)
    options.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    write_as = FORMATS.get(arguments.format)
    if write_as is None:
        raise unknown("format", arguments.format, FORMATS)
    if arguments.probabilities and arguments.format != "csv":
        raise UserError("--probabilities is for CSV: add --csv, or leave it out (--top has more classes)")
    if arguments.output == files.STDOUT:
        arguments.output = None  # answers are printed as they come
    source = options.source(arguments)
    images, skipped = prediction.image_files(arguments.images)
    if skipped:
        print(printable(f"skipped: {listed(skipped)}"), file=sys.stderr)
    network = options.choose_engine(arguments).engine.load(source.network, source.arrays())
    task = source.task
    top = task.outputs if arguments.probabilities else min(arguments.top, task.outputs)
    tally = Tally(len(images))
    with _output(arguments.output) as write:
        found = tally.count(prediction.predict(network, task, images, top, arguments.skip_bad))
        names = [task.class_name(label) for label in range(task.outputs)] if arguments.probabilities else []
        try:
            for piece in write_as(found, top, names):
                write(piece)
        except UserError:
            if tally.answered and not arguments.output:
                print(f"stopped after {tally.answered} of {len(images)} answers, which are written", file=sys.stderr)
            raise
        if not tally.answered:
            raise BadFileError(f"none of the {len(images)} images can be read")
    for line in tally.notes(task.image_size):
        print(line, file=sys.stderr)
    return 1 if tally.answered < len(images) else 0


@contextmanager
def _output(path: Path | None) -> Iterator[Callable[[str], object]]:
    """What writes a text to a file, which is put in place whole at the end, or to standard output."""
    if path is None:
        yield sys.stdout.write
        return
    with files.writing(path) as file:
        yield lambda text: file.write(encodable(text).encode())


class Tally:
    """What is told of all images together."""

    def __init__(self, images: int):
        self.images, self.answered, self.resized, self.transparent = images, 0, 0, 0

    def count(self, found: Iterable[Prediction]) -> Iterator[Prediction]:
        """The answers as they come, with a progress bar where they do not go to the terminal themselves."""
        shown = False if sys.stdout.isatty() else None
        with progress.bar(self.images, "predict", "images", shown) as bar:
            for each in found:
                self.answered += 1
                self.resized += each.resized
                self.transparent += each.transparent
                bar.update()
                yield each

    def notes(self, image_size: int) -> Iterator[str]:
        """Lines for standard error."""
        if self.resized:
            size = f"{image_size}x{image_size}"
            yield f"{self.resized} of {self.answered} images resized to {size}, which the network sees"
        if self.transparent:
            yield seen_through(self.transparent, self.answered)
        if self.answered < self.images:
            yield f"{self.images - self.answered} of {self.images} images passed over, as they cannot be read"


def _as_text(found: Iterable[Prediction], top: int, names: Sequence[str]) -> Iterator[str]:
    for each in found:
        classes = ", ".join(f"{name} {100 * share:.1f} %" for _, name, share in each.classes)
        yield printable(f"{each.image}: {classes}") + "\n"


def _as_json(found: Iterable[Prediction], top: int, names: Sequence[str]) -> Iterator[str]:
    """An array, in ASCII: exact on any terminal. One that an error cuts short has no end, and so is no JSON."""
    before = "["
    for each in found:
        yield f"{before}\n{json.dumps(each.to_dict(), indent=1)}"
        before = ","
    if before == ",":
        yield "\n]\n"


def _as_csv(found: Iterable[Prediction], top: int, names: Sequence[str]) -> Iterator[str]:
    """An image a row: its likeliest class with the probability, then the next ones or, with `names`, those of all."""
    more = names or [f"{column}_{place}" for place in range(2, top + 1) for column in ("class", "probability")]
    header: str | None = _csv_row(["image", "class", "probability", *more])
    for each in found:
        if names:
            _, name, share = each.classes[0]
            others: list[object] = [f"{share:.6f}" for _, _, share in sorted(each.classes)]
            cells = [name, f"{share:.6f}", *others]
        else:
            cells = [cell for _, name, share in each.classes for cell in (name, f"{share:.6f}")]
        yield (header or "") + _csv_row([each.image, *cells])
        header = None


def _csv_row(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


FORMATS = {"text": _as_text, "csv": _as_csv, "json": _as_json}
