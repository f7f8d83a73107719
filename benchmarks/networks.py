#!/usr/bin/env python3
"""Time of each of the 22 CIFAR-10 networks in validation, by each engine, on one thread.

Seconds for 10,000 images in the engine's batches, networks folded, random weights; beside them those of a measured
sgemm (NumPy's, 1024x1024) for as many multiply-adds. The sides take turns.

    python benchmarks/networks.py                    # two minutes
    python benchmarks/networks.py --model 'pyd-*' --images 200 --rounds 5
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 10_000  # of the printed seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["*"], metavar="PATTERN", help="default: all of CIFAR-10")
    parser.add_argument("--images", type=int, default=400, help="measured at once (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    from pydmobilenet import catalog, engine, provenance
    from pydmobilenet.gluon import runtime

    runtime.use_all_instructions()
    names = [record.model for record in catalog.select(arguments.model, ["cifar10"])]
    usable = [name for name in engine.ENGINES if not engine.obstacle(name)]
    engines = [engine.choose(name, "cpu").engine for name in usable]
    images = np.random.default_rng(0).standard_normal((arguments.images, 3, 32, 32), dtype=np.float32)
    print(provenance.summary())
    print(f"| model | mult-adds, M | sgemm, s | {' | '.join(f'{one.name}, s' for one in engines)} |")
    print("| --- | --: | --: |" + " --: |" * len(engines))
    totals = np.zeros(1 + len(engines))
    for name in names:
        network = catalog.describe(name)
        work = network.complexity().multiply_adds
        ways = [(one.load(network, random_arrays(network)), one.batch_size) for one in engines]
        seconds = np.median([turn(ways, images, work) for _ in range(arguments.rounds)], axis=0)
        totals += seconds
        print(f"| {name} | {work / 1e6:.1f} | {' | '.join(f'{value:.2f}' for value in seconds)} |", flush=True)
    print(f"| together | | {' | '.join(f'{value:.1f}' for value in totals)} |")


def turn(ways: list, images: np.ndarray, work: int) -> list[float]:
    """Return the seconds of sgemm (`work` multiply-adds an image) and of each way, for `IMAGES` images."""
    matrix = np.ones((1024, 1024), np.float32)
    start = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    seconds = [(time.perf_counter() - start) / 5 / 1024**3 * work * IMAGES]
    for predict, batch_size in ways:
        predict(images[:batch_size])  # warm up
        start = time.perf_counter()
        for first in range(0, len(images), batch_size):
            predict(images[first : first + batch_size])
        seconds.append((time.perf_counter() - start) / len(images) * IMAGES)
    return seconds


def random_arrays(network) -> dict[str, np.ndarray]:
    """Draw parameters by He initialisation, with normalisations of identity."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in network.parameters.items():
        if name.endswith("weight"):
            arrays[name] = rng.standard_normal(shape, dtype=np.float32) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            arrays[name] = np.full(shape, name.endswith(("gamma", "var")), np.float32)
    return arrays


if __name__ == "__main__":
    main()
