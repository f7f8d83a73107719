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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import api, checkpoints, files, prediction
from ..data.folder import listed, seen_through
from ..errors import UserError, unknown
from ..prediction import Prediction
from ..text import encodable, printable, progress_bar
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


def run(
    images: list[str], format: str, probabilities: bool, top: int, output: Path | None, skip_bad: bool, **network: Any
) -> int:
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if probabilities and format != "csv":
        raise UserError("--probabilities is for CSV: add --csv, or leave it out (--top has more classes)")
    options.use_all_processors()
    engine, device = network.pop("engine"), network.pop("device")
    source = checkpoints.find(**network)
    found, skipped = prediction.collect(images)
    if skipped:
        print(printable(f"skipped: {listed(skipped)}"), file=sys.stderr)
    answers = api.classify(source, found, None if probabilities else top, skip_bad, engine, device)
    tally = Tally(len(found))
    write_as = _as_csv_of_all if probabilities else FORMATS[format]
    with _output(output) as write:
        try:
            for text in write_as(tally.count(answers)):
                write(text)
        except UserError:
            if tally.answered and output in (None, files.STDOUT):
                print(f"stopped after {tally.answered} of {len(found)} answers, which are written", file=sys.stderr)
            raise
    for line in tally.notes(source.task.image_size):
        print(line, file=sys.stderr)
    return 1 if tally.answered < len(found) else 0


@contextmanager
def _output(path: Path | None) -> Iterator[Callable[[str], object]]:
    """What writes a text to a file, which is put in place whole at the end, or to standard output."""
    if path in (None, files.STDOUT):  # as they come
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
        with progress_bar(self.images, "predict", "images", shown) as bar:
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


def _as_text(found: Iterable[Prediction]) -> Iterator[str]:
    for each in found:
        classes = ", ".join(f"{name} {100 * share:.1f} %" for _, name, share in each.classes)
        yield printable(f"{each.image}: {classes}") + "\n"


def _as_json(found: Iterable[Prediction]) -> Iterator[str]:
    """An array, in ASCII: exact on any terminal. One that an error cuts short has no end, and so is no JSON."""
    before = "["
    for each in found:
        yield f"{before}\n{json.dumps(each.to_dict(), indent=1)}"
        before = ","
    yield "\n]\n"


def _as_csv(found: Iterable[Prediction]) -> Iterator[str]:
    """An image a row: its likeliest class with the probability, then the next ones."""
    for number, each in enumerate(found):
        if number == 0:
            places = [f"_{place}" if place > 1 else "" for place in range(1, len(each.classes) + 1)]
            yield _row("image", *(f"{column}{place}" for place in places for column in ("class", "probability")))
        yield _row(each.image, *(cell for _, name, share in each.classes for cell in (name, f"{share:.6f}")))


def _as_csv_of_all(found: Iterable[Prediction]) -> Iterator[str]:
    """An image a row: its likeliest class with the probability, then the probability of each class."""
    for number, each in enumerate(found):
        by_label = sorted(each.classes)
        if number == 0:
            yield _row("image", "class", "probability", *(name for _, name, _ in by_label))
        _, name, share = each.classes[0]
        yield _row(each.image, name, *(f"{each_share:.6f}" for each_share in (share, *(last for *_, last in by_label))))


def _row(*cells: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


FORMATS = {"text": _as_text, "csv": _as_csv, "json": _as_json}
