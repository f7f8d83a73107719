#!/usr/bin/env python3
"""Error, size, speed and memory of TensorFlow Lite files, in float32 and int8, for phones and microcontrollers.

The authors' CIFAR-10 networks, calibrated on 400 training images. "C" is a C array, with whole 7x7 kernels. Arena is
the memory that one needs in tflite-micro. Errors are of the test images: in float32 by ONNX Runtime, in int8 by LiteRT.
"Changed" are % of the images with another class than in float32. "Other" are those of the first 20 with another class
in tflite-micro than by LiteRT's own kernels. Milliseconds are medians for one image on one thread, the sides in turns:
ONNX Runtime; LiteRT with XNNPACK in float32 and in int8; both with whole kernels; and in float32 with kernels of 3x3,
5x5 and 7x7, the latter in parts, instead of each 7x7, as Add has them before they are merged.

    python benchmarks/tflite.py --weights-dir DIR --train-dir DIR --test-dir DIR --limit 1000
    python benchmarks/tflite.py --sizes
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION, BATCH, ROUNDS, CALLS, MICRO = 400, 50, 40, 2, 20


def classes(predict: Callable, images: np.ndarray) -> np.ndarray:
    return np.concatenate([predict(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]).argmax(axis=1)


def milliseconds(sides: list[Callable]) -> list[float]:
    """Return the median time of each function, called in turns."""
    seconds = []
    for _ in range(ROUNDS):
        turn = []
        for call in sides:
            call()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            turn.append((time.perf_counter() - start) / CALLS)
        seconds.append(turn)
    return (1000 * np.median(seconds, axis=0)).tolist()


def other_classes(content: bytes, pixels: np.ndarray, expected: np.ndarray) -> int:
    """Count the images with another class in tflite-micro."""
    from tflite_micro import runtime

    net, wrong = runtime.Interpreter.from_bytes(content), 0
    for image, label in zip(pixels, expected):
        net.set_input(image[np.newaxis], 0)
        net.invoke()
        wrong += int(net.get_output(0)[0].argmax() != label)
    return wrong


def errors(files: list[bytes], three: bytes, reference: Callable, test, timed: bool) -> list[str]:
    """Return the errors of files in int8 beside the reference's, with the shares of changed answers, and the times."""
    from pydmobilenet.exporting import channels_last
    from pydmobilenet.tflite import session

    pixels, images = channels_last(test.images), test.normalised()
    before = classes(reference, images)
    after = [classes(session.predictor(files[at], xnnpack=at == 1), pixels) for at in (1, 3)]
    cells = [f"{100 * (before != test.labels).mean():.1f}"]
    for seen in after:
        cells += [f"{100 * (seen != test.labels).mean():.1f}", f"{100 * (seen != before).mean():.1f}"]
    cells.append(str(other_classes(files[3], pixels[:MICRO], after[1])))
    if timed:
        sides = [partial(session.predictor(file), pixels[:1]) for file in [*files, three]]
        cells += [f"{each:.2f}" for each in milliseconds([partial(reference, images[:1]), *sides])]
    return cells


def apart(network, arrays):
    """Put kernels of 3x3, 5x5 and, in parts, 7x7 in the place of each depthwise 7x7, with some weights."""
    from pydmobilenet.network import Add, Convolution, Network
    from pydmobilenet.tflite import graph

    layers, arrays = [], dict(arrays)
    for layer in network.layers:
        if not isinstance(layer, Convolution) or layer.kernel < 7:
            layers.append(layer)
            continue
        for kernel in (3, 5):
            part = replace(layer, name=f"{layer.name}_{kernel}", kernel=kernel, bias=False)
            arrays[f"{part.name}.weight"] = arrays[f"{layer.name}.weight"][..., :kernel, :kernel]
            layers += [part, Add(f"{part.name}_sum", (part.name if kernel == 3 else f"{layer.name}_3_sum", part.name))]
        x = layers[-1].name
        for part in graph._by_columns(layer, graph.column_groups(7), arrays):
            last = part.columns[0] == 0
            layers += [part, Add(layer.name if last else f"{part.name}_sum", (x, part.name))]
            x = layers[-1].name
    return Network(tuple(layers)), arrays


def row(network, arrays, task, calibration: np.ndarray, test, timed: bool) -> str:
    """Measure a network; return the cells of its row. Without a `test`, sizes alone."""
    from pydmobilenet.folding import fold
    from pydmobilenet.onnx import graph as onnx
    from pydmobilenet.onnx import session as onnxruntime
    from pydmobilenet.tflite import graph, quantise, session

    files = []
    for whole in (False, True):
        prepared = graph.prepare(network, arrays, task, whole)
        scales = quantise.scales(*prepared, task.image, calibration)
        files += [graph.convert(*prepared, task.image, each) for each in (None, scales)]
    cells = [f"{len(file) / 1e3:.0f}" for file in (files[0], files[1], files[3])]
    arena = session.arena(files[3])
    cells.append("" if arena is None else f"{arena / 1e3:.0f}")
    if test is not None:
        reference = onnxruntime.predictor(onnx.convert(*fold(network, arrays), task), threads=1)
        three = graph.convert(*apart(*prepared), task.image)
        cells += errors(files, three, reference, test, timed)
    return " | ".join(cells)


def random_arrays(network) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {name: generator.random(shape) / 10 - 0.05 for name, shape in network.parameters.items()}
    return {name: abs(array) + 0.5 if name.endswith("running_var") else array for name, array in arrays.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["*"], metavar="PATTERN", help="default: all")
    parser.add_argument("--weights-dir", type=Path, help="where the authors' weights are")
    parser.add_argument("--train-dir", type=Path, help="where CIFAR-10's training images are")
    parser.add_argument("--test-dir", type=Path, help="where CIFAR-10's test images are")
    parser.add_argument("--limit", type=int, default=1000, help="test images (default: 1000)")
    parser.add_argument("--sizes", action="store_true", help="sizes and memory alone, of random weights: needs no data")
    parser.add_argument("--no-times", dest="timed", action="store_false", help="measure no times")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    import pydmobilenet
    from pydmobilenet import catalog, checkpoints, provenance
    from pydmobilenet.data import get_task
    from pydmobilenet.errors import MissingFileError
    from pydmobilenet.exporting import channels_last

    task, test = get_task("cifar10"), None
    calibration = np.random.default_rng(0).integers(0, 256, (1, *task.image[1:], 3), np.uint8)
    columns = ["model", "kB", "kB, int8", "kB, C int8", "arena, kB"]
    if not arguments.sizes:
        train = pydmobilenet.get_dataset("cifar10", "train", arguments.train_dir)
        calibration = channels_last(train.head(CALIBRATION).images)
        test = pydmobilenet.get_dataset("cifar10", "test", arguments.test_dir).head(arguments.limit)
        columns += ["error, %", "int8", "changed", "C, int8", "changed", "other"]
        columns += ["ms, ORT", "LiteRT", "int8", "whole", "int8", "apart"] if arguments.timed else []
    print(provenance.summary())
    print(f"| {' | '.join(columns)} |\n| --- |{' --: |' * (len(columns) - 1)}")
    for record in catalog.select(arguments.model, ["cifar10"]):
        network = record.network
        try:
            arrays = (
                random_arrays(network) if arguments.sizes else checkpoints.load_record(record, arguments.weights_dir)
            )
        except MissingFileError as error:
            print(f"{record.model} left out: {error}", file=sys.stderr)
            continue
        print(f"| {record.model} | {row(network, arrays, task, calibration, test, arguments.timed)} |", flush=True)


if __name__ == "__main__":
    main()
