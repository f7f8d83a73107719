"""The networks as Gluon users write them: stem, stages of residual blocks, head. Feature maps are (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
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
from ..network import CIFAR, EPSILON, Architecture, Widths, describe, widths
from . import FAMILIES, runtime


def batch_norm(channels: int, **options) -> nn.BatchNorm:
    """Build batch normalisation with the authors' epsilon and momentum."""
    return nn.BatchNorm(in_channels=channels, epsilon=EPSILON, momentum=0.9, **options)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias=False) -> nn.Conv2D:
    """Build a square, zero-padded convolution: (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
    return nn.Conv2D(outputs, kernel, stride, kernel // 2, groups=groups, use_bias=bias, in_channels=inputs)


def relu(F, x):
    return F.Activation(x, act_type="relu")


class Spatial(HybridBlock):
    """A block's spatial part: convolutions ``conv3``, ``conv5``, ... of one input, their maps added or concatenated."""

    def __init__(self, channels: int, stride: int, kernels: tuple[int, ...], depthwise: bool, join: str):
        super().__init__()
        self.stride, self.join = stride, join
        for kernel in kernels:
            groups = channels if depthwise else 1
            setattr(self, f"conv{kernel}", convolution(channels, channels, kernel, stride, groups))

    def hybrid_forward(self, F, x):
        maps = [conv(x) for conv in self._children.values()]
        return F.concat(*maps, dim=1) if self.join == "concat" else reduce(add, maps)


# By family: the kernels, whether they are depthwise, and how their maps are joined.
SPATIAL: dict[str, tuple[tuple[int, ...], bool, str]] = {
    "resnet": ((3,), False, "add"),
    "mobilenet": ((3,), True, "add"),
    "pyd-add": ((3, 5, 7), True, "add"),
    "pyd-concat": ((3, 5, 7), True, "concat"),
}


class ResidualBlock(HybridBlock):
    """1x1 reduce to `width` channels, spatial part, 1x1 expand, add the input: (N, inputs, H, W) to
    (N, channels, H / stride, W / stride).

    Pre-activation, but with a batch normalisation after the last convolution and nothing after the addition.
    """

    def __init__(self, family: str, inputs: int, channels: int, width: int, stride: int):
        super().__init__()
        kernels, depthwise, join = SPATIAL[family]
        joined = width * len(kernels) if join == "concat" else width
        self.norm1 = batch_norm(inputs)
        self.reduce = convolution(inputs, width, 1)
        self.norm2 = batch_norm(width)
        self.spatial = Spatial(width, stride, kernels, depthwise, join)
        self.norm3 = batch_norm(joined)
        self.expand = convolution(joined, channels, 1)
        self.norm4 = batch_norm(channels)
        self.shortcut = None
        if stride > 1:  # projected from the raw input, not from its activation
            self.shortcut = nn.HybridSequential()
            self.shortcut.add(convolution(inputs, channels, 1, stride), batch_norm(channels))

    def hybrid_forward(self, F, x):
        y = self.reduce(relu(F, self.norm1(x)))
        y = self.spatial(relu(F, self.norm2(y)))
        y = self.norm4(self.expand(relu(F, self.norm3(y))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class BasicBlock(HybridBlock):
    """A Wide ResNet's block, two 3x3 convolutions, pre-activation: (N, inputs, H, W) to
    (N, channels, H / stride, W / stride). If the channels change, the activated input is projected.
    """

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = batch_norm(inputs)
        self.conv1 = convolution(inputs, channels, 3, stride)
        self.bn2 = batch_norm(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.downsample = convolution(inputs, channels, 1, stride) if inputs != channels else None

    def hybrid_forward(self, F, x):
        activated = relu(F, self.bn1(x))
        y = self.conv2(relu(F, self.bn2(self.conv1(activated))))
        return y + (x if self.downsample is None else self.downsample(activated))


class Stem(HybridBlock):
    """Standardise the image by its running statistics, then a 3x3 convolution: (N, 3, H, W) to (N, channels, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        # The authors' files hold an untrained scale of 1 and shift of 0 here.
        self.norm = batch_norm(3, scale=False, center=False)
        self.conv = convolution(3, channels, 3)

    def hybrid_forward(self, F, x):
        return self.conv(self.norm(x))


class Head(HybridBlock):
    """Average over the map, then a dense layer: (N, channels, H, W) to logits (N, classes).

    With `features`, a normalised, activated 1x1 convolution to `features` channels comes first.
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
        """Pool (N, channels, H, W) to (N, features, 1, 1)."""
        if self.features is not None:
            x = self.features(relu(F, self.norm(x)))
        return self.pool(x)


class Network(HybridBlock):
    """Normalised images (N, 3, H, W) to logits (N, classes). H and W: 32 in the paper, else a multiple of 4.

    Each stage has `blocks` residual blocks, `multiplier` times as wide inside as outside, rounded down.
    """

    def __init__(self, family: str, blocks: int, multiplier: float, classes: int, widths: Widths = CIFAR):
        super().__init__()
        self.stem = Stem(widths.stem)
        self.stages = nn.HybridSequential()
        inputs = widths.stem
        for stage, channels in enumerate(widths.stages):
            row = nn.HybridSequential()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                row.add(ResidualBlock(family, inputs, channels, int(channels * multiplier), stride))
                inputs = channels
            self.stages.add(row)
        self.head = Head(inputs, classes, widths.features)

    def hybrid_forward(self, F, x):
        return self.head(self.stages(self.stem(x)))

    def features(self, x: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the pooled features (N, C) of images (N, 3, H, W), the dense layer's input."""
        return self.head.pooled(mx.nd, self.stages(self.stem(x))).flatten()


class WideResNet(HybridBlock):
    """A Wide ResNet (Zagoruyko and Komodakis, 2016, arXiv 1605.07146), with GluonCV's names.

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
    """Build the network of `pydmobilenet.get_model`."""
    net = build(parse_name(source.model), source.task.outputs, widths(source.dataset))
    initialize(net, device)
    set_arrays(net, source.arrays())
    return net


def build_for(model: str, dataset: str, outputs: int | None = None) -> HybridBlock:
    """Build an uninitialised network for a data set. Raises as `build`."""
    return build(parse_name(model), outputs or get_task(dataset).outputs, widths(dataset))


def build(architecture: Architecture, outputs: int, widths: Widths = CIFAR) -> HybridBlock:
    """Build an uninitialised network, with its `description`.

    Raises UnusableError for a family without a HybridBlock, and for a network too large for this machine.
    """
    family = architecture.family
    if family not in FAMILIES:
        raise UnusableError(f"engine 'gluon' has no network of family {family!r}; nearest: pytorch")
    description = describe(architecture, outputs, widths)
    machine.check_memory(f"{architecture.name} with {outputs} outputs", description.complexity().parameters)
    if family == "wrn":
        net = WideResNet(architecture.blocks, int(architecture.multiplier), outputs)
    else:
        net = Network(family, architecture.blocks, architecture.multiplier, outputs, widths)
    net.description = description
    return net


def initialize(net: HybridBlock, device: str | mx.Context | None = None) -> None:
    """Draw the parameters (He initialisation) on a device, by default MXNet's current context."""
    net.initialize(mx.init.MSRAPrelu(), ctx=runtime.choose(device).device if isinstance(device, str) else device)


def set_arrays(net: HybridBlock, arrays: Mapping[str, np.ndarray]) -> None:
    """Set the parameters of these names; keep the others."""
    parameters = net._collect_params_with_prefix()
    for name, array in arrays.items():
        parameters[name].set_data(mx.nd.array(array, dtype=parameters[name].dtype))


def load_weights(net: HybridBlock, path: Path, head: weights.Head = "required") -> bool:
    """Load a parameter file, checked by `checkpoints.weights.load`. Return whether the dense layer was kept.

    If it raises, nothing has changed.
    """
    arrays = weights.load(path, net.description, head)
    set_arrays(net, arrays)
    return len(arrays) < len(net.description.parameters)


def get_arrays(net: HybridBlock) -> dict[str, np.ndarray]:
    """Return the parameters by structural name. Raises BadFileError if one is not initialised."""
    arrays = {}
    for name, parameter in net._collect_params_with_prefix().items():
        try:
            arrays[name] = parameter.list_data()[0].asnumpy()
        except (RuntimeError, mx.gluon.parameter.DeferredInitializationError):
            raise BadFileError(f"the network's parameter {name} is not initialised: load weights first") from None
    return arrays
