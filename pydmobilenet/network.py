"""The networks: lists of layers, without an engine. The file to open first.

The paper adds the `Pyramid`: depthwise convolutions of one input by kernels of several sizes. A `Network` is a list of
layers in the order of computing. A layer has a name, as in checkpoints, the names of its inputs, and attributes; they
give the shapes of its output and its parameters. The network's input is called ``images``. Every engine computes these
lists, and the tests compare each engine with them.

A family of networks is a function registered in `FAMILIES`; names, engines, exports and tests follow from it.

Feature maps are (channels, height, width), for one image. Convolutions are square, and padded to keep the size of the
map with a stride of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

IMAGES = "images"
EPSILON = 1e-5  # of every batch normalisation
MOVING_STATISTICS = ("running_mean", "running_var")
Shape = tuple[int, ...]
Join = Literal["add", "concat", "max"]
"""How a pyramid joins its maps: their sum, a concatenation along the channels, or the largest value."""


class Complexity(NamedTuple):
    """All weights, biases, scales and shifts, trained or fixed; multiply-adds of convolutions and dense layers."""

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Layer:
    """One operation on the outputs of other layers, or on the images, named by `inputs`."""

    name: str
    inputs: tuple[str, ...]

    @property
    def operator(self) -> str:
        return type(self).__name__

    @property
    def parameters(self) -> dict[str, Shape]:
        """The shapes of parameters and moving statistics by their names within the layer, as ``weight``."""
        return {}

    def output(self, *inputs: Shape) -> Shape:
        """Return the shape of the output for inputs of these shapes."""
        return inputs[0]

    def multiply_adds(self, output: Shape) -> int:
        """Count multiply-adds for an output of this shape; only convolutions and dense layers have some."""
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
class Pyramid(Layer):
    """Depthwise convolutions of one input by each of the `kernels`, and a join of their maps (arXiv 1811.07083).

    MobileNet's depthwise convolution is the pyramid of one kernel.
    """

    channels: int
    kernels: tuple[int, ...] = (3, 5, 7)
    stride: int = 1
    join: Join = "add"

    @property
    def parameters(self) -> dict[str, Shape]:
        return {f"conv{kernel}.weight": (self.channels, 1, kernel, kernel) for kernel in self.kernels}

    def output(self, *inputs: Shape) -> Shape:
        _, height, width = inputs[0]
        channels = self.channels * (len(self.kernels) if self.join == "concat" else 1)
        return (channels, -(-height // self.stride), -(-width // self.stride))

    def multiply_adds(self, output: Shape) -> int:
        return math.prod((self.channels, *output[1:])) * sum(kernel**2 for kernel in self.kernels)


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Without `scale`, the scale is 1 instead of the checkpoint's."""

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
class Maximum(Layer):
    """The largest value of all inputs, pixel by pixel."""


@dataclass(frozen=True)
class Concat(Layer):
    """All inputs, concatenated along the channels."""

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
        """The dense layer: only its size depends on the number of classes."""
        last = self.layers[-1]
        assert isinstance(last, Dense)  # by `Builder.finish`
        return last

    @cached_property
    def parameters(self) -> dict[str, Shape]:
        """The shapes of all parameters and moving statistics in a checkpoint, by their full names."""
        return {f"{layer.name}.{name}": shape for layer in self.layers for name, shape in layer.parameters.items()}

    def shapes(self, image: Shape = (3, 32, 32)) -> dict[str, Shape]:
        """Return the shape of each layer's output for one image."""
        shapes = {IMAGES: image}
        for layer in self.layers:
            shapes[layer.name] = layer.output(*(shapes[name] for name in layer.inputs))
        return shapes

    def complexity(self, image: Shape = (3, 32, 32)) -> Complexity:
        """Count parameters, and multiply-adds for one image."""
        shapes = self.shapes(image)
        return Complexity(
            sum(count(layer) for layer in self.layers),
            sum(layer.multiply_adds(shapes[layer.name]) for layer in self.layers),
        )


def count(layer: Layer) -> int:
    """Count the parameters of a layer as the published table does: without moving statistics."""
    return sum(math.prod(shape) for name, shape in layer.parameters.items() if name not in MOVING_STATISTICS)


@dataclass(frozen=True)
class Architecture:
    """The parts of a model's name. The multiplier of a Wide ResNet is its width factor."""

    family: str
    depth: int
    multiplier: float

    @property
    def name(self) -> str:
        return f"{self.family}-{self.depth}-{float(self.multiplier)!r}".removesuffix(".0")

    @property
    def blocks(self) -> int:
        """The residual blocks of each of the three stages."""
        family = FAMILIES[self.family]
        return (self.depth - family.other_layers) // family.layers_per_block


@dataclass(frozen=True)
class Widths:
    """The channels of the stem, the three stages, and the head's 1x1 convolution (0: none)."""

    stem: int
    stages: tuple[int, int, int]
    features: int


CIFAR = Widths(stem=32, stages=(32, 64, 128), features=0)
IMAGENET32 = Widths(stem=64, stages=(64, 128, 256), features=1280)


def widths(dataset: str) -> Widths:
    """Return the widths of the networks for a data set."""
    return IMAGENET32 if dataset == "imagenet32" else CIFAR


@dataclass(frozen=True)
class Family:
    """Networks with different depths and widths, made by `describe`.

    The depth is a multiple of `layers_per_block` plus `other_layers`; one block stands for one in each stage. With
    `whole_multiplier`, only whole factors widen them.
    """

    describe: Callable[[Architecture, int, Widths], Network]
    layers_per_block: int = 9
    other_layers: int = 2
    whole_multiplier: bool = False


FAMILIES: dict[str, Family] = {}
"""All families by the first part of their models' names."""


def describe(architecture: Architecture, outputs: int, widths: Widths = CIFAR) -> Network:
    """Return the network of an architecture with so many outputs. Wide ResNets ignore the `widths`."""
    return FAMILIES[architecture.family].describe(architecture, outputs, widths)


Spatial = Callable[["Builder", str, str, int, int], str]
"""Add the spatial part of a block: takes builder, name, input, channels and stride."""


def register_family(name: str) -> Callable[[Spatial], Spatial]:
    """Register a family of residual networks with the decorated function as the spatial part of their blocks."""

    def register(spatial: Spatial) -> Spatial:
        FAMILIES[name] = Family(partial(_residual_network, spatial))
        return spatial

    return register


def _residual_network(spatial: Spatial, architecture: Architecture, outputs: int, widths: Widths) -> Network:
    """Build stem, three stages of residual blocks, and head, as in the authors' graphs (arXiv 1811.07083)."""
    net = Builder()
    x = net.batch_norm("stem.norm", IMAGES, scale=False)  # standardises the image
    x = net.conv("stem.conv", x, widths.stem, kernel=3)
    for stage, channels in enumerate(widths.stages):
        for block in range(architecture.blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            width = int(channels * architecture.multiplier)
            x = _residual_block(net, f"stages.{stage}.{block}", spatial, x, channels, width, stride)
    if widths.features:
        x = net.batch_norm_relu("head.norm", "head.relu", x)
        x = net.conv("head.features", x, widths.features, kernel=1, bias=True)
    return net.finish("head.pool", "head.dense", x, outputs)


def _residual_block(net: Builder, name: str, spatial: Spatial, x: str, channels: int, width: int, stride: int) -> str:
    """Reduce by 1x1 to `width`, apply the spatial part, expand by 1x1, add the input.

    Pre-activation, but with a batch normalisation after the last convolution and nothing after the addition.
    """
    y = net.batch_norm_relu(f"{name}.norm1", f"{name}.relu1", x)
    y = net.conv(f"{name}.reduce", y, width, kernel=1)
    y = net.batch_norm_relu(f"{name}.norm2", f"{name}.relu2", y)
    y = spatial(net, f"{name}.spatial", y, width, stride)
    y = net.batch_norm_relu(f"{name}.norm3", f"{name}.relu3", y)
    y = net.conv(f"{name}.expand", y, channels, kernel=1)
    y = net.batch_norm(f"{name}.norm4", y)
    if stride > 1:  # projected from the raw input, not from its activation
        x = net.conv(f"{name}.shortcut.0", x, channels, kernel=1, stride=stride)
        x = net.batch_norm(f"{name}.shortcut.1", x)
    return net.add(Add(f"{name}.add", (y, x)))


@register_family("resnet")
def _resnet(net: Builder, name: str, x: str, channels: int, stride: int) -> str:
    """Add a 3x3 convolution: every output channel sees every input channel."""
    return net.conv(f"{name}.conv3", x, channels, 3, stride)


@register_family("mobilenet")
def _mobilenet(net: Builder, name: str, x: str, channels: int, stride: int) -> str:
    """Add a depthwise 3x3 convolution: one filter a channel."""
    return net.add(Pyramid(name, (x,), channels, (3,), stride))


@register_family("pyd-add")
def _pyd_add(net: Builder, name: str, x: str, channels: int, stride: int) -> str:
    """Sum the maps of 3x3, 5x5 and 7x7 (PydMobileNet-Add): the width stays."""
    return net.add(Pyramid(name, (x,), channels, (3, 5, 7), stride, "add"))


@register_family("pyd-concat")
def _pyd_concat(net: Builder, name: str, x: str, channels: int, stride: int) -> str:
    """Concatenate the maps of 3x3, 5x5 and 7x7 (PydMobileNet-Concat): the width triples."""
    return net.add(Pyramid(name, (x,), channels, (3, 5, 7), stride, "concat"))


def _wide_resnet(architecture: Architecture, outputs: int, widths: Widths) -> Network:
    """Build a Wide ResNet (Zagoruyko and Komodakis, 2016, arXiv 1605.07146), under GluonCV's names."""
    factor = int(architecture.multiplier)
    net = Builder()
    x = net.batch_norm("features.0", IMAGES, scale=False)
    x = net.conv("features.1", x, 16, kernel=3)
    x = net.batch_norm("features.2", x)
    for stage, channels in enumerate((16 * factor, 32 * factor, 64 * factor)):
        for block in range(architecture.blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _basic_block(net, f"features.{3 + stage}.{block}", x, channels, stride)
    x = net.batch_norm_relu("features.6", "features.7", x)
    return net.finish("pool", "output", x, outputs)


def _basic_block(net: Builder, name: str, x: str, channels: int, stride: int) -> str:
    """Add two 3x3 convolutions, pre-activation. A projecting shortcut starts from the activation."""
    activated = net.batch_norm_relu(f"{name}.bn1", f"{name}.relu1", x)
    y = net.conv(f"{name}.conv1", activated, channels, 3, stride)
    y = net.batch_norm_relu(f"{name}.bn2", f"{name}.relu2", y)
    y = net.conv(f"{name}.conv2", y, channels, 3)
    if net.channels[x] != channels:
        x = net.conv(f"{name}.downsample", activated, channels, 1, stride)
    return net.add(Add(f"{name}.add", (y, x)))


FAMILIES["wrn"] = Family(_wide_resnet, layers_per_block=6, other_layers=4, whole_multiplier=True)


class Builder:
    """A list of layers. Each method adds one or two and returns the name of the last."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.channels = {IMAGES: 3}

    def add(self, layer: Layer) -> str:
        self.layers.append(layer)
        shapes = ((self.channels[name], 1, 1) for name in layer.inputs)
        self.channels[layer.name] = layer.output(*shapes)[0]
        return layer.name

    def conv(self, name: str, x: str, channels: int, kernel: int, stride: int = 1, bias: bool = False) -> str:
        return self.add(Convolution(name, (x,), self.channels[x], channels, kernel, stride, bias=bias))

    def batch_norm(self, name: str, x: str, scale: bool = True) -> str:
        return self.add(BatchNorm(name, (x,), self.channels[x], scale))

    def batch_norm_relu(self, name: str, relu: str, x: str) -> str:
        return self.add(ReLU(relu, (self.batch_norm(name, x),)))

    def finish(self, pool: str, dense: str, x: str, outputs: int) -> Network:
        x = self.add(GlobalAveragePool(pool, (x,)))
        self.add(Dense(dense, (x,), self.channels[x], outputs))
        return Network(tuple(self.layers))
