"""The formats of `export`: the options of each, and those that are directories."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from . import fetching, files, huggingface, web
from .checkpoints import Checkpoint
from .data import dataset_name
from .engine import litert
from .errors import InvalidValueError, UnusableError, UserError, unknown
from .exporting import CALIBRATION, Calibration, calibration_images
from .validation import images_of

ONNX, TFLITE, C = "onnx", "tflite", "c"
COMPARED = {"no_fuse", "data_dir", "engine"}  # with the answers of an engine
QUANTISED = {"int8", "calibration"}
OPTIONS: dict[str, set[str]] = {
    ONNX: {*COMPARED, *QUANTISED, "uint8_input"},
    TFLITE: {"data_dir", "engine", *QUANTISED, "uint8_input"},  # which it always has
    C: {"data_dir", "engine", *QUANTISED, "uint8_input"},  # the same
    huggingface.FORMAT: set(),
    web.FORMAT: {*COMPARED, "runtime"},
}
DIRECTORIES = (huggingface.FORMAT, web.FORMAT)


def check(format: str, output: Path, **options: object) -> None:
    """Check a format, its options and its output before any work is done.

    Raises InvalidValueError for an unknown format, UserError for an option of others, UnusableError for an output that
    cannot be written.
    """
    if format not in OPTIONS:
        raise unknown("format", format, OPTIONS)
    for name in (name for name, value in options.items() if value and name not in OPTIONS[format]):
        others = " or ".join(other for other, names in OPTIONS.items() if name in names)
        raise UserError(f"{name.replace('_', '-')} is for the format {others}: leave it out for {format}")
    number = options.get("calibration")
    if number is not None and (type(number) is not int or number < 1):
        raise InvalidValueError(f"calibration is {number!r} (allowed: a whole number from 1)")
    if number is not None and not options.get("int8"):
        raise UserError("calibration is only used with int8")
    if format in (TFLITE, C):
        litert("export")  # is it installed?
    if format not in DIRECTORIES:
        files.check(output)
        return
    if files.stream(output) is not None:
        raise UnusableError(f"cannot write a directory to {output}; nearest: --output NAME")
    if os.path.lexists(output):
        raise UnusableError(f"{output} exists already; choose another name, or move it away")
    files.check_new_directory(output)


def calibrate(source: Checkpoint, data_dir: Path | None, dataset: str | None, number: int | None) -> Calibration:
    """Read the images for an int8 file: `number` ones of training (by default `CALIBRATION`), and those for its error.

    They are the network's own, or those in `data_dir` or in the folder `dataset`.
    """
    if data_dir is None and dataset and (name := dataset_name(dataset)).startswith("folder:"):
        data_dir = fetching.expanded(name.partition(":")[2])
    images = calibration_images(source, data_dir, CALIBRATION if number is None else number)
    if number and len(images) < number:
        warnings.warn(f"calibration {number:,}: the data has only {len(images):,} images, all are used", stacklevel=3)
    return Calibration(images, images_of(source, data_dir, skip_bad=True))
