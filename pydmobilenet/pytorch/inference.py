"""PyTorch for answers alone: described networks, folded, operation by operation in channels_last.

Eager PyTorch that writes over maps where it can, and keeps freed memory (`machine.keep_freed_memory`), is about as fast
as anything compiled was here. Images/s on one thread of an AMD EPYC with AVX-512 (2026-11-25, other programs beside
it), 25 a call, the sides taking turns, medians of 7: `torch.jit` frozen, and with optimize_for_inference; convolution
and ReLU as one operation (mkldnn); NCHW; all of the same folded network.

    |                    | this | frozen | optimized | conv + ReLU | NCHW | Gluon | ONNX Runtime |
    | resnet-29-0.5      | 1199 |   1096 |      1118 |         915 |  712 |  1147 |         1744 |
    | mobilenet-29-1     | 1248 |   1111 |      1147 |        1069 |  648 |  1397 |         1895 |
    | pyd-add-29-0.5     | 1794 |   1716 |      1635 |        1421 | 1046 |  1895 |         3223 |
    | pyd-concat-29-0.5  |  651 |    683 |       494 |         654 |  420 |   689 |         1136 |
    | pyd-concat-56-0.75 |  251 |    242 |       168 |         233 |  144 |   266 |          280 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import machine
from ..devices import Device
from ..folding import fold, lower
from ..network import (
    EPSILON,
    IMAGES,
    Add,
    BatchNorm,
    Concat,
    Convolution,
    Dense,
    GlobalAveragePool,
    Layer,
    Maximum,
    Network,
    ReLU,
)
from ..processes import processors
from . import devices
from .errors import engine_errors


class PyTorchEngine:
    """PyTorch on one device, in float32. Networks are folded before they answer, unless `fused` says otherwise.

    Raises InvalidValueError for an unknown device, and UnusableError for one that PyTorch cannot use.
    """

    name = "pytorch"

    def __init__(self, device: str | Device = "auto", fused: bool = True):
        chosen = devices.choose(device)
        self.place, self.device, self.fused = chosen.device, chosen.why, fused

    @property
    def batch_size(self) -> int:
        """Images a call."""
        return batch_size(self.place)

    @property
    def processes(self) -> int:
        """How many processes may work at once. On a CPU, one a processor is faster than one with all processors."""
        return processors() if self.place.type == "cpu" else 1

    def load(self, network: Network, arrays: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """The network with these parameters: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
        if self.fused:
            network, arrays = fold(network, arrays)
        if self.place.type == "cpu":
            machine.keep_freed_memory()
        with engine_errors():
            return predictor(network, arrays, self.place)


def batch_size(device: torch.device) -> int:
    """Images a call: on a CPU so few that a layer's maps stay in its caches, but at least 16, below which PyTorch
    leaves small convolutions to slower code than oneDNN's; on a GPU so many that it is full.
    """
    return 25 if device.type == "cpu" else 500


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding the factors of convolutions to TF32's 10 bits, its default. Change no other setting."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    # PyTorch 2.9 brought a switch for each operator. Once a user has set one, reading the older switch raises.
    newer = hasattr(cudnn, "conv")
    switch, name, value = (cudnn.conv, "fp32_precision", "ieee") if newer else (cudnn, "allow_tf32", False)
    before = getattr(switch, name)
    setattr(switch, name, value)
    try:
        yield
    finally:
        setattr(switch, name, before)


class Step(NamedTuple):
    """A layer with its parameters. The outputs named `last_used` are needed by no later layer."""

    layer: Layer
    parameters: list[Tensor]
    last_used: set[str]


def steps(network: Network, arrays: Mapping[str, np.ndarray], device: torch.device) -> list[Step]:
    """The layers of a network in the order of computing, with their parameters on a device, in float32."""
    network = lower(network)
    last_use = {name: layer.name for layer in network.layers for name in layer.inputs}
    found = []
    for layer in network.layers:
        own = [_tensor(arrays[f"{layer.name}.{name}"], device) for name in layer.parameters]
        found.append(Step(layer, own, {name for name in layer.inputs if last_use[name] == layer.name} - {IMAGES}))
    return found


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of an array on a device, in float32 and, if it is of images or kernels, in channels_last."""
    tensor = torch.tensor(np.ascontiguousarray(array, np.float32))
    return tensor.to(device, memory_format=torch.channels_last if tensor.ndim == 4 else torch.preserve_format)


def predictor(
    network: Network, arrays: Mapping[str, np.ndarray], device: torch.device
) -> Callable[[np.ndarray], np.ndarray]:
    """A network as a function of NumPy arrays: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
    prepared = steps(network, arrays, device)

    def predict(images: np.ndarray) -> np.ndarray:
        with engine_errors(), torch.inference_mode(), full_precision(device):
            return logits(prepared, _tensor(images, device)).cpu().numpy()

    return predict


def logits(network: list[Step], images: Tensor) -> Tensor:
    """The logits (N, outputs) of images (N, 3, 32, 32). A map is freed, or written over, after its last use."""
    values = {IMAGES: images}
    for layer, parameters, last_used in network:
        inputs = [values[name] for name in layer.inputs]
        for name in last_used:
            del values[name]
        operator = OPERATORS[type(layer)]
        values[layer.name] = operator(layer, inputs, parameters, layer.inputs[0] in last_used)
    return values[network[-1].layer.name]


def _convolution(layer: Convolution, inputs: list[Tensor], parameters: list[Tensor], spare: bool) -> Tensor:
    weight, *bias = parameters
    bias_or_none = bias[0] if bias else None
    return F.conv2d(inputs[0], weight, bias_or_none, layer.stride, layer.kernel // 2, groups=layer.groups)


def _batch_norm(layer: BatchNorm, inputs: list[Tensor], parameters: list[Tensor], spare: bool) -> Tensor:
    gamma, beta, mean, variance = parameters
    return F.batch_norm(inputs[0], mean, variance, gamma if layer.scale else None, beta, eps=EPSILON)


def _add(layer: Add, inputs: list[Tensor], parameters: list[Tensor], spare: bool) -> Tensor:
    total, *others = inputs
    for other in others:
        total = total.add_(other) if spare else total + other
        spare = True
    return total


def _dense(layer: Dense, inputs: list[Tensor], parameters: list[Tensor], spare: bool) -> Tensor:
    """As a 1x1 convolution, so that one setting keeps all from TF32."""
    weight, bias = parameters
    return F.conv2d(inputs[0][:, :, None, None], weight[:, :, None, None], bias).flatten(1)


# Each takes a layer, its inputs and parameters, and whether it may write over the first input.
OPERATORS: dict[type, Callable[[Any, list[Tensor], list[Tensor], bool], Tensor]] = {
    Convolution: _convolution,
    BatchNorm: _batch_norm,
    ReLU: lambda layer, inputs, parameters, spare: F.relu(inputs[0], inplace=spare),
    Add: _add,
    Maximum: lambda layer, inputs, parameters, spare: torch.stack(inputs).amax(dim=0),
    Concat: lambda layer, inputs, parameters, spare: torch.cat(inputs, dim=1),
    GlobalAveragePool: lambda layer, inputs, parameters, spare: inputs[0].mean(dim=(2, 3)),
    Dense: _dense,
}
