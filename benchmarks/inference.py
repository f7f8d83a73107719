#!/usr/bin/env python3
"""Images per second, latency of a single image, and fraction of the machine's peak, by engine.

Ways: the reference network and the fused one, in Gluon, PyTorch and ONNX Runtime; each with one thread and with all.
MXNet reads the number of threads once, so either number has a process of its own. All ways take turns, several rounds;
the figures are medians. The peak is that of a product of two 1024x1024 float32 matrices by NumPy's BLAS with as many
threads; a multiply-add counts as two operations.

    python benchmarks/inference.py                           # one network of each family: a few minutes
    python benchmarks/inference.py --model pyd-add-56-1 --rounds 9
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from server import Server

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.5", "pyd-concat-29-0.5"]
BATCHES = (1, 32, 128)
SECONDS = 0.3  # of each measurement


def serve(rounds: int) -> None:
    """Print the figures of each model named on standard input, as a line of JSON."""
    sys.path.insert(0, str(ROOT))
    import pydmobilenet  # before mxnet

    pydmobilenet.gluon.runtime.use_all_instructions()  # as `validate` and `predict` do
    import mxnet as mx  # isort: skip

    from pydmobilenet import engine
    from pydmobilenet.gluon.inference import predictor
    from pydmobilenet.gluon.network import get_arrays

    for line in sys.stdin:
        net = pydmobilenet.get_model(line.strip())
        network, arrays = net.description, get_arrays(net)
        ways = {"Gluon, reference": predictor(net, mx.cpu())}
        for title, name in (("Gluon", "gluon"), ("PyTorch", "pytorch"), ("ONNX Runtime", "onnxruntime")):
            if name == "pytorch" and engine.obstacle(name):
                continue
            if name != "gluon":
                ways[f"{title}, reference"] = engine.choose(name, "cpu", fused=False).engine.load(network, arrays)
            ways[f"{title}, fused"] = engine.choose(name, "cpu").engine.load(network, arrays)
        work = 2 * net.description.complexity().multiply_adds
        print(json.dumps(measured(ways, work, rounds)), flush=True)


def measured(ways: dict, work: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure each way: images/s by batch size, latencies in ms, the best fraction of the peak in %.

    `work` is the number of operations for an image.
    """
    speeds = {way: {size: [] for size in BATCHES} for way in ways}
    latencies = {way: [] for way in ways}
    peaks = []
    rng = np.random.default_rng(0)
    images = {size: rng.standard_normal((size, 3, 32, 32), dtype=np.float32) for size in BATCHES}
    matrix = rng.standard_normal((1024, 1024), dtype=np.float32)
    for _ in range(rounds):
        peaks.append(2 * 1024**3 / np.median(times(lambda: matrix @ matrix)))
        for size in BATCHES:
            for way, predict in ways.items():
                seconds = times(lambda predict=predict, size=size: predict(images[size]))
                speeds[way][size].append(size / np.median(seconds))
                if size == 1:
                    latencies[way] += seconds
    figures = {}
    for way in ways:
        median = {size: float(np.median(speeds[way][size])) for size in BATCHES}
        figures[way] = {
            **{str(size): median[size] for size in BATCHES},
            "low": min(speeds[way][BATCHES[-1]]),
            "high": max(speeds[way][BATCHES[-1]]),
            "p50": 1e3 * float(np.percentile(latencies[way], 50)),
            "p99": 1e3 * float(np.percentile(latencies[way], 99)),
            "share": 100 * max(median.values()) * work / float(np.median(peaks)),
            "peak": float(np.median(peaks)) / 1e9,
        }
    return figures


def times(call) -> list[float]:
    """Time calls for some time, after one to warm up."""
    call()
    seconds = []
    while sum(seconds) < SECONDS or len(seconds) < 3:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS, metavar="NAME", help="default: one of each family")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    arguments = parser.parse_args()

    sys.path.insert(0, str(ROOT))
    from pydmobilenet import machine
    from pydmobilenet.gluon.runtime import use_all_instructions
    from pydmobilenet.machine import available_processors

    use_all_instructions()
    print(f"{machine.cpu_name()}, {machine.instruction_set()}\n")
    print(
        "| model | way | threads | batch 1 | batch 32 | batch 128 | lowest to highest | p50, ms | p99, ms | of peak |"
    )
    print("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    with ExitStack() as stack:
        servers = {}
        for threads in sorted({1, available_processors()}):
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
            server = Server(__file__, str(arguments.rounds), environment=environment)
            servers[threads] = stack.enter_context(server)
        for model in arguments.model:
            for threads, server in servers.items():
                for way, row in json.loads(server.ask(model)).items():
                    print(line(model, way, threads, row), flush=True)


def line(model: str, way: str, threads: int, row: dict[str, float]) -> str:
    """Format a row of the table."""
    speeds = " | ".join(f"{row[str(size)]:.0f}" for size in BATCHES)
    return (
        f"| {model} | {way} | {threads} | {speeds} | {row['low']:.0f} to {row['high']:.0f} "
        f"| {row['p50']:.2f} | {row['p99']:.2f} | {row['share']:.0f} % of {row['peak']:.0f} GFLOP/s |"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]))
    else:
        main()
