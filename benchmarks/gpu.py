#!/usr/bin/env python3
"""Measure a GPU in parts of at most ten minutes: Markdown on standard output, JSON lines in FILE.

steps   milliseconds of a training step, way by way, and its longest kernels
speed   images/s of validation and of training, float32 and bfloat16, compiled or not, against PyTorch as usually
        written; milliseconds of a depthwise convolution's gradients, PyTorch's own and by forward convolutions
recipe  the authors' full recipe of 320 epochs, for two networks: time and error
seeds   a recipe of 30 epochs, three seeds: mean error and spread

An unfinished part is saved; the same command continues it.

    python benchmarks/gpu.py --data DIR                       # train/ and test/, a folder a class, as JPEG images
    python benchmarks/gpu.py --data DIR --part recipe         # again, until it prints: all is done
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sides import BATCH, gpu_steps, pytorch
from torch.nn import functional as F

from pydmobilenet import catalog
from pydmobilenet.pytorch import inference, pyramid
from pydmobilenet.training import session
from pydmobilenet.training.checkpoint import read_history
from pydmobilenet.training.history import History

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("steps", "speed", "recipe", "seeds")
MODEL, RECIPES = "pyd-concat-56-0.5", ("pyd-concat-29-0.25", "pyd-concat-56-0.75")
SAVING = 30  # seconds before a part's end, for a run to save


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--part", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    option("--data", type=Path, help="a folder of images, for recipe and seeds")
    option("--runs", type=Path, default=Path("runs/gpu"), help="the folder of their runs (default: runs/gpu)")
    option("--output", type=Path, metavar="FILE", help="append JSON lines to FILE")
    option("--minutes", type=float, default=10.0, help="of a part (default: 10)")
    option("--device", default="cuda", help="cuda (default), or cpu to try the script")
    option("--epochs", type=int, nargs=2, default=(320, 30), metavar="N", help="of recipe and seeds (default: 320 30)")
    option("--batches", type=int, default=50, help="timed at once (default: 50)")
    option("--model", default=MODEL, help=f"of steps and speed (default: {MODEL})")
    arguments = parser.parse_args()
    if arguments.data is None and set(arguments.part) & {"recipe", "seeds"}:
        parser.error("recipe and seeds need --data DIR")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    print(f"{name}, PyTorch {torch.__version__}")
    done = True
    for part in arguments.part:
        print(f"\n## {part}")
        columns: list[str] = []
        for row in {"steps": steps, "speed": speed, "recipe": recipe, "seeds": seeds}[part](arguments):
            done = done and row.get("done", True)
            if list(row) != columns:
                columns = list(row)
                print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
            if arguments.output:
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"device": name, "part": part, **row}) + "\n")
    print("\nall is done" if done else "\nnot all is done: give the command again")
    return 0


def steps(arguments: argparse.Namespace) -> Iterator[dict]:
    """Yield milliseconds of a training step."""
    return gpu_steps.rows(arguments.model, arguments.device, arguments.minutes, arguments.batches)


def speed(arguments: argparse.Namespace) -> Iterator[dict]:
    """Yield images/s, the sides taking turns; then milliseconds of gradients."""
    device, model = arguments.device, arguments.model
    ways = {
        "train, eager, float32": lambda: pytorch.eager(model, device),
        "train, ours, float32": lambda: pytorch.ours(model, "float32", device),
        "answer, eager": lambda: answers_as_usual(model, device),
        "answer, ours": lambda: answers(model, device),
    }
    if device == "cuda":
        ways |= {
            "train, eager, bfloat16": lambda: pytorch.eager(model, device, torch.bfloat16),
            "train, ours, bfloat16": lambda: pytorch.ours(model, "bfloat16", device),
            "train, ours, float32, compiled": lambda: pytorch.ours(model, "float32", device, compiled=True),
            "train, ours, bfloat16, compiled": lambda: pytorch.ours(model, "bfloat16", device, compiled=True),
        }
    streams = {name: way() for name, way in ways.items()}
    sizes = {name: BATCH if name.startswith("train") else inference.batch_size(torch.device(device)) for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(4):  # the first one warms up
        for name in sorted(streams, reverse=turn % 2 == 0):
            rates[name].append(sizes[name] * arguments.batches / seconds(streams[name], arguments.batches, device))
    for name, values in rates.items():
        yield {"what": f"{model}: {name}", "images/s": round(statistics.median(values[1:]))}
    yield from gradients(device)


def seconds(stream: Iterator, number: int, device: str) -> float:
    """Time so many steps, until the device is idle."""
    gpu_steps.wait(device)
    start = time.perf_counter()
    for _ in range(number):
        next(stream)
    gpu_steps.wait(device)
    return time.perf_counter() - start


def _images(device: str) -> np.ndarray:
    size = inference.batch_size(torch.device(device))
    return np.random.default_rng(0).standard_normal((size, 3, 32, 32)).astype(np.float32)


def answers(model: str, device: str) -> Iterator[None]:
    """Predict a batch at each step, as validation does."""
    network = catalog.describe(model)
    arrays = pytorch.trainer.get_arrays(pytorch.get_model(model))
    predict, images = inference.PyTorchEngine(device).load(network, arrays), _images(device)
    while True:
        predict(images)
        yield


def answers_as_usual(model: str, device: str) -> Iterator[None]:
    """Predict a batch at each step, by PyTorch's own modules in float32."""
    net = pytorch.usual(pytorch.get_model(model)).to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(_images(device))
    while True:
        with torch.inference_mode():
            net(images.to(device, memory_format=torch.channels_last)).cpu()
        yield


def gradients(device: str) -> Iterator[dict]:
    """Yield milliseconds of the forward pass and both gradients of a batch's depthwise convolutions."""
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(BATCH, 32, 32, 32, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()
            for name, stream in ways_to_gradients(x).items():
                next(stream)
                milliseconds = 1e3 * min(seconds(stream, 5, device) / 5 for _ in range(3))
                form = f"{str(dtype)[6:]}, {str(layout)[6:]}"
                yield {"what": f"gradients, {name}, {form}", "ms": round(milliseconds, 3)}


def ways_to_gradients(x: torch.Tensor) -> dict[str, Iterator[None]]:
    """Return passes of one 7x7 kernel, the sum of Add's three, in two ways, and of the three kernels."""
    kernels = {size: torch.randn(x.shape[1], 1, size, size, device=x.device) for size in (3, 5, 7)}
    for kernel in kernels.values():
        kernel.requires_grad_()

    def usual(size: int) -> torch.Tensor:
        return F.conv2d(x, kernels[size].to(x.dtype), padding=size // 2, groups=len(kernels[size]))

    def passes(forward: Callable[[], torch.Tensor]) -> Iterator[None]:
        while True:
            forward().sum().backward()
            yield

    return {
        "7x7, PyTorch's own": passes(lambda: usual(7)),
        "7x7, by forward convolutions": passes(lambda: pyramid._Depthwise.apply(x, kernels[7], 1)),
        "3x3, 5x5 and 7x7, PyTorch's own": passes(lambda: usual(3) + usual(5) + usual(7)),
    }


def recipe(arguments: argparse.Namespace) -> Iterator[dict]:
    """Run the authors' recipe, as far as the time allows."""
    end = time.monotonic() + 60 * arguments.minutes
    for model in RECIPES:
        options = ["--config", "cifar", "--epochs", arguments.epochs[0]]
        yield trained(arguments, f"recipe-{model}", model, options, end)


def seeds(arguments: argparse.Namespace) -> Iterator[dict]:
    """Run a short recipe with three seeds; yield the spread of its errors."""
    end = time.monotonic() + 60 * arguments.minutes
    rows = []
    for seed in range(3):
        options = ["--config", "cifar-short", "--epochs", arguments.epochs[1], "--seed", seed]
        rows.append(trained(arguments, f"seed-{seed}", RECIPES[0], options, end))
        yield rows[-1]
    if all(row["done"] for row in rows):
        errors = [row["last error"] for row in rows]
        yield {"what": "mean and spread", "mean": statistics.mean(errors), "spread": max(errors) - min(errors)}


def trained(arguments: argparse.Namespace, name: str, model: str, options: list, end: float) -> dict:
    """Begin or continue a run until its end or that of the time; return its progress.

    Minutes of training exclude start, evaluation and saves; those of this call include them.
    """
    start = time.monotonic()
    run = arguments.runs / name
    dtype = "bfloat16" if arguments.device == "cuda" else "float32"
    given = ["--model", model, "--dataset", f"folder:{arguments.data.resolve()}", "--dtype", dtype, *options]
    device = "gpu" if arguments.device == "cuda" else arguments.device
    given += ["--output", run, "--resume", "auto", "--engine", "pytorch", "--device", device, "--quiet"]
    command = [sys.executable, ROOT / "train.py", *given]
    if time.monotonic() < end - SAVING and not _is_done(run):
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, env=os.environ)
        try:
            process.wait(timeout=max(1.0, end - SAVING - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
        if process.returncode not in (0, 128 + signal.SIGTERM):
            raise SystemExit(process.returncode)  # it has printed why
    history = read_history(run) if run.exists() else History()
    return {
        "what": name,
        "epochs": len(history.rows),
        "minutes of training": round(sum(row.seconds for row in history.rows) / 60, 1),
        "minutes of this call": round((time.monotonic() - start) / 60, 1),
        "last error": history.last.test_error if history.rows else None,
        "best error": history.best.test_error if history.rows else None,
        "done": _is_done(run),
    }


def _is_done(run: Path) -> bool:
    return run.exists() and len(read_history(run).rows) == session.read_config(run).epochs


if __name__ == "__main__":
    sys.exit(main())
