#!/usr/bin/env python3
"""Images a second of `pydmobilenet.data.batches` against ``gluon.data.DataLoader`` with the conventional transforms.

Both give float32 batches of 128 CIFAR-sized images in NCHW, for training (pad, random crop, random flip, normalise)
and for validation (normalise). The sides take turns; the better of 0 and 2 workers counts for the DataLoader.

    python benchmarks/data.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import pydmobilenet  # noqa: F401  before mxnet
from pydmobilenet import provenance
from pydmobilenet.data import Dataset, batches, get_task

BATCH = 128


def seconds(iterable, copied: bool = False) -> float:
    """Time an epoch; with `copied`, copy each batch into an NDArray, as the DataLoader does."""
    import mxnet as mx

    start = time.perf_counter()
    for images, _ in iterable:
        assert images.shape[1:] == (3, 32, 32)
        if copied:
            mx.nd.empty(images.shape)[:] = images
    mx.nd.waitall()
    return time.perf_counter() - start


def loader(dataset: Dataset, train: bool, workers: int):
    """Transform sample by sample, as GluonCV's and the authors' scripts do."""
    import mxnet as mx
    from gluoncv.data import transforms as gcv_transforms
    from mxnet import gluon
    from mxnet.gluon.data.vision import transforms

    steps = [transforms.ToTensor(), transforms.Normalize(dataset.task.mean, dataset.task.std)]
    if train:
        steps = [gcv_transforms.RandomCrop(32, pad=4), transforms.RandomFlipLeftRight(), *steps]
    samples = gluon.data.ArrayDataset(
        mx.nd.array(dataset.images.transpose(0, 2, 3, 1), dtype="uint8"), dataset.labels.astype(np.int32)
    )
    last = "discard" if train else "keep"
    transformed = samples.transform_first(transforms.Compose(steps))
    return gluon.data.DataLoader(transformed, BATCH, shuffle=train, last_batch=last, num_workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    rounds = parser.parse_args().rounds
    print(provenance.summary())
    rng = np.random.default_rng(0)

    def make(number):
        images = rng.integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)
        return Dataset(get_task("cifar10"), "train", images, rng.integers(0, 10, number), False, "benchmark")

    large, small = make(50_000), make(5_000)  # fewer for the DataLoader: it has no start-up cost to spread
    for train in (True, False):
        loaders = {workers: loader(small, train, workers) for workers in (0, 2)}
        rates = {"ours, NumPy arrays": [], "ours, NDArrays": [], 0: [], 2: []}
        for _ in range(rounds):
            rates["ours, NumPy arrays"].append(len(large) / seconds(batches(large, BATCH, train)))
            rates["ours, NDArrays"].append(len(large) / seconds(batches(large, BATCH, train), copied=True))
            for workers, conventional in loaders.items():
                rates[workers].append(len(small) / seconds(conventional))
        best = max((0, 2), key=lambda workers: statistics.median(rates[workers]))
        print("training" if train else "validation")
        for way, values in rates.items():
            name = way if isinstance(way, str) else f"DataLoader, {way} workers"
            ratios = [ours / theirs for ours, theirs in zip(values, rates[best])]
            print(
                f"  {name:21} {statistics.median(values):9,.0f} images/s ({min(values):,.0f} to {max(values):,.0f}), "
                f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
