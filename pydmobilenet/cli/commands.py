"""The commands: for each, its options and a function that takes their values and returns the exit code.

The function's docstring is the command's help: the first paragraph its description, the rest its epilog.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import shlex
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import api, catalog, checkpoints, exporting, fetching, files, machine, plots, processes, provenance
from ..checkpoints import formats, runs, weights
from ..data import Dataset, get_dataset, get_task
from ..data.datasets import located
from ..data.splits import kinds
from ..errors import UnusableError, UserError
from ..reporting import classes, tables
from ..text import printable
from ..training import config
from ..validation import Result, exit_code
from . import options
from .predict import add_predict_options, predict


def add_validate_options(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] [RUN ...]"  # the list of all fills a screen
    option = parser.add_argument
    option("runs", nargs="*", metavar="RUN", help="as --weights (default: the tables)")
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    option("-d", "--dataset", **several, metavar="NAME", help="cifar10, cifar100-coarse, imagenet32, digits")
    option("-m", "--model", dest="what", **several, metavar="PATTERN", help="names or wildcards, as 'pyd-concat-*'")
    option("-l", "--depth", **several, type=options.positive, metavar="N", help="29, 56 or 28 (the Wide ResNets)")
    text = "runs, files that record their model, or published (default): the tables and the bundled networks"
    option("--weights", "-r", "--run", **several, metavar="PATH", help=text)
    options.add(parser, "--device", "--data-dir", "--skip-bad", "--no-cache", "--weights-dir", "--engine")
    option("--batch-size", type=options.positive, metavar="N", help="images a call (default: the fastest)")
    option("--limit", type=options.positive, metavar="N", help="only the first N images")
    option("--mirror", action="store_true", help="also average over mirror images (not judged)")
    option("--against", metavar="FILE", help="compare with an earlier answers.csv, by image")
    text = "write the table to DIR as Markdown, CSV, JSON and a web page, and the answer for each image as CSV"
    option("--output", metavar="DIR", help=text)
    option("--require-all", action="store_true", help="fail if a row cannot be evaluated")
    option("--no-fuse", dest="fused", action="store_false", help="do not fold batch normalisation")
    option("--print-net", action="store_true", help="print each network layer by layer")
    option("-q", "--quiet", action="store_true", help="print a line a data set, and the rows that differ")
    option("-v", "--verbose", action="store_true", help="print a line after each network, as on a terminal")


def validate(
    runs: list[str], weights: list[str], print_net: bool, require_all: bool, quiet: bool, verbose: bool, **others: Any
) -> int:
    """Compare the error rates of the authors' weights with the published ones, and of trained networks with the
    recorded ones.

    exit code: 0 all evaluated rows are as published or recorded; 1 a row differs or, with --require-all, was not
    evaluated; 2 a mistake in the command; 3 nothing could be evaluated. Only the full official test set is judged.
    """
    if verbose or (sys.stderr.isatty() and not quiet):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.use_all_processors()
    width = options.terminal_width()

    def show(dataset: Dataset | None, results: Sequence[Result]) -> None:
        for record in (result.record for result in results if print_net):
            print(printable(f"{record.model} on {record.dataset}"))
            task = record.task or get_task(record.dataset)
            print(tables.layer_table(catalog.describe(record.model, task.name, task.outputs), task.image))
        print(tables.summary(results) if quiet else classes.with_classes(dataset, results, width), flush=True)

    progress = False if quiet else None
    results = api.validate(weights=[*runs, *weights], processes=None, progress=progress, show=show, **others)
    return exit_code(results, require_all)


def add_train_options(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] [DATA]"
    option = parser.add_argument
    option("data", nargs="?", metavar="DATA", help="the data set, as --dataset: a name, or a folder of images")
    option("--config", metavar="FILE", help="the recipe, or the name of one in configs/ (default: the data set's)")
    text = "gluon, pytorch, or auto (default): Gluon if MXNet can use the device, else PyTorch; a resumed run's own"
    option("--engine", default="auto", metavar="NAME", help=text)
    options.add(parser, "--device", "--data-dir", "--weights-dir", "--skip-bad", "--no-cache")
    option("--freeze", action="store_true", help="train the last layer alone, in seconds: --body-rate 0")
    option("--compile", action="store_true", help="PyTorch: compile the network, on a GPU to CUDA graphs")
    text = "PyTorch: conv2d (default), or on a GPU triton (unmeasured)"
    option("--pyramid", default="conv2d", metavar="NAME", help=text)
    option("--output", metavar="DIR", help="the run's directory (default: runs/MODEL-DATASET)")
    option("--resume", metavar="DIR", help="continue this run; auto: continue the run in --output, or begin it")
    initial = parser.add_mutually_exclusive_group().add_argument
    initial("--weights", "--init", metavar="PATH", help=f"start from a run, {options.WEIGHTS_FILES}, or published")
    text = "the same as --weights published"
    initial("--pretrained", action="store_const", dest="weights", const=checkpoints.PUBLISHED, help=text)
    text = "distil from a run, a file, or a model by name; in PyTorch"
    option("--teacher", metavar="WEIGHTS", help=text)
    option("--seeds", metavar="N", help="a run for each seed: 5 for the seeds 0 to 4, or a list, as 0,1,2")
    option("--jobs", type=options.positive, metavar="N", help="runs of --seeds at once (default: one a processor)")
    option("--tensorboard", action="store_true", help="write events for TensorBoard")
    option("-q", "--quiet", action="store_true", help="print nothing but the errors at the end")
    option("-v", "--verbose", action="store_true", help="print the configuration first")
    config.add_options(parser)


def train(data: str | None, dataset: str | None, quiet: bool, **others: Any) -> int:
    """Train a network. The recipe comes from a file in configs/; each of its keys is an option too.

    exit code: 0 trained to the end; 1 the loss is no longer finite; 2 a mistake in the command; 130 or 143 interrupted
    (129 by SIGHUP, 138 by SIGUSR1): the run is saved, and --resume DIR continues it exactly.
    """
    if data and dataset:
        raise UserError(f"{data} and --dataset {dataset} are two data sets: give one of them")
    processes.stop_with_parent()
    is_first = processes.rank() == 0  # only the first process of torchrun's prints
    if not is_first:
        warnings.simplefilter("ignore")
    progress = False if quiet else None
    try:
        trained = api.train(dataset=data or dataset, **others, progress=progress, command=provenance.command())
    except api.Interrupted as stop:
        if is_first:
            is_script = os.path.basename(sys.argv[0]) == "train.py"
            program, command = ("train.py", "python train.py") if is_script else ("pydmobilenet", "pydmobilenet train")
            again = printable(f"{command} --resume {shlex.quote(str(stop.directory))}")
            print(f"{program}: interrupted; to go on: {again}", file=sys.stderr)
        return stop.exit_code
    if quiet and trained.summary:
        print(trained.summary)
    return 0


def add_compare_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("runs", nargs="+", metavar="RUN", help="a run, one of --seeds, or a directory with runs in it, as runs/")
    option("--csv", action="store_true", help="print CSV, with every figure of each run")
    option("--output", metavar="DIR", help="write the tables to DIR as Markdown, CSV and a web page with curves")


def compare(runs: list[str], csv: bool, output: str | None) -> int:
    """Compare runs, the lowest error first, in a table for each set of images that errors were measured on.

    exit code: 0 all are compared; 1 some could not be read; 2 a mistake in the command, or nothing could be read
    """
    compared = api.compare(*runs, output=output)
    for problem in compared.problems:
        print(printable(f"pydmobilenet: {problem}"), file=sys.stderr)
    print(compared.csv() if csv else compared.text(options.terminal_width()), end="")
    return 1 if compared.problems else 0


def add_export_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    options.add(parser, *options.NETWORK)
    option(
        "--format", default="onnx", metavar="NAME", help="onnx (default), tflite, c, or a directory: web, huggingface"
    )
    text = "the file to write, as net.onnx, - for standard output, or the directory"
    option("--output", required=True, type=options.output_file, metavar="PATH", help=text)
    text = "take (N, H, W, 3) in uint8 and normalise inside, as tflite and c always do"
    option("--uint8-input", action="store_true", help=text)
    option("--int8", action="store_true", help="onnx, tflite, c: quantise, and say what it costs")
    text = f"training images for the ranges of --int8 (default: {exporting.CALIBRATION})"
    option("--calibration", type=options.positive, metavar="N", help=text)
    option("--no-fuse", dest="fused", action="store_false", help="do not fold batch normalisation")
    option("--no-measure", dest="measure", action="store_false", help="do not measure latency and memory (a second)")
    text = "compare on this data's test images (default: random); --int8 reads its training images too"
    option("--data-dir", type=options.directory, metavar="DIR", help=text)
    text = "for web: take onnxruntime-web from npm's files in DIR (default: jsdelivr.net)"
    option("--runtime", type=options.directory, metavar="DIR", help=text)
    options.add(parser, "--engine")


def export(output: Path, **others: Any) -> int:
    """Write a network as an ONNX or TensorFlow Lite file or a C array of it, after a comparison of its logits with the
    reference engine's; or as a directory: with --format web a page for browsers, with --format huggingface for timm.
    """
    options.use_all_processors()
    api.export(output=output, **others, say=partial(print, file=options.status_stream(output)))
    return 0


def add_list_options(parser: ArgumentParser) -> None:
    options.add_pattern(parser)
    options.add(parser, "--weights-dir")


def list_zoo(pattern: str, dataset: list[str], weights_dir: Path | None) -> int:
    """List the models: complexity, errors, and the weights on this machine."""
    records = catalog.select([pattern], dataset, records=[*catalog.RECORDS, *checkpoints.bundled()])
    print(tables.zoo_table(records, weights_dir, options.terminal_width()))
    return 0


def add_info_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as pyd-concat-56-0.5, or a run")
    options.add(parser, "--dataset")
    text = "print versions, processor and GPUs instead, for a report of a bug"
    parser.add_argument("--environment", action="store_true", help=text)


def info(model: str | None, dataset: str | None, environment: bool) -> int:
    """Show a network layer by layer, and the origin of a run."""
    if bool(model) == environment or (environment and dataset):
        raise UserError("pass either MODEL, with or without --dataset, or --environment alone")
    if model is None:
        gpus = ", ".join(f"compute capability {major}.{minor}" for major, minor in machine.compute_capabilities())
        rows = {**provenance.environment(), "system": platform.platform(), "NVIDIA GPUs": gpus or "none"}
        print(*(f"{name}: {value}" for name, value in rows.items()), sep="\n")
        return 0
    path = fetching.expanded(model)
    # A folder may have a network's name too.
    is_file = path.is_file() or path.suffix in (formats.PARAMS, formats.SAFETENSORS)
    is_directory = any((path / name).exists() for name in (runs.METADATA, formats.MODEL_FILE))
    checkpoint = checkpoints.find(None, dataset, path) if is_file or is_directory else None
    name = checkpoint.model if checkpoint else catalog.parse_name(model).name
    task = checkpoint.task if checkpoint else get_task(dataset or "cifar10")
    print(printable(f"{name} for {task.title}"))
    if checkpoint:
        print(printable(f"classes: {', '.join(task.classes)}"))
        print(f"images: {task.image_size}x{task.image_size} pixels")
        for key, text in runs.origin(checkpoint):
            print(printable(f"{key}: {text}"))
    print(tables.layer_table(catalog.describe(name, task.name, task.outputs), task.image))
    return 0


def add_fetch_options(parser: ArgumentParser) -> None:
    options.add_pattern(parser)
    options.add(parser, "--data-dir", "--weights-dir")


def fetch(pattern: str, dataset: list[str], data_dir: Path | None, weights_dir: Path | None) -> int:
    """Download data sets and published weights ahead of time.

    exit code: 0 everything is on this machine; 1 something could not be downloaded; 2 a mistake in the command
    """
    records = catalog.select([pattern], dataset)
    wanted: dict[str, Callable[[], Dataset | Path]] = {
        f"{get_task(name).title}, {split} images": partial(get_dataset, name, split, data_dir)
        for name in dict.fromkeys(record.dataset for record in records)
        for split in ("train", "test")
    }
    for record in records:
        if record.published and record.file:
            wanted[f"{record.model} for {record.dataset}"] = partial(weights.obtain, record.file, weights_dir)
    code = 0
    for title, obtain in wanted.items():
        try:
            obtained = obtain()
            print(printable(f"{title}: {getattr(obtained, 'source', obtained)}"), flush=True)
        except (UserError, OSError) as error:
            print(printable(f"{title}: {error}"), file=sys.stderr, flush=True)
            code = 1
    return code


def add_convert_options(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=f"a run, {options.WEIGHTS_FILES}")
    parser.add_argument("target", type=Path, help="the file to write, .params or .safetensors")
    parser.add_argument("-m", "--model", metavar="NAME", help="as pyd-concat-56-0.5 (default: the source's)")
    options.add(parser, "--dataset")


def convert(source: Path, target: Path, model: str | None, dataset: str | None) -> int:
    """Write parameters under their structural names, as Gluon's or a safetensors file."""
    weights.check_target(target)
    checkpoint = checkpoints.find(model, dataset, source)
    weights.write(target, checkpoint.arrays(), checkpoint.metadata())
    print(printable(f"wrote {target}"))
    return 0


def add_show_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    text = "as cifar10, digits, or a folder of images (default: cifar10)"
    option("-d", "--dataset", default="cifar10", metavar="NAME", help=text)
    option("--split", help="train (default), test, of a folder val too; of class folders alone all (default)")
    options.add(parser, "--data-dir")
    text = "the picture to write, as grid.png; - for standard output"
    option("--output", required=True, type=options.output_file, metavar="FILE", help=text)
    option("--images", type=options.positive, default=16, metavar="N", help="how many (default: 16)")
    option("--seed", type=options.natural, default=0, help="of the choice and the augmentation (default: 0)")
    option("--image-size", type=options.positive, metavar="N", help="pixels, wide and high, of a folder's images")
    options.add(parser, "--skip-bad", "--no-cache")


def show(
    dataset: str, split: str | None, data_dir: Path | None, output: Path, images: int, seed: int, **reading: Any
) -> int:
    """Write a labelled grid of random images of all classes, raw and augmented."""
    suffix = output.suffix.lower()
    if suffix not in (".png", ".jpg") and files.stream(output) is None:
        raise UnusableError(f"cannot write a picture to {output} (allowed: .png, .jpg; nearest: {output}.png)")
    files.check(output)
    name = located(dataset, data_dir)
    splits = kinds(name)
    task = get_task(name, reading["image_size"])
    split = split or ("train" if "train" in splits else splits[0])
    data = get_dataset(name, split, data_dir, reading["skip_bad"], task, cache=reading["cache"])
    if data.note:
        print(printable(f"data: {data.note}"), file=sys.stderr)
    data = plots.sample(data, images, seed)
    content = io.BytesIO()
    plots.grid(data, seed).save(content, "JPEG" if suffix == ".jpg" else "PNG")
    files.write(output, content.getvalue())
    text = f"wrote {output}: {len(data)} images of {task.title}, raw and below it augmented three times"
    print(printable(text), file=options.status_stream(output))
    return 0


COMMANDS: dict[str, tuple[Callable[[ArgumentParser], None], Callable[..., int]]] = {
    "validate": (add_validate_options, validate),
    "train": (add_train_options, train),
    "compare": (add_compare_options, compare),
    "predict": (add_predict_options, predict),
    "export": (add_export_options, export),
    "list": (add_list_options, list_zoo),
    "info": (add_info_options, info),
    "fetch": (add_fetch_options, fetch),
    "convert": (add_convert_options, convert),
    "show": (add_show_options, show),
}
