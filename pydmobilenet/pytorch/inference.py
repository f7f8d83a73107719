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
from typing import Any

import numpy as np
import torch

from .. import machine
from .. import network as description
from ..devices import Device
from ..folding import fold, lower
from ..processes import processors
from . import devices
from .devices import engine_errors
from .network import Network, overwrite, run, set_arrays

Predict = Callable[[np.ndarray], np.ndarray]


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

    def load(
        self, network: description.Network, arrays: Mapping[str, np.ndarray]
    ) -> Callable[[np.ndarray], np.ndarray]:
        """The network with these parameters: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
        network, arrays = fold(network, arrays) if self.fused else (lower(network), arrays)
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
    """Keep a GPU from rounding the factors of products to TF32's 10 bits. Change no other setting."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    # PyTorch 2.9 brought a switch for each operator. Once a user has set one, reading the older switches raises.
    newer = hasattr(cudnn, "conv")
    owners: list[Any] = [cudnn.conv, matmul] if newer else [cudnn, matmul]
    switch, value = ("fp32_precision", "ieee") if newer else ("allow_tf32", False)
    before = [getattr(owner, switch) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, switch, value)
        yield
    finally:
        for owner, setting in zip(owners, before):
            setattr(owner, switch, setting)


def predictor(network: description.Network, arrays: Mapping[str, np.ndarray], device: torch.device) -> Predict:
    """A network as a function of NumPy arrays: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
    net: Any = Network(network).eval().requires_grad_(False)
    net.to(device, memory_format=torch.channels_last)
    set_arrays(net, arrays)
    overwrite(net, training=False)
    for module in net.modules():  # found without a search, which takes a tenth of the time for one image
        vars(module).update([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
    calls = net.calls_of_layers()

    def predict(images: np.ndarray) -> np.ndarray:
        x = torch.tensor(np.ascontiguousarray(images, np.float32))
        with engine_errors(), torch.inference_mode(), full_precision(device):
            x = x.to(device, memory_format=torch.channels_last)
            return run(calls, {description.IMAGES: x}).cpu().numpy()

    return predict
