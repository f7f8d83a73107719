#!/usr/bin/env python3
"""Images a second of `train.py`'s whole loop, data included, against the conventional one and Gluon's backward pass.

- conventional: the same graph as a trainable SymbolBlock, hybridised static, ``gluon.data.DataLoader`` with two workers
  and per-sample transforms
- gluon: `train.py`'s loop with MXNet's own backward pass of the literal network
- ours: `train.py`'s loop as it is

The first two use every instruction that the processor has, the last one is limited as `train.py` is. All train with
Nesterov SGD at a batch of 128 on images of random pixels. Each side has a process of its own; they take turns, some
batches each, and those of the other sides are stopped meanwhile: the DataLoader's workers would go on.

    python benchmarks/training.py                                  # a network of each family: about 20 minutes
    python benchmarks/training.py --model 'pyd-*-29-*' --rounds 3 --threads 1 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from server import Server

BATCH, WARM_UP, IMAGES = 128, 2, 10_000
OPTIMISER = {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-4}
DEFAULT = ("resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.25", "pyd-add-56-0.5", "pyd-concat-29-0.25")


def pixels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, IMAGES)


def conventional(prefix: str) -> Iterator[None]:
    """Train a batch each time it is asked, as MXNet's own tutorials do."""
    np.bool = np.bool_
    import mxnet as mx
    from gluoncv.data import transforms as gcv_transforms
    from mxnet import autograd, gluon
    from mxnet.gluon.data.vision import transforms

    images, labels = pixels()
    normalise = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    steps = [gcv_transforms.RandomCrop(32, pad=4), transforms.RandomFlipLeftRight(), transforms.ToTensor(), normalise]
    samples = gluon.data.ArrayDataset(mx.nd.array(images.transpose(0, 2, 3, 1), dtype="uint8"), labels.astype(np.int32))
    transformed = samples.transform_first(transforms.Compose(steps))
    loader = gluon.data.DataLoader(transformed, BATCH, shuffle=True, last_batch="discard", num_workers=2)
    net = gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params")
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), "nag", OPTIMISER)
    loss_function, metric = gluon.loss.SoftmaxCrossEntropyLoss(), mx.metric.Accuracy()
    while True:
        for data, label in loader:
            data = data.as_in_context(mx.cpu())
            with autograd.record():
                output = net(data)
                loss = loss_function(output, label)
            loss.backward()
            trainer.step(BATCH)
            metric.update([label], [output])
            yield


def gluon(prefix: str) -> Iterator[None]:
    """Train a batch each time it is asked, by `train.py`'s loop with MXNet's own backward pass."""
    import pydmobilenet  # noqa: F401  before mxnet
    from pydmobilenet.gluon import step

    step.make = lambda net, loss, context: step.LiteralStep(net, loss)
    return ours(prefix)


def ours(prefix: str) -> Iterator[None]:
    """Train a batch each time it is asked, as `train.py` does."""
    import pydmobilenet
    import mxnet as mx  # isort: skip

    from pydmobilenet.data import Dataset, batches, get_task
    from pydmobilenet.gluon.trainer import GluonTrainer
    from pydmobilenet.training import config, mixup

    recipe = config.make({**config.read("configs/cifar.yaml"), "model": os.path.basename(prefix), "batch_size": BATCH})
    net = pydmobilenet.get_model(recipe.model)
    net.load_parameters(f"{prefix}.structural")
    trainer = GluonTrainer(net, recipe, [mx.cpu()])
    dataset, read, epoch = Dataset(get_task("cifar10"), "train", *pixels(), False, "benchmark"), None, 0
    while True:
        for images, labels in batches(dataset, BATCH, train=True, epoch=epoch):
            targets = mixup.targets(labels, 10)
            read, due = trainer.train_step(images, targets, OPTIMISER["learning_rate"]), read
            if due:
                due()
            yield
        epoch += 1


WAYS = {"conventional": conventional, "gluon": gluon, "ours": ours}


def serve(way: Callable[[str], Iterator[None]]) -> None:
    """For each ``graph batches`` on standard input, the seconds of so many batches; a new graph is warmed up first."""
    current, stream = None, iter(())
    for line in sys.stdin:
        prefix, number = line.split()
        if prefix != current:
            current, stream = prefix, way(prefix)
            seconds(stream, WARM_UP)
        print(seconds(stream, int(number)), flush=True)


def seconds(stream: Iterator[None], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        next(stream)
    import mxnet as mx  # by now it is there, imported in each side's own way

    mx.nd.waitall()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", default=DEFAULT, help=f"names or wildcards (default: {' '.join(DEFAULT)})"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--batches", type=int, default=6, help="a round (default: 6)")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="of each side (default: as each has it)")
    arguments = parser.parse_args()
    import pydmobilenet

    names = [name for pattern in arguments.model for name in pydmobilenet.list_models(pattern, "cifar10")]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            export(name, f"{folder}/{name}")
        for threads in arguments.threads:
            compare(folder, names, threads, arguments.rounds, arguments.batches)


def compare(folder: str, names: Sequence[str], threads: int, rounds: int, batches: int) -> None:
    """Print images/s of each way for each network, and how many times as fast as the others ours is."""
    from pydmobilenet import processor

    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", processor.VARIABLE)}
    if threads:
        clean["OMP_NUM_THREADS"] = str(threads)
    environments = {way: {**clean, processor.VARIABLE: processor.ALL} for way in WAYS}
    environments["ours"] = clean
    sets = ", ".join(
        f"{way} {processor.instruction_set(environment=environments[way])}" for way in ("conventional", "gluon")
    )
    print(
        f"\n{processor.cpu_name()}, threads: {threads or 'the default of each side'}; {sets}, ours as train.py has it"
    )
    print(f"{'model':20} {'conventional':>13} {'gluon':>6} {'ours, images/s':>15}  ours / conventional    ours / gluon")
    with ExitStack() as stack:
        sides = {way: stack.enter_context(Server(__file__, way, environment=environments[way])) for way in WAYS}
        for side in sides.values():
            side.pause()
        for name in names:
            rates = {way: [] for way in sides}
            for turn in range(rounds):
                for way in sorted(sides, reverse=turn % 2 == 0):  # who comes first alternates too
                    sides[way].resume()
                    rates[way].append(BATCH * batches / float(sides[way].ask(f"{folder}/{name} {batches}")))
                    sides[way].pause()
            middle = {way: statistics.median(values) for way, values in rates.items()}
            ratios = "  ".join(f"{ratio(rates['ours'], rates[way]):>20}" for way in ("conventional", "gluon"))
            figures = f"{middle['conventional']:13.0f} {middle['gluon']:6.0f} {middle['ours']:15.0f}"
            print(f"{name:20} {figures} {ratios}", flush=True)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of the rounds' ratios, with the lowest and the highest."""
    ratios = [mine / other for mine, other in zip(ours, theirs)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


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
        serve(WAYS[sys.argv[2]])
    else:
        main()
