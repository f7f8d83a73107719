"""Training by MXNet: as in its tutorials, by `train.py`'s loop with MXNet's backward pass, and by `train.py`'s loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import numpy as np

from . import BATCH, LEARNING_RATE, MEAN, MOMENTUM, STD, WEIGHT_DECAY, loop, pixels


def conventional(prefix: str) -> Iterator[None]:
    """Train the same graph as a SymbolBlock, hybridised static, with a DataLoader of two workers."""
    np.bool = np.bool_
    sys.modules["torch"] = None  # beside a new PyTorch, GluonCV refuses to be imported
    import mxnet as mx
    from gluoncv.data import transforms as gcv_transforms
    from mxnet import autograd, gluon
    from mxnet.gluon.data.vision import transforms

    images, labels = pixels()
    crop = gcv_transforms.RandomCrop(32, pad=4)
    steps = [crop, transforms.RandomFlipLeftRight(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    samples = gluon.data.ArrayDataset(mx.nd.array(images.transpose(0, 2, 3, 1), dtype="uint8"), labels.astype(np.int32))
    transformed = samples.transform_first(transforms.Compose(steps))
    loader = gluon.data.DataLoader(transformed, BATCH, shuffle=True, last_batch="discard", num_workers=2)
    net = gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params")
    net.hybridize(static_alloc=True, static_shape=True)
    options = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "wd": WEIGHT_DECAY}
    trainer = gluon.Trainer(net.collect_params(), "nag", options)
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


def own_backward(prefix: str) -> Iterator[None]:
    """Run `train.py`'s loop with MXNet's own backward pass."""
    import pydmobilenet  # noqa: F401  before mxnet
    from pydmobilenet.gluon import pyramid, trainer

    def reference(net, loss, context):
        net.hybridize(static_alloc=True, static_shape=True)
        return pyramid.Step(net, loss)

    trainer.make_step = reference
    return ours(prefix)


def ours(prefix: str) -> Iterator[None]:
    """Run `train.py`'s loop."""
    import pydmobilenet  # noqa: F401  before mxnet
    import mxnet as mx  # isort: skip

    from pydmobilenet.gluon import trainer

    return loop(partial(trainer.make, contexts=[mx.cpu()]), prefix.rpartition("/")[2])
