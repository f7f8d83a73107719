#!/usr/bin/env python3
"""Ways of post-training quantisation, compared by the errors of their int8 files.

The authors' CIFAR-10 networks, calibrated on 400 training images. Errors in %, and in brackets the % of the images with
another class than in float32. As C arrays, by LiteRT's own kernels: ranges of the least squared error, as `export` has
them; the whole ranges; cross-layer equalisation and bias correction, as in Nagel et al., 2019 (arXiv 1906.04721), and
both; and by Google's ai-edge-quantizer, where it is installed. By ONNX Runtime: as `export` has it, and with the
depthwise convolutions in float32. (Its ranges by entropy are the whole ones, with its default of 128 bins.)

    python benchmarks/quantisation.py --weights-dir DIR --train-dir DIR --test-dir DIR --limit 1000 --model 'pyd-*'
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 30
COLUMNS = ["float32", "C int8", "whole ranges", "equalised", "bias corrected", "both", "ai-edge-quantizer"]
COLUMNS += ["ONNX int8", "depthwise float32"]


def equalise(network, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scale the channels between two convolutions, so that their largest weights are the same on both sides."""
    from pydmobilenet.folding import num_consumers
    from pydmobilenet.network import Convolution, ReLU

    arrays, consumers = dict(arrays), num_consumers(network.layers)
    layers = {layer.name: layer for layer in network.layers}
    pairs = []
    for second in (layer for layer in network.layers if isinstance(layer, Convolution)):
        first = layers.get(second.inputs[0])
        alone = consumers[second.inputs[0]] == 1
        if isinstance(first, ReLU):
            alone, first = alone and consumers[first.inputs[0]] == 1, layers[first.inputs[0]]
        if alone and isinstance(first, Convolution):
            pairs.append((first.name, second.name, second.groups > 1))
    for _ in range(ROUNDS):
        for first, second, depthwise in pairs:
            weights = arrays[f"{first}.weight"], arrays[f"{second}.weight"]
            before = abs(weights[0]).max(axis=(1, 2, 3))
            after = abs(weights[1]).max(axis=(1, 2, 3) if depthwise else (0, 2, 3))
            usable = (before > 1e-9) & (after > 1e-9)
            scale = np.where(usable, np.sqrt(before * after) / np.where(usable, after, 1), 1)
            arrays[f"{first}.weight"] = weights[0] / scale[:, None, None, None]
            arrays[f"{first}.bias"] = arrays.get(f"{first}.bias", 0) / scale
            arrays[f"{second}.weight"] = weights[1] * scale.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))
    return arrays


def correct(network, arrays: dict[str, np.ndarray], image, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Take the mean that rounded weights add to each output channel from its bias."""
    from pydmobilenet.network import IMAGES, Convolution, Dense
    from pydmobilenet.tflite import quantise

    sums: dict[str, np.ndarray] = {IMAGES: pixels.mean(axis=(0, 1, 2))}
    batches = -(-len(pixels) // quantise.BATCH)
    for name, values in quantise._maps(network, arrays, image, pixels):
        sums[name] = sums.get(name, 0) + values.reshape(-1, values.shape[-1]).mean(axis=0) / batches
    arrays = dict(arrays)
    for layer in network.layers:
        if not isinstance(layer, (Convolution, Dense)):
            continue
        weight, mean = arrays[f"{layer.name}.weight"], sums[layer.inputs[0]]
        step = np.maximum(abs(weight).reshape(len(weight), -1).max(axis=1), 1e-9) / 127
        step = step.reshape(-1, *[1] * (weight.ndim - 1))
        added = (np.rint(weight / step) * step - weight).reshape(*weight.shape[:2], -1).sum(axis=2)
        depthwise = isinstance(layer, Convolution) and layer.groups > 1
        shift = added[:, 0] * mean if depthwise else added @ mean
        arrays[f"{layer.name}.bias"] = arrays.get(f"{layer.name}.bias", 0) - shift
    return arrays


def by_google(model: bytes, pixels: np.ndarray) -> bytes | None:
    """Quantise a float32 file by ai-edge-quantizer, weights of 8 bits per channel and maps of 8 bits."""
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        return None
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        file = Path(folder, "float32.tflite")
        file.write_bytes(model)
        made = quantizer.Quantizer(os.fspath(file), recipe.static_wi8_ai8())
        ranges = made.calibrate({"serving_default": [{"images": image[None]} for image in pixels]})
        return bytes(made.quantize(ranges).quantized_model)


def onnx_files(network, arrays, task, calibration: np.ndarray) -> list[bytes]:
    """Return the ONNX files in int8."""
    from onnxruntime.quantization import quantize_static

    from pydmobilenet.data import normalise
    from pydmobilenet.folding import fold
    from pydmobilenet.network import Convolution
    from pydmobilenet.onnx import graph
    from pydmobilenet.onnx.quantise import quantise

    network, arrays = fold(network, arrays)
    images = normalise(calibration, task)
    depthwise = [layer.name for layer in network.layers if isinstance(layer, Convolution) and layer.groups > 1]
    files = []
    for excluded in ([], depthwise):
        chosen = partial(quantize_static, nodes_to_exclude=excluded)
        with mock.patch("onnxruntime.quantization.quantize_static", chosen):
            files.append(quantise(graph.convert(network, arrays, task), images))  # which changes its model
    return files


def row(network, arrays, task, calibration: np.ndarray, test) -> list[str]:
    from deploy import classes

    from pydmobilenet.exporting import channels_last
    from pydmobilenet.folding import fold
    from pydmobilenet.onnx import graph as onnx
    from pydmobilenet.onnx import session as onnxruntime
    from pydmobilenet.tflite import graph, quantise, session

    pixels, images, known = channels_last(test.images), test.normalised(), channels_last(calibration)
    prepared, plain = graph.prepare(network, arrays, task, whole=True)
    ways = {"C int8": plain, "whole ranges": plain, "equalised": equalise(prepared, plain)}
    ways["bias corrected"] = correct(prepared, plain, task.image, known)
    ways["both"] = correct(prepared, ways["equalised"], task.image, known)
    files, parts = {}, quantise.PARTS
    for name, changed in ways.items():
        quantise.PARTS = [1.0] if name == "whole ranges" else parts
        scales = quantise.scales(prepared, changed, task.image, known)
        files[name] = graph.convert(prepared, changed, task.image, scales)
    quantise.PARTS = parts
    files["ai-edge-quantizer"] = by_google(graph.convert(prepared, plain, task.image), known)
    before = classes(onnxruntime.predictor(onnx.convert(*fold(network, arrays), task)), images)
    seen = [
        before,
        *(file and classes(session.predictor(file, kernels=session.BUILT_IN), pixels) for file in files.values()),
    ]
    seen += [classes(onnxruntime.predictor(file), images) for file in onnx_files(network, arrays, task, calibration)]
    return [
        "" if own is None else f"{100 * (own != test.labels).mean():.2f} ({100 * (own != before).mean():.2f})"
        for own in seen
    ]


def main() -> None:
    from deploy import CALIBRATION, make_parser, networks

    arguments = make_parser(__doc__).parse_args()
    sys.path.insert(0, str(ROOT))
    import pydmobilenet
    from pydmobilenet import provenance

    calibration = pydmobilenet.get_dataset("cifar10", "train", arguments.train_dir).head(CALIBRATION).images
    test = pydmobilenet.get_dataset("cifar10", "test", arguments.test_dir).head(arguments.limit)
    print(provenance.summary())
    print(f"| model | {' | '.join(COLUMNS)} |\n| --- |{' --: |' * len(COLUMNS)}")
    for name, network, arrays in networks(arguments):
        print(f"| {name} | {' | '.join(row(network, arrays, test.task, calibration, test))} |", flush=True)


if __name__ == "__main__":
    main()
