#!/usr/bin/env python3
"""ImageNet32 at full size, of random pixels: conversion, reopening, and an epoch's iteration, with the peak memory.

Each step runs in its own process, with its own peak. Needs 8 GB of disk meanwhile.

    python benchmarks/imagenet32.py [--images 1281167] [--folder DIR]
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pydmobilenet import get_dataset, provenance
from pydmobilenet.data import batches


def make(folder: Path, images: int) -> None:
    """Write ten pickled batches in the official layout."""
    rng = np.random.default_rng(0)
    for number, part in enumerate(np.array_split(np.arange(images), 10), 1):
        pixels = rng.integers(0, 256, (len(part), 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": rng.integers(1, 1001, len(part)).tolist(), "mean": np.zeros(3072)}
        with open(folder / f"train_data_batch_{number}", "wb") as file:
            pickle.dump(content, file, protocol=3)


def step(name: str, folder: Path) -> None:
    """Run one step, and print its time and memory."""
    start = time.perf_counter()
    dataset = get_dataset("imagenet32", "train", folder)
    opened = time.perf_counter() - start
    if name == "iterate":
        seen = sum(len(labels) for _, labels in batches(dataset, 256, train=True))
        print(f"{seen:,} images at {seen / (time.perf_counter() - start):,.0f} images/s", end="")
    else:
        print(f"{len(dataset):,} images in {opened:.2f} s", end="")
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak too
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(f", peak resident memory {peak:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167, help="default: 1281167, the training set's number")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary one)")
    arguments = parser.parse_args()
    print(provenance.summary())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make(Path(folder), arguments.images)
        for name in ("convert", "reopen", "iterate"):
            print(f"{name:8}", end=" ", flush=True)
            subprocess.run([sys.executable, __file__, "--step", name, folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
