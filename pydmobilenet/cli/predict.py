"""The command `predict`, and its output as text, CSV or JSON."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .. import api, checkpoints, files, prediction
from ..data.folder import listed, seen_through, unread_heic
from ..errors import UserError, unknown
from ..prediction import Prediction
from ..text import printable, progress_bar
from . import options


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("images", nargs="+", metavar="IMAGE", help="a file, a folder, or - for standard input")
    options.add(parser, *options.NETWORK)
    option("--top", type=options.positive, default=3, metavar="K", help="classes an image (default: 3)")
    formats = parser.add_mutually_exclusive_group().add_argument
    formats("--format", default="text", metavar="NAME", help="text (default), csv or json")
    for name in ("csv", "json"):
        formats(f"--{name}", dest="format", action="store_const", const=name, help=f"the same as --format {name}")
    option("--probabilities", action="store_true", help="with --csv: a column for each class")
    text = "write to FILE, completely or not at all; - for standard output (default)"
    option("--output", type=options.output_file, metavar="FILE", help=text)
    options.add(parser, "--skip-bad", "--engine", "--device")


def predict(
    images: list[str], format: str, probabilities: bool, top: int, output: Path | None, skip_bad: bool, **network: Any
) -> int:
    """Classify images of any size by a published network or a run. Predictions are printed as they come.

    exit code: 0 all images are classified; 1 --skip-bad has skipped some; 2 a mistake in the command
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if probabilities and format != "csv":
        raise UserError("--probabilities is for CSV: add --csv, or leave it out (--top has more classes)")
    options.use_all_processors()
    engine, device = network.pop("engine"), network.pop("device")
    source = checkpoints.find(**network)
    paths, skipped = prediction.collect(images)
    if skipped:
        print(printable(f"skipped: {listed(skipped)}"), file=sys.stderr)
    if heic := unread_heic(skipped):
        print(heic, file=sys.stderr)
    predictions = api.classify(source, paths, None if probabilities else top, skip_bad, engine, device)
    tally: Counter[str] = Counter()
    write = _write_all_classes if probabilities else FORMATS[format]
    with _opened(output) as stream:
        try:
            write(_counted(predictions, len(paths), tally), stream)
        except UserError:
            if tally["images"] and output in (None, files.STDOUT):
                print(f"stopped after {tally['images']} of {len(paths)} predictions, already written", file=sys.stderr)
            raise
    if tally["resized"]:
        size = f"{source.task.image_size}x{source.task.image_size}"
        print(f"{tally['resized']} of {tally['images']} images resized to {size}", file=sys.stderr)
    if tally["transparent"]:
        print(seen_through(tally["transparent"], tally["images"]), file=sys.stderr)
    if tally["images"] < len(paths):
        print(f"{len(paths) - tally['images']} of {len(paths)} images skipped as unreadable", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Open standard output, or a file that is renamed to `path` once it is complete."""
    if path in (None, files.STDOUT):
        yield sys.stdout
        return
    with files.writing(path) as file:
        stream = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        try:
            yield stream
        finally:
            stream.detach()  # flushes


def _counted(predictions: Iterable[Prediction], images: int, tally: Counter[str]) -> Iterator[Prediction]:
    """Yield the predictions, count them in `tally`, and show a progress bar unless they go to the terminal."""
    with progress_bar(images, "predict", "images", False if sys.stdout.isatty() else None) as bar:
        for row in predictions:
            tally.update(images=1, resized=row.resized, transparent=row.transparent)
            bar.update()
            yield row


def _write_text(predictions: Iterable[Prediction], stream: TextIO) -> None:
    for row in predictions:
        classes = ", ".join(f"{name} {100 * probability:.1f} %" for _, name, probability in row.classes)
        stream.write(printable(f"{row.image}: {classes}") + "\n")


def _write_json(predictions: Iterable[Prediction], stream: TextIO) -> None:
    """Write an array in ASCII. If an error cuts it short, its end is missing: it is no valid JSON."""
    separator = "["
    for row in predictions:
        stream.write(f"{separator}\n{json.dumps(row.to_dict(), indent=1)}")
        separator = ","
    stream.write("\n]\n")


def _write_csv(predictions: Iterable[Prediction], stream: TextIO) -> None:
    """Write the likeliest classes of each image with their probabilities, from the likeliest on."""
    write_row = csv.writer(stream, lineterminator="\n").writerow
    for number, row in enumerate(predictions):
        if number == 0:
            ranks = [f"_{rank}" if rank > 1 else "" for rank in range(1, len(row.classes) + 1)]
            write_row(["image", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))])
        write_row([row.image, *(cell for _, name, value in row.classes for cell in (name, f"{value:.6f}"))])


def _write_all_classes(predictions: Iterable[Prediction], stream: TextIO) -> None:
    """Write the likeliest class of each image with its probability, then the probability of each class."""
    write_row = csv.writer(stream, lineterminator="\n").writerow
    for number, row in enumerate(predictions):
        by_label = sorted(row.classes)
        if number == 0:
            write_row(["image", "class", "probability", *(name for _, name, _ in by_label)])
        _, name, best = row.classes[0]
        write_row([row.image, name, f"{best:.6f}", *(f"{probability:.6f}" for *_, probability in by_label)])


FORMATS = {"text": _write_text, "csv": _write_csv, "json": _write_json}
