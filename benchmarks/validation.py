#!/usr/bin/env python3
"""Time of `run_validation.py`'s way of evaluating the 22 CIFAR-10 networks against the conventional way.

Conventional: SymbolBlock of the same graph, ``gluon.data.DataLoader`` with ``transform_first``, batch 128, MXNet's
default threads. Each way has a process of its own; the two take turns, network by network, on the same images.

    python benchmarks/validation.py                # 10,000 images, all 22 networks: about half an hour on two cores
    python benchmarks/validation.py --images 1000 --model 'pyd-*-29-*'
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def conventional(images: np.ndarray, workers: int):
    """Evaluate as MXNet's own tutorials do."""
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


def ours(images: np.ndarray):
    """Evaluate as `run_validation.py` does, but for where the weights come from."""
    import pydmobilenet  # noqa: F401  before mxnet: it sets the threads
    import mxnet as mx  # isort: skip

    from pydmobilenet import validation, zoo
    from pydmobilenet.data import Dataset, get_task
    from pydmobilenet.deploy import fuse
    from pydmobilenet.engine import GluonEngine, predictor

    dataset = Dataset(get_task("cifar10"), "test", images, np.zeros(len(images), np.int64), False, "benchmark")
    batch_size = GluonEngine(mx.cpu()).batch_size

    def evaluate(prefix: str) -> float:
        start = time.perf_counter()
        net = zoo.get_model(Path(prefix).name)
        net.load_parameters(f"{prefix}.structural")
        validation.evaluate(predictor(fuse(net), mx.cpu()), dataset, batch_size)
        return time.perf_counter() - start

    return evaluate


def serve(way: str, images: str, workers: int) -> None:
    """Answer each graph named on standard input with the seconds that its evaluation took."""
    arrays = np.load(images)
    evaluate = conventional(arrays, workers) if way == "conventional" else ours(arrays)
    for line in sys.stdin:
        print(evaluate(line.strip()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="how many (default: 10000, the test set's number)")
    parser.add_argument("--model", default="*", help="name or wildcard (default: all 22)")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader (default: 2)")
    arguments = parser.parse_args()

    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    import pydmobilenet

    with tempfile.TemporaryDirectory() as folder:
        images = f"{folder}/images.npy"
        np.save(images, np.random.default_rng(0).integers(0, 256, (arguments.images, 3, 32, 32), dtype=np.uint8))
        names = pydmobilenet.list_models(arguments.model, "cifar10")
        if not names:
            parser.error(
                f"no CIFAR-10 network matches {arguments.model!r}; all: {', '.join(pydmobilenet.list_models())}"
            )
        for name in names:
            export(name, f"{folder}/{name}")
        servers = {
            way: subprocess.Popen(
                [sys.executable, __file__, "--serve", way, images, str(arguments.workers)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for way in ("conventional", "ours")
        }
        times = {way: [] for way in servers}
        print(f"{'model':20} {'conventional, s':>16} {'ours, s':>9} {'ratio':>7}")
        for turn, name in enumerate(names):
            for way in sorted(servers, reverse=turn % 2 == 0):  # who comes first alternates too
                servers[way].stdin.write(f"{folder}/{name}\n")
                servers[way].stdin.flush()
                times[way].append(float(servers[way].stdout.readline()))
            last = {way: seconds[-1] for way, seconds in times.items()}
            ratio = last["conventional"] / last["ours"]
            print(f"{name:20} {last['conventional']:16.1f} {last['ours']:9.1f} {ratio:7.2f}", flush=True)
        for server in servers.values():
            server.stdin.close()
            server.wait()
    ratios = [a / b for a, b in zip(times["conventional"], times["ours"])]
    totals = {way: sum(seconds) for way, seconds in times.items()}
    print(f"{'total':20} {totals['conventional']:16.1f} {totals['ours']:9.1f}", end=" ")
    print(f"{totals['conventional'] / totals['ours']:7.2f}")
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def export(name: str, prefix: str) -> None:
    """Write a network's graph and parameters for SymbolBlock, and its parameters for `load_parameters`."""
    import mxnet as mx

    import pydmobilenet

    net = pydmobilenet.get_model(name)
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.export(prefix)
    net.save_parameters(f"{prefix}.structural")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
