#!/usr/bin/env python3
"""Time of `run_validation.py` for the 22 CIFAR-10 networks against the conventional way.

Conventional: SymbolBlock of the same graph, ``gluon.data.DataLoader`` with ``transform_first``, batch 128, MXNet's
default threads, one network after the other. Ours: the command from its start to its end. Both take the same random
images and weights, in turns, a depth at a time.

    python benchmarks/validation.py                # 10,000 images, all 22 networks: a quarter of an hour on two cores
    python benchmarks/validation.py --images 1000 --depth 29 --engine onnxruntime
    python benchmarks/validation.py --whole --engine gluon pytorch onnxruntime
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from server import Server
from sides import MEAN, STD

ROOT = Path(__file__).resolve().parents[1]


def conventional(images: np.ndarray, workers: int):
    """Return a function to evaluate a graph as MXNet's tutorials do."""
    np.bool = np.bool_
    import mxnet as mx
    from mxnet import gluon
    from mxnet.gluon.data.vision import transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    samples = gluon.data.ArrayDataset(mx.nd.array(images.transpose(0, 2, 3, 1), dtype="uint8"), np.zeros(len(images)))
    loader = gluon.data.DataLoader(samples.transform_first(transform), batch_size=128, num_workers=workers)

    def evaluate(prefix: str) -> float:
        start = time.perf_counter()
        net = gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params")
        net.hybridize()
        metric = mx.metric.Accuracy()
        for data, label in loader:
            metric.update([label], [net(data.as_in_context(mx.cpu()))])
        metric.get()
        return time.perf_counter() - start

    return evaluate


def serve(images: str, workers: int) -> None:
    """Print the seconds of the conventional evaluation for each graph named on standard input."""
    evaluate = conventional(np.load(images), workers)
    for line in sys.stdin:
        print(evaluate(line.strip()), flush=True)


def ours(folder: Path, names: list[str], engine: str, environment: dict[str, str]) -> float:
    """Time `run_validation.py` for these networks."""
    command = [sys.executable, ROOT / "run_validation.py", "--device", "cpu", "--engine", engine]
    command += ["--data-dir", folder, "--run", *(folder / name for name in names)]
    start = time.perf_counter()
    answer = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if answer.returncode != 0 or "not evaluated" in answer.stdout:
        raise SystemExit(f"not all networks were evaluated:\n{answer.stdout}{answer.stderr}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="how many (default: 10000, the test set's number)")
    parser.add_argument("--depth", type=int, nargs="+", default=[29, 56], help="of the networks (default: 29 56)")
    parser.add_argument("--engine", nargs="+", default=["gluon"], help="of ours: gluon (default), pytorch, onnxruntime")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader (default: 2)")
    text = "all networks by one command, each of ours before the conventional way and after it"
    parser.add_argument("--whole", action="store_true", help=text)
    arguments = parser.parse_args()

    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "DNNL_", "ONEDNN_"))
    }
    environment["PYTHONPATH"] = str(ROOT)
    sys.path.insert(0, str(ROOT))
    import pydmobilenet
    from pydmobilenet import machine

    sets = f"{machine.cpu_name()}, {machine.instruction_set(environment={})} on all sides"
    print(f"{sets}; threads: ours {machine.available_processors()}, conventional MXNet's default")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = np.random.default_rng(0).integers(0, 256, (arguments.images, 3, 32, 32), dtype=np.uint8)
        np.save(folder / "images.npy", images)
        labels = np.zeros((len(images), 1), np.uint8)
        np.hstack([labels, images.reshape(len(images), -1)]).tofile(folder / "test_batch.bin")
        groups = [pydmobilenet.list_models(f"*-{depth}-*", "cifar10") for depth in arguments.depth]
        for name in (name for group in groups for name in group):
            export(name, folder / name)
        with Server(__file__, str(folder / "images.npy"), str(arguments.workers), environment=environment) as server:
            ways = {"conventional": lambda names: sum(float(server.ask(str(folder / name / "net"))) for name in names)}
            for engine in arguments.engine:
                ways[engine] = lambda names, engine=engine: ours(folder, names, engine, environment)
            if arguments.whole:
                whole(ways, [name for group in groups for name in group])
            else:
                compare(ways, dict(zip(arguments.depth, groups)))


def compare(ways: dict[str, Callable[[list[str]], float]], groups: dict[int, list[str]]) -> None:
    """Print the seconds of each way for the networks of each depth, and in total."""
    totals = dict.fromkeys(ways, 0.0)
    for turn, (depth, names) in enumerate(groups.items()):
        seconds = {way: ways[way](names) for way in sorted(ways, reverse=turn % 2 == 0)}  # the first one alternates
        print(f"depth {depth}, {len(names)} networks: {described(seconds)}", flush=True)
        totals = {way: totals[way] + seconds[way] for way in ways}
    print(f"together: {described(totals)}")


def whole(ways: dict[str, Callable[[list[str]], float]], names: list[str]) -> None:
    """Print the seconds of each way for all networks at once."""
    ours = [way for way in ways if way != "conventional"]
    before = [ways[way](names) for way in ours]
    print(f"before: {', '.join(f'{way} {seconds:.1f} s' for way, seconds in zip(ours, before))}", flush=True)
    conventional = ways["conventional"](names)
    after = [ways[way](names) for way in reversed(ours)][::-1]
    for way, *seconds in zip(ours, before, after):
        ratios = ", ".join(f"{conventional / value:.2f}" for value in seconds)
        print(
            f"{way}: {' and '.join(f'{value:.1f}' for value in seconds)} s against {conventional:.1f} s: {ratios} times"
        )


def described(seconds: dict[str, float]) -> str:
    first = seconds["conventional"]
    others = (f"{way} {time:.0f} s ({first / time:.2f} times)" for way, time in seconds.items() if time is not first)
    return ", ".join([f"conventional {first:.0f} s", *sorted(others)])


def export(name: str, folder: Path) -> None:
    """Write a network with random weights: as a graph for SymbolBlock, and as a run of `train.py`."""
    import mxnet as mx

    import pydmobilenet
    from pydmobilenet import fetching
    from pydmobilenet.checkpoints import formats

    net = pydmobilenet.get_model(name)
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    folder.mkdir()
    net.export(str(folder / "net"))
    arrays = {key: each.data().asnumpy() for key, each in net._collect_params_with_prefix().items()}
    (folder / "best.params").write_bytes(formats.dump_params(arrays))
    digest = fetching.digest(folder / "best.params", "sha256").partition(":")[2]
    metadata = {
        "model": name,
        "dataset": "cifar10",
        "checkpoints": {"best.params": {"test_error": 90, "sha256": digest}},
    }
    (folder / "run.json").write_text(json.dumps(metadata))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
