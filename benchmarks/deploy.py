#!/usr/bin/env python3
"""Size, error and speed of each file that `export` writes of a network, in float32 and int8.

The authors' CIFAR-10 networks, or those of `--weights`; int8 is calibrated on 400 training images. "C" is a C array,
and arena the memory that it needs in tflite-micro. Errors are of the test images: in float32 by ONNX Runtime, of the
int8 ONNX file by ONNX Runtime, of the other two by LiteRT. "Changed" are % of the images with another class than in
float32. "Other" are those of the first 20 with another class in tflite-micro than by LiteRT's reference kernels. Times
are of one image on one thread, medians of calls in turns: the ONNX file by ONNX Runtime and OpenVINO, the `.tflite` by
LiteRT with XNNPACK.

    python benchmarks/deploy.py                      # sizes alone, of all 22 networks with random weights
    python benchmarks/deploy.py --weights-dir DIR --train-dir DIR --times
    python benchmarks/deploy.py --weights-dir DIR --train-dir DIR --test-dir DIR --limit 1000
    python benchmarks/deploy.py --weights runs/MINE --train-dir DIR --test-dir DIR
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION, BATCH, ROUNDS, CALLS, MICRO = 400, 50, 40, 2, 20


def exported(network, arrays, task, calibration: np.ndarray) -> dict[str, bytes]:
    """Return the files of a network; `calibration` are images (N, 3, H, W) in uint8."""
    from pydmobilenet.data import normalise
    from pydmobilenet.exporting import channels_last
    from pydmobilenet.folding import fold
    from pydmobilenet.onnx import graph as onnx
    from pydmobilenet.onnx.quantise import quantise as quantise_onnx
    from pydmobilenet.tflite import graph, quantise

    model = onnx.convert(*fold(network, arrays), task)
    files = {"onnx": model.SerializeToString(), "onnx int8": quantise_onnx(model, normalise(calibration, task))}
    for kind in ("tflite", "c"):
        prepared = graph.prepare(network, arrays, task, whole=kind == "c")
        if kind == "tflite":
            files[kind] = graph.convert(*prepared, task.image)
        scales = quantise.scales(*prepared, task.image, channels_last(calibration))
        files[f"{kind} int8"] = graph.convert(*prepared, task.image, scales)
    return files


def sizes(files: dict[str, bytes]) -> list[str]:
    """Return the cells of sizes and memory."""
    from pydmobilenet.tflite import session

    written = [len(files[name]) for name in ("onnx", "onnx int8", "tflite", "tflite int8", "c int8")]
    arena = session.arena(files["c int8"])
    return [*(f"{size / 1e3:.0f}" for size in written), "" if arena is None else f"{arena / 1e3:.0f}"]


def classes(predict: Callable, images: np.ndarray) -> np.ndarray:
    """Return the classes of images, in batches."""
    return np.concatenate([predict(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]).argmax(axis=1)


def errors(files: dict[str, bytes], test) -> list[str]:
    """Return the cells of errors and changed answers."""
    from pydmobilenet.exporting import channels_last
    from pydmobilenet.onnx import session as onnxruntime
    from pydmobilenet.tflite import session

    pixels, images = channels_last(test.images), test.normalised()
    before, after = (classes(onnxruntime.predictor(files[name]), images) for name in ("onnx", "onnx int8"))
    ways = [
        session.predictor(files["tflite int8"]),
        session.predictor(files["c int8"], kernels=session.BUILT_IN),
    ]
    cells = [f"{100 * (before != test.labels).mean():.2f}"]
    for seen in (after, *(classes(way, pixels) for way in ways)):
        cells += [f"{100 * (seen != test.labels).mean():.2f}", f"{100 * (seen != before).mean():.2f}"]
    return [*cells, str(other_classes(files["c int8"], pixels[:MICRO]))]


def other_classes(content: bytes, pixels: np.ndarray) -> int:
    """Count the images with another class in tflite-micro than by LiteRT's reference kernels."""
    from tflite_micro import runtime

    from pydmobilenet.tflite import session

    expected = session.predictor(content, kernels=session.REFERENCE)(pixels).argmax(axis=1)
    net, wrong = runtime.Interpreter.from_bytes(content), 0
    for image, label in zip(pixels, expected):
        net.set_input(image[np.newaxis], 0)
        net.invoke()
        wrong += int(net.get_output(0)[0].argmax() != label)
    return wrong


def medians(sides: list[Callable]) -> list[float]:
    """Return the median time of each function in ms, called in turns."""
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


def milliseconds(files: dict[str, bytes]) -> list[str]:
    """Return the cells of times."""
    import openvino

    from pydmobilenet.onnx import session as onnxruntime
    from pydmobilenet.tflite import session

    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    image = pixels.transpose(0, 3, 1, 2) / np.float32(255)
    one_thread = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    sides: list[Callable] = [
        partial(onnxruntime.predictor(files[name], threads=1), image) for name in ("onnx", "onnx int8")
    ]
    sides += [partial(session.predictor(files[name]), pixels) for name in ("tflite", "tflite int8")]
    for name in ("onnx", "onnx int8"):
        fixed = openvino.Core().read_model(files[name])
        fixed.reshape(image.shape)
        request = openvino.Core().compile_model(fixed, "CPU", one_thread).create_infer_request()
        sides.append(partial(request.infer, [image]))
    return [f"{value:.2f}" for value in medians(sides)]


def networks(arguments: argparse.Namespace) -> Iterator[tuple]:
    """Yield the name, the network and its arrays of each row."""
    from pydmobilenet import catalog, checkpoints
    from pydmobilenet.errors import MissingFileError

    for path in arguments.weights:
        source = checkpoints.find(weights=path)
        if source.dataset != "cifar10":
            sys.exit(f"{path} is of {source.dataset} (allowed: cifar10)")
        yield f"{source.model}, {Path(path).name}", source.network, source.arrays()
    for record in catalog.select(arguments.model, ["cifar10"]) if not arguments.weights else []:
        try:
            if arguments.weights_dir is None:
                from networks import random_arrays  # which sets the number of threads

                arrays = random_arrays(record.network)
            else:
                arrays = checkpoints.load_record(record, arguments.weights_dir)
        except MissingFileError as error:
            print(f"{record.model} left out: {error}", file=sys.stderr)
            continue
        yield record.model, record.network, arrays


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options for networks and images."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["*"], metavar="PATTERN", help="default: all")
    parser.add_argument("--weights", nargs="+", default=[], metavar="PATH", help="runs or files, instead of models")
    parser.add_argument("--weights-dir", type=Path, help="where the authors' weights are (default: random weights)")
    parser.add_argument("--train-dir", type=Path, help="where CIFAR-10's training images are")
    parser.add_argument("--test-dir", type=Path, help="where CIFAR-10's test images are, to measure errors")
    parser.add_argument("--limit", type=int, help="test images (default: all)")
    return parser


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--times", action="store_true", help="measure times")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    import pydmobilenet
    from pydmobilenet import provenance
    from pydmobilenet.data import get_task

    task, test = get_task("cifar10"), None
    calibration = np.random.default_rng(0).integers(0, 256, (1, *task.image), np.uint8)
    columns = ["model", "kB, ONNX", "int8", "kB, .tflite", "int8", "kB, C int8", "arena"]
    if arguments.train_dir:
        train = pydmobilenet.get_dataset("cifar10", "train", arguments.train_dir)
        calibration = train.head(CALIBRATION).images
    if arguments.test_dir:
        test = pydmobilenet.get_dataset("cifar10", "test", arguments.test_dir).head(arguments.limit)
        columns += ["error, %", "ONNX int8", "changed", ".tflite int8", "changed", "C int8", "changed", "other"]
    if arguments.times:
        columns += ["ms, ONNX Runtime", "int8", "LiteRT", "int8", "OpenVINO", "int8"]
    print(provenance.summary())
    print(f"| {' | '.join(columns)} |\n| --- |{' --: |' * (len(columns) - 1)}")
    for name, network, arrays in networks(arguments):
        files = exported(network, arrays, task, calibration)
        cells = sizes(files)
        cells += errors(files, test) if test else []
        cells += milliseconds(files) if arguments.times else []
        print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
