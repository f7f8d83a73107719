#!/usr/bin/env python3
"""What static int8 quantisation by ONNX Runtime costs and brings: error, size, speed.

The fused networks with the authors' weights are quantised (QDQ, per channel, 7-bit weights, as processors without VNNI
need them), calibrated on 400 training images, and compared with float32 on test images, one thread, taking turns.

    python benchmarks/int8.py --weights-dir DIR --train-dir DIR --test-dir DIR --limit 1000
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["resnet-29-0.5", "mobilenet-56-1", "pyd-add-29-0.25", "pyd-concat-56-0.75"]
CALIBRATION, BATCH, ROUNDS = 400, 50, 5


class Reader:
    """Calibration images as ONNX Runtime asks for them."""

    def __init__(self, images: np.ndarray):
        self.batches = iter([images[start : start + BATCH] for start in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def answered(predict, images: np.ndarray) -> tuple[np.ndarray, float]:
    """The classes of the images, and how many were answered a second."""
    start = time.perf_counter()
    logits = [predict(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    return np.concatenate(logits).argmax(axis=1), len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--weights-dir", type=Path, help="where the authors' weights are")
    parser.add_argument("--train-dir", type=Path, help="where CIFAR-10's training images are")
    parser.add_argument("--test-dir", type=Path, help="where CIFAR-10's test images are")
    parser.add_argument("--limit", type=int, default=1000, help="test images (default: 1000)")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    import pydmobilenet
    from pydmobilenet import catalog, provenance, zoo
    from pydmobilenet.folding import fold
    from pydmobilenet.onnx import graph, session

    logging.disable(logging.WARNING)  # of ONNX Runtime, which advises another preparation
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    calibration = pydmobilenet.get_dataset("cifar10", "train", arguments.train_dir).normalised(0, CALIBRATION)
    test = pydmobilenet.get_dataset("cifar10", "test", arguments.test_dir).head(arguments.limit)
    images = test.normalised()
    print(provenance.summary())
    print("| model | error, % | int8 | size, kB | int8 | images/s | int8 |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"]
        for model in arguments.model:
            arrays = zoo.record_weights(catalog.find(model, "cifar10"), arguments.weights_dir)
            files[0].write_bytes(graph.convert(*fold(zoo.describe(model), arrays), test.task).SerializeToString())
            quantize_static(
                files[0],
                files[1],
                Reader(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            ways = [session.predictor(file.read_bytes(), threads=1) for file in files]
            rounds = [[answered(predict, images) for predict in ways] for _ in range(ROUNDS)]
            errors = [100 * (classes != test.labels).mean() for classes, _ in rounds[0]]
            speeds = np.median([[speed for _, speed in turn] for turn in rounds], axis=0)
            sizes = [file.stat().st_size / 1e3 for file in files]
            cells = [*(f"{error:.1f}" for error in errors), *(f"{number:.0f}" for number in (*sizes, *speeds))]
            print(f"| {model} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
