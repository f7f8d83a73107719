"""The networks as Gluon users write them: stem, stages of residual blocks, head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from .. import machine
from ..catalog import parse_name
from ..checkpoints import Checkpoint, weights
from ..data import get_task
from ..errors import BadFileError, UnusableError
from ..network import CIFAR, Architecture, Widths, describe, widths
from . import FAMILIES, devices
from .blocks import SPATIAL, BasicBlock, ResidualBlock, batch_norm, convolution, relu


class Stem(HybridBlock):
    """Standardise the image by its running statistics, then a 3x3 convolution: (N, 3, H, W) to (N, channels, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        # The authors' files hold a scale of 1 and a shift of 0 here, which nothing trains.
        self.norm = batch_norm(3, scale=False, center=False)
        self.conv = convolution(3, channels, 3)

    def hybrid_forward(self, F, x):
        return self.conv(self.norm(x))


class Head(HybridBlock):
    """Average over the map, then a dense layer: (N, channels, H, W) to logits (N, classes).

    With `features`, a normalised, activated 1x1 convolution to so many channels comes first.
    """

    def __init__(self, channels: int, classes: int, features: int):
        super().__init__()
        self.features = None
        if features:
            self.norm = batch_norm(channels)
            self.features = convolution(channels, features, 1, bias=True)
        self.pool = nn.GlobalAvgPool2D()
        self.dense = nn.Dense(classes, in_units=features or channels)

    def hybrid_forward(self, F, x):
        return self.dense(self.pooled(F, x))

    def pooled(self, F, x):
        """(N, channels, H, W) to (N, features, 1, 1)."""
        if self.features is not None:
            x = self.features(relu(F, self.norm(x)))
        return self.pool(x)


class Network(HybridBlock):
    """Normalised images (N, 3, H, W) to logits (N, classes); H and W are 32 in the paper, any multiple of 4 works.

    `blocks` residual blocks stand in each stage, `multiplier` times as wide inside as outside, rounded down.
    """

    def __init__(self, spatial: type, blocks: int, multiplier: float, classes: int, widths: Widths = CIFAR):
        super().__init__()
        self.stem = Stem(widths.stem)
        self.stages = nn.HybridSequential()
        inputs = widths.stem
        for stage, channels in enumerate(widths.stages):
            row = nn.HybridSequential()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                row.add(ResidualBlock(spatial, inputs, channels, int(channels * multiplier), stride))
                inputs = channels
            self.stages.add(row)
        self.head = Head(inputs, classes, widths.features)

    def hybrid_forward(self, F, x):
        return self.head(self.stages(self.stem(x)))

    def features(self, x: mx.nd.NDArray) -> mx.nd.NDArray:
        """The pooled features (N, C) of images (N, 3, H, W): what the dense layer sees."""
        return self.head.pooled(mx.nd, self.stages(self.stem(x))).flatten()


class WideResNet(HybridBlock):
    """A Wide ResNet (Zagoruyko and Komodakis, 2016, arXiv 1605.07146), under the names of GluonCV's.

    Normalised images (N, 3, H, W) to logits (N, classes). ``features`` alone gives the pooled features (N, C).
    """

    def __init__(self, blocks: int, factor: int, classes: int):
        super().__init__()
        self.features = nn.HybridSequential()
        self.features.add(batch_norm(3, scale=False, center=False), convolution(3, 16, 3), batch_norm(16))
        inputs = 16
        for stage, channels in enumerate((16 * factor, 32 * factor, 64 * factor)):
            row = nn.HybridSequential()
            for block in range(blocks):
                row.add(BasicBlock(inputs, channels, stride=2 if stage > 0 and block == 0 else 1))
                inputs = channels
            self.features.add(row)
        self.features.add(batch_norm(inputs), nn.Activation("relu"), nn.GlobalAvgPool2D(), nn.Flatten())
        self.output = nn.Dense(classes, in_units=inputs)

    def hybrid_forward(self, F, x):
        return self.output(self.features(x))


def make(source: Checkpoint, device: str | mx.Context | None = None) -> HybridBlock:
    """The network that `pydmobilenet.get_model` is asked for."""
    net = build(parse_name(source.model), source.task.outputs, widths(source.dataset))
    initialize(net, device)
    set_arrays(net, source.arrays())
    return net


def build_for(model: str, dataset: str, outputs: int | None = None) -> HybridBlock:
    """The network for a data set, its parameters not yet initialised. Raises as `build` does."""
    return build(parse_name(model), outputs or get_task(dataset).outputs, widths(dataset))


def build(architecture: Architecture, outputs: int, widths: Widths = CIFAR) -> HybridBlock:
    """The network of an architecture, its parameters not yet initialised, with its `description`.

    Raises UnusableError for a family without a hand-written network, and for a network too large for this machine.
    """
    family = architecture.family
    if family not in FAMILIES:
        raise UnusableError(f"engine 'gluon' has no network of family {family!r}; nearest: pytorch")
    description = describe(architecture, outputs, widths)
    machine.check_memory(f"{architecture.name} with {outputs} outputs", description.complexity().parameters)
    if family == "wrn":
        net = WideResNet(architecture.blocks, int(architecture.multiplier), outputs)
    else:
        net = Network(SPATIAL[family], architecture.blocks, architecture.multiplier, outputs, widths)
    net.description = description
    return net


def initialize(net: HybridBlock, device: str | mx.Context | None = None) -> None:
    """Draw the parameters (He initialisation), on a device by name, on a context, or on MXNet's current one."""
    net.initialize(mx.init.MSRAPrelu(), ctx=devices.choose(device).device if isinstance(device, str) else device)


def set_arrays(net: HybridBlock, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a network the parameters of these names; the others stay as they are."""
    parameters = net._collect_params_with_prefix()
    for name, array in arrays.items():
        parameters[name].set_data(mx.nd.array(array, dtype=parameters[name].dtype))


def load_weights(net: HybridBlock, path: Path, head: weights.Head = "required") -> bool:
    """Load a parameter file into a network, checked by `checkpoints.weights.load`. Nothing is changed where it raises.

    The answer is whether the dense layer was left as it is.
    """
    arrays = weights.load(path, net.description, head)
    set_arrays(net, arrays)
    return len(arrays) < len(net.description.parameters)


def get_arrays(net: HybridBlock) -> dict[str, np.ndarray]:
    """The parameters by structural name; raises BadFileError for those that are not initialised."""
    arrays = {}
    for name, parameter in net._collect_params_with_prefix().items():
        try:
            arrays[name] = parameter.list_data()[0].asnumpy()
        except (RuntimeError, mx.gluon.parameter.DeferredInitializationError):
            raise BadFileError(f"the network's parameter {name} is not initialised: load weights first") from None
    return arrays
