#!/usr/bin/env python3
"""Train by each engine with several seeds: error after the last epoch, and seconds.

python benchmarks/seeds.py                               # the digits, a network of each family: half an hour
python benchmarks/seeds.py --model pyd-add-29-0.25 --seeds 3 --jobs 2
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor

import finetune

from pydmobilenet import engine, provenance

DEFAULT = ("resnet-29-0.5", "mobilenet-29-0.5", "pyd-add-29-0.25", "pyd-concat-29-0.25")


def train(model: str, engine: str, seed: int, options: list[str]) -> tuple[float, float]:
    """Return the error in % after the last epoch, and the seconds of all epochs."""
    history, _ = finetune.train(["--model", model, "--engine", engine, "--seed", seed, *options])
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
