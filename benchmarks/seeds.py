#!/usr/bin/env python3
"""What a recipe reaches by each engine, over several seeds: error after the last epoch, and seconds.

python benchmarks/seeds.py                               # the digits, a network of each family: half an hour
python benchmarks/seeds.py --model pyd-add-29-0.25 --seeds 3 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydmobilenet import engine, provenance
from pydmobilenet.training.checkpoint import read_history

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
DEFAULT = ("resnet-29-0.5", "mobilenet-29-0.5", "pyd-add-29-0.25", "pyd-concat-29-0.25")


def train(model: str, engine: str, seed: int, options: list[str]) -> tuple[float, float]:
    """The error in % after the last epoch of a run on one thread, and the seconds of its epochs."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            *("--model", model, "--engine", engine, "--seed", seed, "--device", "cpu", "--output", run),
            *options,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, TRAIN, *map(str, command), "--quiet"], env=environment, check=True)
        history = read_history(run)
        return history.last.test_error, sum(row.seconds for row in history.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=DEFAULT, help=f"names (default: {' '.join(DEFAULT)})")
    parser.add_argument("--engine", nargs="+", default=engine.TRAINERS, help="default: gluon pytorch")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread (default: 1)")
    parser.add_argument("--dataset", default="digits", help="default: digits")
    parser.add_argument("--dtype", default="float32", help="float32 (default), or of PyTorch bfloat16")
    arguments = parser.parse_args()
    options = ["--dataset", arguments.dataset, "--dtype", arguments.dtype]
    print(f"{provenance.environment()['processor']}, one thread a run, {arguments.jobs} at once; {' '.join(options)}")
    print("| model | engine | errors, % | mean, % | seconds, median |\n| --- | --- | --- | --: | --: |")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for model in arguments.model:
            for name in arguments.engine:
                jobs = [pool.submit(train, model, name, seed, options) for seed in range(arguments.seeds)]
                errors, seconds = zip(*(job.result() for job in jobs))
                listed = ", ".join(f"{error:.2f}" for error in errors)
                mean = f"{statistics.mean(errors):.2f} | {statistics.median(seconds):.0f}"
                print(f"| {model} | {name} | {listed} | {mean} |", flush=True)


if __name__ == "__main__":
    main()
