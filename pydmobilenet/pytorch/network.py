"""The networks as PyTorch users write them: stem, stages of residual blocks, head. Feature maps are (N, C, H, W).

The names in a ``state_dict`` are those of the checkpoints (`pydmobilenet.network`): a batch normalisation's scale and
shift are ``gamma`` and ``beta``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Union

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import checkpoints, machine, zoo
from ..network import CIFAR, EPSILON, Architecture, Widths, describe
from ..network import Network as Description
from . import devices
from .depthwise import DepthwiseConv2d, depthwise_conv2d


class BatchNorm2d(nn.Module):
    """Batch normalisation under the names that the checkpoints have. Without `affine`, scale and shift are fixed.

    `function` computes it: ``torch.nn.functional.batch_norm``, or one that has the same arguments.
    """

    momentum = 0.1  # the share of the new statistics: 1 less what MXNet calls the momentum
    gamma: torch.Tensor
    beta: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, affine: bool = True):
        super().__init__()
        self.affine = affine
        self.function: Callable[..., torch.Tensor] = F.batch_norm
        for name, value in (("gamma", torch.ones(channels)), ("beta", torch.zeros(channels))):
            if affine:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.gamma if self.affine else None
        return self.function(
            x, self.running_mean, self.running_var, scale, self.beta, self.training, self.momentum, EPSILON
        )

    def extra_repr(self) -> str:
        return f"{len(self.beta)}" if self.affine else f"{len(self.beta)}, affine=False"


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A square convolution that keeps the size of the map, but for the stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


def relu(x: torch.Tensor) -> torch.Tensor:
    """In place: what comes from a batch normalisation is needed by nobody else."""
    return F.relu(x, inplace=True)


class Dense3x3(nn.Module):
    """ResNet: every output channel sees every input channel."""

    expansion = 1

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv3 = convolution(channels, channels, 3, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(x)


class Depthwise3x3(nn.Module):
    """MobileNet: one 3x3 filter a channel."""

    expansion = 1

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv3 = DepthwiseConv2d(channels, 3, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(x)


class Pyramid(nn.Module):
    """What both PydMobileNets share: 3x3, 5x5 and 7x7 depthwise convolutions of the same input."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv3 = DepthwiseConv2d(channels, 3, stride)
        self.conv5 = DepthwiseConv2d(channels, 5, stride)
        self.conv7 = DepthwiseConv2d(channels, 7, stride)


class PyramidAdd(Pyramid):
    """PydMobileNet-Add: the three maps summed, so that the width stays."""

    expansion = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The sum is linear in the kernels: one 7x7 kernel, the sum of the three padded with zeros, computes it faster.
        kernel = F.pad(self.conv3.weight, [2] * 4) + F.pad(self.conv5.weight, [1] * 4) + self.conv7.weight
        return depthwise_conv2d(x, kernel, self.stride)


class PyramidConcat(Pyramid):
    """PydMobileNet-Concat: the three maps side by side, so that the width triples."""

    expansion = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv3(x), self.conv5(x), self.conv7(x)], dim=1)


Spatial = Union[Dense3x3, Depthwise3x3, PyramidAdd, PyramidConcat]
SPATIAL: dict[str, type[Spatial]] = {
    "resnet": Dense3x3,
    "mobilenet": Depthwise3x3,
    "pyd-add": PyramidAdd,
    "pyd-concat": PyramidConcat,
}


class ResidualBlock(nn.Module):
    """Reduce by 1x1 to `width` channels, the spatial part, expand by 1x1, add the input: (N, inputs, H, W) to
    (N, channels, H / stride, W / stride).

    Pre-activation, but with a batch normalisation after the last convolution and nothing after the addition.
    """

    def __init__(self, spatial: type[Spatial], inputs: int, channels: int, width: int, stride: int):
        super().__init__()
        self.norm1 = BatchNorm2d(inputs)
        self.reduce = convolution(inputs, width, 1)
        self.norm2 = BatchNorm2d(width)
        self.spatial = spatial(width, stride)
        self.norm3 = BatchNorm2d(width * spatial.expansion)
        self.expand = convolution(width * spatial.expansion, channels, 1)
        self.norm4 = BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:  # projected from the raw input, not from its activation
            self.shortcut = nn.Sequential(convolution(inputs, channels, 1, stride), BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.reduce(relu(self.norm1(x)))
        y = self.spatial(relu(self.norm2(y)))
        y = self.norm4(self.expand(relu(self.norm3(y))))
        return y + self.shortcut(x)


class Stem(nn.Module):
    """Standardise the image by its running statistics, then a 3x3 convolution: (N, 3, H, W) to (N, channels, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        # The authors' files hold a scale of 1 and a shift of 0 here, which nothing trains.
        self.norm = BatchNorm2d(3, affine=False)
        self.conv = convolution(3, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class Head(nn.Module):
    """Average over the map, then a dense layer: (N, channels, H, W) to logits (N, classes).

    With `features`, a normalised, activated 1x1 convolution to so many channels comes first.
    """

    def __init__(self, channels: int, classes: int, features: int):
        super().__init__()
        self.norm: nn.Module | None = None
        if features:
            self.norm = BatchNorm2d(channels)
            self.features = convolution(channels, features, 1, bias=True)
        self.dense = nn.Linear(features or channels, classes)

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """With `pre_logits`, the pooled features (N, features) that the dense layer sees."""
        if self.norm is not None:
            x = self.features(relu(self.norm(x)))
        x = x.mean((2, 3))
        return x if pre_logits else self.dense(x)


class Classifier(nn.Module):
    """What timm's users expect of a network besides ``forward_features`` and ``forward_head``; its `description`."""

    description: Description

    @property
    def num_features(self) -> int:
        """The number of pooled features."""
        return self.description.head.in_features

    @property
    def num_classes(self) -> int:
        """The number of logits; 0 where the answers are the pooled features."""
        return getattr(self.get_classifier(), "out_features", 0)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.get_submodule(self.description.head.name)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer in place; with 0 classes none, so that the answers are the pooled features."""
        layers, head = self.description.layers[:-1], self.description.head
        classifier: nn.Module = nn.Identity()
        if num_classes:
            classifier = nn.Linear(head.in_features, num_classes, device=next(self.parameters()).device)
            self.description = Description((*layers, replace(head, out_features=num_classes)))
        parent, _, name = head.name.rpartition(".")
        setattr(self.get_submodule(parent), name, classifier)


class Network(Classifier):
    """Normalised images (N, 3, H, W) to logits (N, classes); H and W are 32 in the paper, any multiple of 4 works.

    `blocks` residual blocks stand in each stage, `multiplier` times as wide inside as outside, rounded down.
    """

    def __init__(self, spatial: type[Spatial], blocks: int, multiplier: float, classes: int, widths: Widths = CIFAR):
        super().__init__()
        self.stem = Stem(widths.stem)
        self.stages = nn.Sequential()
        inputs = widths.stem
        for stage, channels in enumerate(widths.stages):
            row = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                row.append(ResidualBlock(spatial, inputs, channels, int(channels * multiplier), stride))
                inputs = channels
            self.stages.append(row)
        self.head = Head(inputs, classes, widths.features)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last map, (N, channels, H / 4, W / 4)."""
        return self.stages(self.stem(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """From the last map to logits, or with `pre_logits` to the pooled features (N, features)."""
        return self.head(x, pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class BasicBlock(nn.Module):
    """Of a Wide ResNet: two 3x3 convolutions, pre-activation, add the input: (N, inputs, H, W) to
    (N, channels, H / stride, W / stride). Where the channels change, the activated input is projected.
    """

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, channels, 3, stride)
        self.bn2 = BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.downsample = convolution(inputs, channels, 1, stride) if inputs != channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(activated))))
        return y + (x if self.downsample is None else self.downsample(activated))


class WideResNet(Classifier):
    """A Wide ResNet (Zagoruyko and Komodakis, 2016, arXiv 1605.07146), under the names of GluonCV's.

    Normalised images (N, 3, H, W) to logits (N, classes).
    """

    def __init__(self, blocks: int, factor: int, classes: int):
        super().__init__()
        self.features = nn.Sequential(BatchNorm2d(3, affine=False), convolution(3, 16, 3), BatchNorm2d(16))
        inputs = 16
        for stage, channels in enumerate((16 * factor, 32 * factor, 64 * factor)):
            row = nn.Sequential()
            for block in range(blocks):
                row.append(BasicBlock(inputs, channels, stride=2 if stage > 0 and block == 0 else 1))
                inputs = channels
            self.features.append(row)
        self.features.append(BatchNorm2d(inputs))
        self.features.append(nn.ReLU(inplace=True))
        self.output = nn.Linear(inputs, classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last map, (N, channels, H / 4, W / 4)."""
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """From the last map to logits, or with `pre_logits` to the pooled features (N, channels)."""
        x = x.mean((2, 3))
        return x if pre_logits else self.output(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def get_model(
    name: str | None = None,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    device: str | torch.device | None = None,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
) -> nn.Module:
    """A PyTorch network of the zoo, as `pydmobilenet.get_model` has it: normalised images (N, 3, 32, 32) to logits
    (N, outputs). It is in evaluation mode; ``net.train()`` before training.

    `device` is a name that `pytorch.devices.choose` knows, or a ``torch.device``; by default the CPU. Raises as
    `pydmobilenet.get_model` does.
    """
    return make(checkpoints.resolve(name, dataset, classes, pretrained, weights, weights_dir), device)


def make(request: checkpoints.Request, device: str | torch.device | None = None) -> nn.Module:
    """The network that `get_model` is asked for."""
    net = build(request.architecture, request.outputs, zoo.widths(request.dataset))
    initialize(net)
    set_arrays(net, request.arrays)
    return net.eval().to(devices.choose(device).device if isinstance(device, str) else device)


def build(architecture: Architecture, outputs: int, widths: Widths = CIFAR) -> Classifier:
    """The network of an architecture, with its `description`. Raises UnusableError for one that does not fit into this
    machine's memory.
    """
    description = describe(architecture, outputs, widths)
    machine.check_memory(f"{architecture.name} with {outputs} outputs", description.complexity().parameters)
    if architecture.family == "wrn":
        net: Classifier = WideResNet(architecture.blocks, int(architecture.multiplier), outputs)
    else:
        net = Network(SPATIAL[architecture.family], architecture.blocks, architecture.multiplier, outputs, widths)
    net.description = description
    return net


# By the same distributions as Gluon's ``mx.init.Xavier()`` and ``mx.init.MSRAPrelu()``, whose slope is 0.25.
INITIALISERS: dict[str, Callable[..., torch.Tensor]] = {
    "xavier": nn.init.xavier_uniform_,
    "msra": lambda weight, generator: nn.init.xavier_normal_(weight, (2 / (1 + 0.25**2)) ** 0.5, generator),
}


def initialize(net: nn.Module, initialiser: str = "msra", seed: int | None = None) -> None:
    """Draw the weights, by a generator of its own if there is a `seed`; biases are 0."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            INITIALISERS[initialiser](module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_arrays(net: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a network the parameters of these names; the others stay as they are."""
    own = net.state_dict()
    with torch.no_grad():
        for name, array in arrays.items():
            own[name].copy_(torch.tensor(array))


def get_arrays(net: nn.Module) -> dict[str, np.ndarray]:
    """A copy of the parameters by structural name."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in net.state_dict().items()}
