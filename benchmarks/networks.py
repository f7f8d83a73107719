#!/usr/bin/env python3
"""Where the time of validation goes: each of the 22 CIFAR-10 networks, by each engine, on one thread.

Seconds that 10,000 images take in batches as the engines have them, networks folded, random weights; beside them the
seconds that a measured sgemm (NumPy's, 1024x1024) would take for as many multiply-adds. The sides take turns.

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
IMAGES = 10_000  # that the seconds are of


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
    print(f"| model | mult-adds, M | sgemm, s | {' | '.join(f'{each.name}, s' for each in engines)} |")
    print("| --- | --: | --: |" + " --: |" * len(engines))
    totals = np.zeros(1 + len(engines))
    for name in names:
        network = catalog.describe(name)
        work = network.complexity().multiply_adds
        ways = [(each.load(network, random_arrays(network)), each.batch_size) for each in engines]
        seconds = np.median([turn(ways, images, work) for _ in range(arguments.rounds)], axis=0)
        totals += seconds
        print(f"| {name} | {work / 1e6:.1f} | {' | '.join(f'{value:.2f}' for value in seconds)} |", flush=True)
    print(f"| together | | {' | '.join(f'{value:.1f}' for value in totals)} |")


def turn(ways: list, images: np.ndarray, work: int) -> list[float]:
    """Seconds of sgemm for so many multiply-adds an image, and of each way, for `IMAGES` images."""
    matrix = np.ones((1024, 1024), np.float32)
    start = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    found = [(time.perf_counter() - start) / 5 / 1024**3 * work * IMAGES]
    for predict, batch_size in ways:
        predict(images[:batch_size])  # what is done once
        start = time.perf_counter()
        for first in range(0, len(images), batch_size):
            predict(images[first : first + batch_size])
        found.append((time.perf_counter() - start) / len(images) * IMAGES)
    return found


def random_arrays(network) -> dict[str, np.ndarray]:
    """Parameters as He initialisation draws them; every normalisation does nothing."""
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
