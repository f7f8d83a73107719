"""The networks, described: layers in the order of computing, without an engine.

A `Network` is a list of layers. Each has a name, the names of its inputs, and its attributes; from them come the shapes
of its output and of its parameters. Layers with parameters have the names that the checkpoints have. The input of the
network is called ``images``. Every engine computes what stands here, and a test holds each engine against it.

All feature maps are (channels, height, width), of one image. A convolution is square, and padded so that a stride of 1
keeps the size of the map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from .catalog import Architecture, Complexity

IMAGES = "images"
EPSILON = 1e-5  # of every batch normalisation
MOVING_STATISTICS = ("running_mean", "running_var")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One operation on the outputs of the layers, or the images, that `inputs` names."""

    name: str
    inputs: tuple[str, ...]

    @property
    def operator(self) -> str:
        return type(self).__name__

    @property
    def parameters(self) -> dict[str, Shape]:
        """The shapes of the layer's parameters, moving statistics included, by their own names, as ``weight``."""
        return {}

    def output(self, *inputs: Shape) -> Shape:
        """The shape of the output for inputs of these shapes."""
        return inputs[0]

    def multiply_adds(self, output: Shape) -> int:
        """Multiply-adds for an output of this shape; only those of convolutions and dense layers count."""
        return 0


@dataclass(frozen=True)
class Convolution(Layer):
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def parameters(self) -> dict[str, Shape]:
        weight = (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)
        return {"weight": weight, **({"bias": (self.out_channels,)} if self.bias else {})}

    def output(self, *inputs: Shape) -> Shape:
        _, height, width = inputs[0]
        return (self.out_channels, -(-height // self.stride), -(-width // self.stride))

    def multiply_adds(self, output: Shape) -> int:
        return math.prod(output) * math.prod(self.parameters["weight"][1:])


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Without `scale`, a scale of 1 stands for the one in the checkpoint."""

    channels: int
    scale: bool = True

    @property
    def parameters(self) -> dict[str, Shape]:
        return dict.fromkeys(("gamma", "beta", *MOVING_STATISTICS), (self.channels,))


@dataclass(frozen=True)
class ReLU(Layer):
    pass


@dataclass(frozen=True)
class Add(Layer):
    """The sum of all inputs."""


@dataclass(frozen=True)
class Concat(Layer):
    """All inputs, one after the other along the channels."""

    def output(self, *inputs: Shape) -> Shape:
        return (sum(shape[0] for shape in inputs), *inputs[0][1:])


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """The mean over the map: (channels,)."""

    def output(self, *inputs: Shape) -> Shape:
        return inputs[0][:1]


@dataclass(frozen=True)
class Dense(Layer):
    in_features: int
    out_features: int

    @property
    def parameters(self) -> dict[str, Shape]:
        return {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}

    def output(self, *inputs: Shape) -> Shape:
        return (self.out_features,)

    def multiply_adds(self, output: Shape) -> int:
        return self.in_features * self.out_features


@dataclass(frozen=True)
class Network:
    """Layers in the order of computing. The last one gives the logits, the one before it the pooled features."""

    layers: tuple[Layer, ...]

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return self.head.out_features

    @property
    def head(self) -> Dense:
        """The dense layer, which is all that depends on the number of classes."""
        last = self.layers[-1]
        assert isinstance(last, Dense)  # as `_Builder.finish` ends every network
        return last

    @cached_property
    def parameters(self) -> dict[str, Shape]:
        """What a checkpoint must hold: the shape of each parameter and moving statistic, by its full name."""
        return {f"{layer.name}.{name}": shape for layer in self.layers for name, shape in layer.parameters.items()}

    def shapes(self, image: Shape = (3, 32, 32)) -> dict[str, Shape]:
        """The shape of each layer's output for one image."""
        found = {IMAGES: image}
        for layer in self.layers:
            found[layer.name] = layer.output(*(found[name] for name in layer.inputs))
        return found

    def complexity(self, image: Shape = (3, 32, 32)) -> Complexity:
        """Parameters, and multiply-adds for one image."""
        shapes = self.shapes(image)
        return Complexity(
            sum(count(layer) for layer in self.layers),
            sum(layer.multiply_adds(shapes[layer.name]) for layer in self.layers),
        )


def count(layer: Layer) -> int:
    """The parameters of a layer as the published table counts them: without moving statistics."""
    return sum(math.prod(shape) for name, shape in layer.parameters.items() if name not in MOVING_STATISTICS)


@dataclass(frozen=True)
class Widths:
    """The channels of the stem and of the three stages, and of the head's 1x1 convolution (0: the head has none)."""

    stem: int
    stages: tuple[int, int, int]
    features: int


CIFAR = Widths(stem=32, stages=(32, 64, 128), features=0)
IMAGENET32 = Widths(stem=64, stages=(64, 128, 256), features=1280)


def describe(architecture: Architecture, outputs: int, widths: Widths = CIFAR) -> Network:
    """The network of an architecture with so many outputs. A Wide ResNet has one form for every data set.

    As the authors' graphs have it (arXiv 1811.07083): stem, three stages of residual blocks, head.
    """
    if architecture.family == "wrn":
        return _wide_resnet(architecture, outputs)
    net = _Builder()
    x = net.batch_norm("stem.norm", IMAGES, scale=False)  # standardises the image
    x = net.conv("stem.conv", x, widths.stem, kernel=3)
    for stage, channels in enumerate(widths.stages):
        for block in range(architecture.blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            width = int(channels * architecture.multiplier)
            x = _residual_block(net, f"stages.{stage}.{block}", architecture.family, x, channels, width, stride)
    if widths.features:
        x = net.batch_norm_relu("head.norm", "head.relu", x)
        x = net.conv("head.features", x, widths.features, kernel=1, bias=True)
    return net.finish("head.pool", "head.dense", x, outputs)


def _residual_block(net: _Builder, name: str, family: str, x: str, channels: int, width: int, stride: int) -> str:
    """Reduce by 1x1 to `width`, the spatial part, expand by 1x1, add the input.

    Pre-activation, but with a batch normalisation after the last convolution and nothing after the addition.
    """
    y = net.batch_norm_relu(f"{name}.norm1", f"{name}.relu1", x)
    y = net.conv(f"{name}.reduce", y, width, kernel=1)
    y = net.batch_norm_relu(f"{name}.norm2", f"{name}.relu2", y)
    y = _spatial(net, f"{name}.spatial", family, y, width, stride)
    y = net.batch_norm_relu(f"{name}.norm3", f"{name}.relu3", y)
    y = net.conv(f"{name}.expand", y, channels, kernel=1)
    y = net.batch_norm(f"{name}.norm4", y)
    if stride > 1:  # projected from the raw input, not from its activation
        x = net.conv(f"{name}.shortcut.0", x, channels, kernel=1, stride=stride)
        x = net.batch_norm(f"{name}.shortcut.1", x)
    return net.add(Add(f"{name}.add", (y, x)))


def _spatial(net: _Builder, name: str, family: str, x: str, width: int, stride: int) -> str:
    """What tells the families apart: the convolutions that see more than one pixel."""
    if family == "resnet":
        return net.conv(f"{name}.conv3", x, width, 3, stride)
    kernels = (3,) if family == "mobilenet" else (3, 5, 7)
    maps = [net.conv(f"{name}.conv{kernel}", x, width, kernel, stride, groups=width) for kernel in kernels]
    if family == "pyd-add":
        return net.add(Add(f"{name}.add", tuple(maps)))
    if family == "pyd-concat":
        return net.add(Concat(f"{name}.concat", tuple(maps)))
    return maps[0]


def _wide_resnet(architecture: Architecture, outputs: int) -> Network:
    """A Wide ResNet (Zagoruyko and Komodakis, 2016, arXiv 1605.07146) as GluonCV has it, and under its names."""
    factor = int(architecture.multiplier)
    net = _Builder()
    x = net.batch_norm("features.0", IMAGES, scale=False)
    x = net.conv("features.1", x, 16, kernel=3)
    x = net.batch_norm("features.2", x)
    for stage, channels in enumerate((16 * factor, 32 * factor, 64 * factor)):
        for block in range(architecture.blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _basic_block(net, f"features.{3 + stage}.{block}", x, channels, stride)
    x = net.batch_norm_relu("features.6", "features.7", x)
    return net.finish("features.8", "output", x, outputs)


def _basic_block(net: _Builder, name: str, x: str, channels: int, stride: int) -> str:
    """Two 3x3 convolutions, pre-activation. The shortcut, where it projects, starts from the activation."""
    activated = net.batch_norm_relu(f"{name}.bn1", f"{name}.relu1", x)
    y = net.conv(f"{name}.conv1", activated, channels, 3, stride)
    y = net.batch_norm_relu(f"{name}.bn2", f"{name}.relu2", y)
    y = net.conv(f"{name}.conv2", y, channels, 3)
    if net.channels[x] != channels:
        x = net.conv(f"{name}.downsample", activated, channels, 1, stride)
    return net.add(Add(f"{name}.add", (y, x)))


class _Builder:
    """Layers under construction. Each method adds one or two and returns the name of the last."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.channels = {IMAGES: 3}

    def add(self, layer: Layer) -> str:
        self.layers.append(layer)
        shapes = ((self.channels[name], 1, 1) for name in layer.inputs)
        self.channels[layer.name] = layer.output(*shapes)[0]
        return layer.name

    def conv(
        self, name: str, x: str, channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> str:
        return self.add(Convolution(name, (x,), self.channels[x], channels, kernel, stride, groups, bias))

    def batch_norm(self, name: str, x: str, scale: bool = True) -> str:
        return self.add(BatchNorm(name, (x,), self.channels[x], scale))

    def batch_norm_relu(self, name: str, relu: str, x: str) -> str:
        return self.add(ReLU(relu, (self.batch_norm(name, x),)))

    def finish(self, pool: str, dense: str, x: str, outputs: int) -> Network:
        x = self.add(GlobalAveragePool(pool, (x,)))
        self.add(Dense(dense, (x,), self.channels[x], outputs))
        return Network(tuple(self.layers))


def uses(layers: Iterable[Layer]) -> dict[str, int]:
    """How many layers use each output."""
    found: dict[str, int] = {}
    for layer in layers:
        for name in layer.inputs:
            found[name] = found.get(name, 0) + 1
    return found
