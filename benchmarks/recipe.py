#!/usr/bin/env python3
"""Compare on CIFAR-10 cifar-short, the same with one ingredient more, and long: errors over seeds.

python benchmarks/recipe.py --data-dir DIR --output DIR --images 10000 --epochs 16

All recipes train pyd-add-29-0.25 with the same images, epochs and seeds, by PyTorch, each run on one
thread of a CPU. 5,000 other images choose the epoch; its test error is measured once a run. Each run
keeps the moving average of its parameters too, which does not change the parameters themselves.
Called again with the same --output, it goes on.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pydmobilenet
from pydmobilenet import processes, provenance
from pydmobilenet.checkpoints import runs
from pydmobilenet.data import Dataset, array_dataset, get_dataset
from pydmobilenet.training import results

MODEL, VALIDATION = "pyd-add-29-0.25", 5000
RECIPES: dict[str, dict[str, object]] = {  # the keys beside `config`, cifar-short by default
    "cifar-short": {},
    "long": {"config": "long", "warmup_epochs": 2, "mixup_off_epochs": 0},  # cifar-short's warm-up; all is mixed
    "flip": {"flip": "alternating"},
    "htd": {"schedule": "htd"},
    "label_smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1},
    "cutout": {"cutout": 8},
    "trivial_augment": {"trivial_augment": True},
}
EMA = 0.995  # of 200 updates, 2.6 epochs of 10,000 images: as many epochs as that of configs/long.yaml
COLUMNS = ["last val", "best val", "best test", "ema val", "ema test", "seconds"]


class Job(NamedTuple):
    """A recipe by name, and a seed."""

    recipe: str
    seed: int


def arrays(data_dir: Path, images: int) -> dict[str, Dataset]:
    """Return the first training images, the last ones for validation, and the test images, as `train` takes them."""
    whole, test = (get_dataset("cifar10", split, data_dir) for split in ("train", "test"))
    stop = len(whole) - VALIDATION
    parts = {
        "dataset": whole.head(min(images, stop)),
        "val": whole.take(np.arange(stop, len(whole)), "val"),
        "test": test,
    }
    task = whole.task
    given = {"class_names": task.classes, "name": "CIFAR-10", "mean": task.mean, "std": task.std}
    return {name: array_dataset(part.images, part.labels, **given) for name, part in parts.items()}


def train(job: Job, options: argparse.Namespace) -> None:
    """Train a run, or go on with it."""
    directory = options.output / f"{job.recipe}-{job.seed}"
    keys = {"config": "cifar-short", **RECIPES[job.recipe], "ema": EMA, "seed": job.seed, "epochs": options.epochs}
    how = {"output": directory, "resume": "auto", "engine": "pytorch", "device": "cpu", "progress": False}
    pydmobilenet.train(MODEL, **arrays(options.data_dir, options.images), **how, **keys)


def measured(directory: Path, options: argparse.Namespace) -> dict[str, float] | None:
    """Return the row of a finished run; None for any other."""
    if not (directory / runs.METADATA).is_file():
        return None
    result = results.read(directory)
    if not result.finished:
        return None
    if (result.planned, result.images["train"][0]) != (options.epochs, options.images):
        raise SystemExit(f"{directory} has other --epochs or --images: choose another --output")
    return {**{" ".join(figure): error for figure, error in result.errors.items()}, "seconds": result.seconds}


def row(name: str, seeds: str, cells: dict[str, str]) -> str:
    """Format a row of the table."""
    return f"| {name} | {seeds} | " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |"


def summary(name: str, rows: Iterable[dict[str, float]]) -> str:
    """Format the means over the seeds, with standard deviations if there are several."""
    rows = list(rows)
    cells = {}
    for column in COLUMNS if rows else ():
        values = [each[column] for each in rows]
        deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 and column != "seconds" else ""
        cells[column] = f"**{statistics.mean(values):.2f}{deviation}**"
    return row(name, f"n={len(rows)}", cells)


def main() -> None:
    """Train what is missing, print each run's row as soon as it is there, and then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 in its binary layout")
    parser.add_argument("--output", type=Path, required=True, help="directory of the runs; finished ones are kept")
    text = f"{', '.join(RECIPES)} (default: all)"
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME", help=text)
    parser.add_argument("--seeds", default="0,1,2", help="as 0,1,2")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=45000, help="the first N of 45,000 training images")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    jobs = [Job(name, seed) for seed in seeds for name in options.recipes]  # a seed of all recipes first
    place = {job: options.output / f"{job.recipe}-{job.seed}" for job in jobs}
    options.output.mkdir(parents=True, exist_ok=True)
    processor = provenance.environment("pytorch")["processor"]
    print(f"{MODEL}, {options.epochs} epochs of {options.images} images; {processor}", flush=True)
    print(row("recipe", "seed", dict(zip(COLUMNS, COLUMNS))), "|" + " --- |" * (2 + len(COLUMNS)), sep="\n", flush=True)
    done = {job: values for job in jobs if (values := measured(place[job], options))}
    for job, values in done.items():
        print(row(job.recipe, str(job.seed), {name: f"{value:.2f}" for name, value in values.items()}), flush=True)
    missing = [job for job in jobs if job not in done]
    for job, future in processes.run_each(functools.partial(train, options=options), missing, options.jobs):
        future.result()
        done[job] = measured(place[job], options) or {}
        print(row(*map(str, job), {name: f"{value:.2f}" for name, value in done[job].items()}), flush=True)
    for name in options.recipes:
        print(summary(name, (done[job] for job in jobs if job.recipe == name)))


if __name__ == "__main__":
    main()
