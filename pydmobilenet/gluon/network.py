"""Stem, three stages of residual blocks, head: one network class for every family and every data set."""

from __future__ import annotations

from dataclasses import dataclass

from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from .blocks import ResidualBlock, batch_norm, convolution, relu


@dataclass(frozen=True)
class Trunk:
    """The channels of the stem and of the three stages, and of the head's 1x1 convolution (0: the head has none)."""

    stem: int
    stages: tuple[int, int, int]
    features: int


CIFAR = Trunk(stem=32, stages=(32, 64, 128), features=0)
IMAGENET32 = Trunk(stem=64, stages=(64, 128, 256), features=1280)


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
        if self.features is not None:
            x = self.features(relu(F, self.norm(x)))
        return self.dense(self.pool(x))


class Network(HybridBlock):
    """Normalised images (N, 3, H, W) to logits (N, classes); H and W are 32 in the paper, any multiple of 4 works.

    `blocks` residual blocks stand in each stage, `multiplier` times as wide inside as outside, rounded down.
    """

    def __init__(self, spatial: type, blocks: int, multiplier: float, classes: int, trunk: Trunk = CIFAR):
        super().__init__()
        self.stem = Stem(trunk.stem)
        self.stages = nn.HybridSequential()
        inputs = trunk.stem
        for stage, channels in enumerate(trunk.stages):
            row = nn.HybridSequential()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                row.add(ResidualBlock(spatial, inputs, channels, int(channels * multiplier), stride))
                inputs = channels
            self.stages.add(row)
        self.head = Head(inputs, classes, trunk.features)

    def hybrid_forward(self, F, x):
        return self.head(self.stages(self.stem(x)))
