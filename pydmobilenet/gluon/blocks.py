"""The residual blocks, and the four spatial parts that tell the families apart. Feature maps are (N, C, H, W)."""

from __future__ import annotations

from typing import Union

from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..network import EPSILON


def batch_norm(channels: int, **options) -> nn.BatchNorm:
    """Batch normalisation as the authors' graphs have it; Gluon's own default is the same momentum, stated here."""
    return nn.BatchNorm(in_channels=channels, epsilon=EPSILON, momentum=0.9, **options)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias=False) -> nn.Conv2D:
    """A square convolution that keeps the size of the map, but for the stride."""
    return nn.Conv2D(outputs, kernel, stride, kernel // 2, groups=groups, use_bias=bias, in_channels=inputs)


def relu(F, x):
    return F.Activation(x, act_type="relu")


class Dense3x3(HybridBlock):
    """ResNet: every output channel sees every input channel."""

    expansion = 1

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv3 = convolution(channels, channels, 3, stride)

    def hybrid_forward(self, F, x):
        return self.conv3(x)


class Depthwise3x3(HybridBlock):
    """MobileNet: one 3x3 filter a channel."""

    expansion = 1

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv3 = convolution(channels, channels, 3, stride, groups=channels)

    def hybrid_forward(self, F, x):
        return self.conv3(x)


class Pyramid(HybridBlock):
    """What both PydMobileNets share: 3x3, 5x5 and 7x7 depthwise convolutions of the same input."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv3 = convolution(channels, channels, 3, stride, groups=channels)
        self.conv5 = convolution(channels, channels, 5, stride, groups=channels)
        self.conv7 = convolution(channels, channels, 7, stride, groups=channels)


class PyramidAdd(Pyramid):
    """PydMobileNet-Add: the three maps summed, so that the width stays."""

    expansion = 1

    def hybrid_forward(self, F, x):
        return self.conv3(x) + self.conv5(x) + self.conv7(x)


class PyramidConcat(Pyramid):
    """PydMobileNet-Concat: the three maps side by side, so that the width triples."""

    expansion = 3

    def hybrid_forward(self, F, x):
        return F.concat(self.conv3(x), self.conv5(x), self.conv7(x), dim=1)


Spatial = Union[Dense3x3, Depthwise3x3, PyramidAdd, PyramidConcat]
SPATIAL: dict[str, type[Spatial]] = {
    "resnet": Dense3x3,
    "mobilenet": Depthwise3x3,
    "pyd-add": PyramidAdd,
    "pyd-concat": PyramidConcat,
}


class ResidualBlock(HybridBlock):
    """Reduce by 1x1 to `width` channels, the spatial part, expand by 1x1, add the input: (N, inputs, H, W) to
    (N, channels, H / stride, W / stride).

    Pre-activation, but with a batch normalisation after the last convolution and nothing after the addition.
    """

    def __init__(self, spatial: type[Spatial], inputs: int, channels: int, width: int, stride: int):
        super().__init__()
        self.norm1 = batch_norm(inputs)
        self.reduce = convolution(inputs, width, 1)
        self.norm2 = batch_norm(width)
        self.spatial = spatial(width, stride)
        self.norm3 = batch_norm(width * spatial.expansion)
        self.expand = convolution(width * spatial.expansion, channels, 1)
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
    """Of a Wide ResNet: two 3x3 convolutions, pre-activation, add the input: (N, inputs, H, W) to
    (N, channels, H / stride, W / stride). Where the channels change, the activated input is projected.
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
