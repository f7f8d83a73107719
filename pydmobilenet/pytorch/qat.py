"""Quantisation-aware training (Jacob et al., 2018, arXiv 1712.05877): passes that round as an int8 C array does.

A ``.tflite`` rounds the parts of a 7x7 too, and an ONNX file has weights of 7 bits: they are alike, not the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.weights import checkpoint_names
from ..folding import fold, fused_relus
from ..network import EPSILON, IMAGES, BatchNorm, Concat, Convolution, Dense, Layer, Maximum
from .network import MODULES, Network

STEPS = 255  # of an int8 map
LARGEST = 127  # of an int8 weight
SMALLEST = 1e-9  # step


class FakeQuantised(nn.Module):
    """A network under training as its int8 file computes it: folded, with weights and maps rounded.

    Batch normalisations keep their statistics, for they are part of the weights. Weights have a scale for each output
    channel, maps one range, that of the batch, or of this worker's part of it. Gradients pass the rounding unchanged.
    What is trained, and saved, are the network's own parameters.
    """

    def __init__(self, net: Network):
        super().__init__()
        self.net = net
        self.names = checkpoint_names(net.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, outputs) of normalised images (N, 3, H, W)."""
        state: dict[str, Any] = self.net.state_dict(keep_vars=True)
        network, arrays = fold(self.net.description, {name: state[key] for key, name in self.names.items()})
        exact = {*fused_relus(network)}  # one operator with their ReLU
        exact.update(name for layer in network.layers if isinstance(layer, (Concat, Maximum)) for name in layer.inputs)
        values = {IMAGES: images}
        for layer in network.layers:
            parameters: dict[str, Any] = {name: arrays[f"{layer.name}.{name}"] for name in layer.parameters}
            value = _apply(layer, [values[name] for name in layer.inputs], parameters)
            values[layer.name] = value if layer.name in exact else fake_quantise(value)
        return values[network.head.name]


def _apply(layer: Layer, inputs: list[Tensor], parameters: dict[str, Tensor]) -> Tensor:
    if isinstance(layer, BatchNorm):
        gamma, beta, mean, variance = parameters.values()
        return F.batch_norm(inputs[0], mean, variance, gamma if layer.scale else None, beta, eps=EPSILON)
    if not isinstance(layer, (Convolution, Dense)):
        return MODULES[type(layer)](layer)(*inputs)
    weight, bias = fake_quantise_weight(parameters["weight"]), parameters.get("bias")
    if isinstance(layer, Dense):
        return F.linear(inputs[0], weight, bias)
    return F.conv2d(inputs[0], weight, bias, layer.stride, layer.kernel // 2, groups=layer.groups)


class _Round(torch.autograd.Function):
    """Rounds to whole multiples of a step; gradients pass unchanged, for nothing is out of range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        return (x / step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # one output
        return gradient, None


def fake_quantise(x: Tensor) -> Tensor:
    """Round a map to 256 levels between its smallest and its largest value, or 0."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    return _Round.apply(x, ((high - low) / STEPS).clamp(min=SMALLEST))


def fake_quantise_weight(weight: Tensor) -> Tensor:
    """Round the weights of each output channel, the first axis, to 127 steps on either side of 0."""
    largest = weight.detach().abs().amax([*range(1, weight.ndim)], keepdim=True)
    return _Round.apply(weight, (largest / LARGEST).clamp(min=SMALLEST))
