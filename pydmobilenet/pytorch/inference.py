"""Inference with PyTorch: folded networks, eager, in channels_last and in place.

Compiling was not faster. pyd-add-29-0.5 on one thread of an AMD EPYC, images/s, medians of 7 (2026-11-25): this 1794,
frozen TorchScript 1716, optimize_for_inference 1635, oneDNN's convolution + ReLU 1421, NCHW 1046.
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
    """PyTorch on one device, in float32. Folds networks if `fused`.

    Raises InvalidValueError for an unknown device, and UnusableError for one that PyTorch cannot use.
    """

    name = "pytorch"

    def __init__(self, device: str | Device = "auto", fused: bool = True):
        self.device, self.fused = devices.choose(device).device, fused

    @property
    def batch_size(self) -> int:
        return batch_size(self.device)

    @property
    def processes(self) -> int:
        """Run one process per processor on a CPU: faster than one process with all processors."""
        return processors() if self.device.type == "cpu" else 1

    def load(self, network: description.Network, arrays: Mapping[str, np.ndarray]) -> Predict:
        """Return the network with these parameters: images (N, 3, H, W) in float32 to logits (N, outputs)."""
        network, arrays = fold(network, arrays) if self.fused else (lower(network), arrays)
        if self.device.type == "cpu":
            machine.keep_freed_memory()
        with engine_errors():
            return predictor(network, arrays, self.device)


def batch_size(device: torch.device) -> int:
    """Return images per call: few enough for a CPU's caches (below 16, PyTorch avoids oneDNN for small convolutions),
    enough to fill a GPU.
    """
    return 25 if device.type == "cpu" else 500


@contextmanager
def full_precision(device: torch.device, benchmark: bool = False) -> Iterator[None]:
    """Disable TF32's 10-bit products on a GPU; with `benchmark`, let cuDNN time its kernels. Set nothing else."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    # PyTorch 2.9 brought a switch per operator. After a user sets one, reading the older switches raises.
    newer = hasattr(cudnn, "conv")
    owners: list[Any] = [cudnn.conv, matmul] if newer else [cudnn, matmul]
    switch, value = ("fp32_precision", "ieee") if newer else ("allow_tf32", False)
    settings: list[tuple[Any, str, Any]] = [(owner, switch, value) for owner in owners]
    if benchmark:
        settings.append((cudnn, "benchmark", True))
    before = [getattr(owner, name) for owner, name, _ in settings]
    try:
        for setting in settings:
            setattr(*setting)
        yield
    finally:
        for (owner, name, _), value in zip(settings, before):
            setattr(owner, name, value)


def tensor_predictor(
    network: description.Network, arrays: Mapping[str, np.ndarray], device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a network as a function of tensors: images (N, 3, H, W) to logits (N, outputs)."""
    net: Any = Network(network).eval().requires_grad_(False)
    net.to(device, memory_format=torch.channels_last)
    set_arrays(net, arrays)
    overwrite(net, training=False)
    for module in net.modules():  # plain attributes: looking them up takes a tenth of the time for one image
        vars(module).update([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
    calls = net.calls_of_layers()
    return lambda images: run(calls, {description.IMAGES: images})


def predictor(network: description.Network, arrays: Mapping[str, np.ndarray], device: torch.device) -> Predict:
    """Return a network as a function of NumPy arrays: images (N, 3, H, W) in float32 to logits (N, outputs)."""
    logits = tensor_predictor(network, arrays, device)

    def predict(images: np.ndarray) -> np.ndarray:
        x = torch.tensor(np.ascontiguousarray(images, np.float32))
        with engine_errors(), torch.inference_mode(), full_precision(device):
            x = x.to(device, memory_format=torch.channels_last)
            return logits(x).cpu().numpy()

    return predict
