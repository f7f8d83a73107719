#!/usr/bin/env python3
"""Times of a 7x7 depthwise kernel's three ways through LiteRT's XNNPACK, whose fast kernels end at 25 weights.

Milliseconds for one image on one thread, the sides in turns, medians: ONNX Runtime; LiteRT with each 7x7 in parts, in
float32 and in int8; with whole kernels in both; and in float32 with kernels of 3x3, 5x5 and 7x7, the latter in parts,
instead of each 7x7, as Add has them before they are merged. Weights are random.

    python benchmarks/tflite.py --model pyd-add-29-0.5
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["model", "ms, ONNX Runtime", "LiteRT", "int8", "whole", "whole, int8", "apart"]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["pyd-add-*"], metavar="PATTERN", help="default: pyd-add-*")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    from deploy import medians
    from networks import random_arrays

    from pydmobilenet import catalog, provenance
    from pydmobilenet.data import get_task
    from pydmobilenet.folding import fold
    from pydmobilenet.onnx import graph as onnx
    from pydmobilenet.onnx import session as onnxruntime
    from pydmobilenet.tflite import graph, quantise, session

    task = get_task("cifar10")
    pixels = np.random.default_rng(0).integers(0, 256, (1, *task.image[1:], 3), np.uint8)
    image = pixels.transpose(0, 3, 1, 2) / np.float32(255)
    print(provenance.summary())
    print(f"| {' | '.join(COLUMNS)} |\n| --- |{' --: |' * (len(COLUMNS) - 1)}")
    for record in catalog.select(arguments.model, ["cifar10"]):
        arrays, files = random_arrays(record.network), []
        for whole in (False, True):
            prepared = graph.prepare(record.network, arrays, task, whole)
            scales = quantise.scales(*prepared, task.image, pixels)
            files += [graph.convert(*prepared, task.image, each) for each in (None, scales)]
        files.append(graph.convert(*apart(*graph.prepare(record.network, arrays, task, whole=True)), task.image))
        reference = onnxruntime.predictor(onnx.convert(*fold(record.network, arrays), task), threads=1)
        sides = [partial(reference, image), *(partial(session.predictor(file), pixels) for file in files)]
        print(f"| {' | '.join([record.model, *(f'{each:.2f}' for each in medians(sides))])} |", flush=True)


if __name__ == "__main__":
    main()
