#!/usr/bin/env python3
"""Error, size and speed of static int8 quantisation by ONNX Runtime.

The fused networks with the authors' CIFAR-10 weights are quantised as by ``export --int8``, calibrated on 400 training
images, and compared with float32 on test images, on one thread in turns. Times are medians.

    python benchmarks/int8.py --weights-dir DIR --train-dir DIR --test-dir DIR --limit 1000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION, BATCH, CALLS, WARM_UP, ROUNDS = 400, 50, 100, 20, 3


def predictions(predict: Callable, images: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the predicted classes, images/s in batches, and ms for a single image."""
    for _ in range(WARM_UP):
        predict(images[:1])
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        predict(images[:1])
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    logits = [predict(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    speed = len(images) / (time.perf_counter() - start)
    return np.concatenate(logits).argmax(axis=1), speed, 1000 * float(np.median(seconds))


def row(ways: list[Callable], sizes: list[int], images: np.ndarray, labels: np.ndarray) -> str:
    """Format a network's figures in float32 and in int8 as cells of the table."""
    rounds = [[predictions(predict, images) for predict in ways] for _ in range(ROUNDS)]
    classes = [predicted for predicted, *_ in rounds[0]]
    errors = [100 * (predicted != labels).mean() for predicted in classes]
    differ = 100 * (classes[0] != classes[1]).mean()
    speeds, latencies = (np.median([[way[column] for way in turn] for turn in rounds], axis=0) for column in (1, 2))
    cells = [
        *(f"{error:.1f}" for error in errors),
        f"{differ:.1f}",
        *(f"{size / 1e3:.0f}" for size in sizes),
        *(f"{latency:.2f}" for latency in latencies),
        *(f"{speed:.0f}" for speed in speeds),
    ]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["*"], metavar="PATTERN", help="default: all with weights")
    parser.add_argument("--weights-dir", type=Path, help="where the authors' weights are")
    parser.add_argument("--train-dir", type=Path, help="where CIFAR-10's training images are")
    parser.add_argument("--test-dir", type=Path, help="where CIFAR-10's test images are")
    parser.add_argument("--limit", type=int, default=1000, help="test images (default: 1000)")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    import pydmobilenet
    from pydmobilenet import catalog, checkpoints, machine, provenance
    from pydmobilenet.errors import MissingFileError
    from pydmobilenet.folding import fold
    from pydmobilenet.onnx import graph, quantise, session

    calibration = pydmobilenet.get_dataset("cifar10", "train", arguments.train_dir).normalised(0, CALIBRATION)
    test = pydmobilenet.get_dataset("cifar10", "test", arguments.test_dir).head(arguments.limit)
    images = test.normalised()
    bits = 8 if {"avx512_vnni", "avx_vnni"} & machine.cpu_flags() else 7
    print(f"{provenance.summary()}; weights of {bits} bits")
    print("| model | error, % | int8 | differ, % | kB | int8 | ms | int8 | images/s | int8 |")
    print(f"| --- |{' --: |' * 9}")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"]
        for record in catalog.select(arguments.model, ["cifar10"]):
            try:
                arrays = checkpoints.load_record(record, arguments.weights_dir)
            except MissingFileError as error:
                print(f"{record.model} left out: {error}", file=sys.stderr)
                continue
            model = graph.convert(*fold(catalog.describe(record.model), arrays), test.task)
            files[0].write_bytes(model.SerializeToString())
            files[1].write_bytes(quantise.quantise(model, calibration))
            ways = [session.predictor(file.read_bytes(), threads=1) for file in files]
            sizes = [file.stat().st_size for file in files]
            print(f"| {record.model} | {row(ways, sizes, images, test.labels)} |", flush=True)


if __name__ == "__main__":
    main()
