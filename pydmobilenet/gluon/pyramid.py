"""The training step, and pyramids whose gradients a CPU computes by forward convolutions.

MXNet's backward pass of a depthwise 5x5 or 7x7 convolution takes a CPU 10 to 50 times the forward pass. But both
gradients are depthwise convolutions (exact but for rounding; see also `pytorch/pyramid.py`):

- of the input: the output's gradient by the kernel turned by 180 degrees; for a stride of 2, zeros are put between the
  gradient's pixels first;
- of the kernel: the input by the output's gradient, per image and channel, summed over the images.

Kernels whose maps are summed equal one 7x7 kernel, the sum of the three padded with zeros.

On a CPU, BatchNorm and its ReLU also become one operation. oneDNN's kernels for it depend on the processor and the
shapes, so the step is checked on first use (`Checked`). `gluon/runtime.py` says why training uses AVX2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.gluon.block import HybridBlock

from .. import machine
from ..folding import lower
from ..network import IMAGES, Join, Layer, Pyramid
from .inference import Checked, fusible_norms, symbols

Loss = Callable[[nd.NDArray, nd.NDArray], nd.NDArray]
"""Logits (N, outputs) and target distributions (N, outputs) to losses (N,)."""

# Of an array's norm. Rounding makes 1e-6, or up to 0.035 in a new network of 56 layers if a ReLU's input changes its
# sign. Wrong kernels make more than 0.1.
TOLERANCE = 0.1


class Step:
    """Compute the gradients of one batch on one device."""

    def __init__(self, network: Callable[[nd.NDArray], nd.NDArray], loss: Loss):
        self.network, self.loss = network, loss

    def __call__(self, images: nd.NDArray, targets: nd.NDArray, scale: float = 1.0) -> tuple[nd.NDArray, nd.NDArray]:
        """Write the gradients of the summed losses, times `scale`, to the parameters. Return logits and losses (N,)."""
        # On a CPU, MXNet updates moving statistics only if gradients flow: without this, not the stem's.
        images.attach_grad()
        with autograd.record():
            logits = self.network(images)
            losses = self.loss(logits, targets)
            scaled = losses * scale
        scaled.backward()
        return logits, losses


def make_step(net: HybridBlock, loss: Loss, context: mx.Context) -> Step | Checked:
    """Return the fastest step for a network with initialised parameters.

    On a CPU it is checked against MXNet's own backward pass.
    """
    net.hybridize(static_alloc=True, static_shape=True)
    reference = Step(net, loss)
    if context.device_type != "cpu":
        return reference
    price = "MXNet's own is up to 9 times slower"
    if machine.instruction_set() != "AVX2":
        price += "; DNNL_MAX_CPU_ISA=AVX2 may bring it back"
    fast = Step(Segments(net), loss)
    results = partial(gradients, net.collect_params().values(), context)
    return Checked(fast, reference, results, TOLERANCE, "the faster training step is", price)


def gradients(
    parameters: Iterable[gluon.Parameter], context: mx.Context, step: Step, *batch: nd.NDArray
) -> list[list[np.ndarray]]:
    """Return the gradients and the moving statistics of a step; restore both."""
    parameters = list(parameters)
    written = [
        [parameter.grad(context) for parameter in parameters if parameter.grad_req != "null"],
        [parameter.data(context) for parameter in parameters if parameter.grad_req == "null"],
    ]
    before = [[array.copy() for array in arrays] for arrays in written]
    try:
        step(*batch)
        nd.waitall()
        return [[array.asnumpy() for array in arrays] for arrays in written]
    finally:
        for arrays, values in zip(written, before):
            for array, value in zip(arrays, values):
                array[:] = value


class Segments:
    """A network as compiled segments with pyramids between them, sharing its parameters."""

    def __init__(self, net: HybridBlock):
        network, parameters = net.description, net._collect_params_with_prefix()
        if not any(map(_has_fast_gradient, network.layers)):
            network = lower(network)
        dtype = np.dtype(next(iter(parameters.values())).dtype)
        # The fused operation is for float32 alone. Below AVX2 it was 12 times slower.
        fuse = dtype == np.float32 and machine.instruction_set() not in ("SSE41", "AVX")
        norms = fusible_norms(network.layers) if fuse else {}
        self.logits = network.head.name
        self.plan: list[tuple[Callable, Sequence[str], Sequence[str]]] = []
        groups = [(kind, list(group)) for kind, group in groupby(network.layers, lambda x: isinstance(x, Pyramid))]
        for number, (is_pyramid, layers) in enumerate(groups):
            if is_pyramid:
                self.plan += [(_operator(layer, parameters), layer.inputs, [layer.name]) for layer in layers]
                continue
            names = [layer.name for layer in layers]
            inputs = list(dict.fromkeys(name for layer in layers for name in layer.inputs if name not in names))
            later = {name for _, group in groups[number + 1 :] for layer in group for name in layer.inputs}
            outputs = [name for name in names if name in later or name == self.logits]
            variables = {name: mx.sym.var(name, dtype=dtype) for name in inputs}
            graph = symbols(layers, variables, lambda name: mx.sym.var(parameters[name].name), norms)
            block = gluon.SymbolBlock([graph[name] for name in outputs], [*variables.values()], net.collect_params())
            block.hybridize(static_alloc=True, static_shape=True)
            self.plan.append((block, inputs, outputs))

    def __call__(self, images: nd.NDArray) -> nd.NDArray:
        """Compute the logits (N, outputs) of images (N, 3, H, W)."""
        values = {IMAGES: images}
        for function, inputs, outputs in self.plan:
            results = function(*(values[name] for name in inputs))
            values.update(zip(outputs, results if isinstance(results, list) else [results]))
        return values[self.logits]


def _has_fast_gradient(layer: Layer) -> bool:
    """Return whether `pyramid` is faster than MXNet's own gradients. For MobileNet's 3x3 kernels it is not."""
    return isinstance(layer, Pyramid) and max(layer.kernels) > 3 and layer.join != "max"


def _operator(layer: Pyramid, parameters: dict[str, gluon.Parameter]) -> Callable[[nd.NDArray], nd.NDArray]:
    weights = [parameters[f"{layer.name}.{name}"] for name in layer.parameters]
    return lambda x: pyramid(x, [weight.data(x.context) for weight in weights], layer.stride, layer.join)


def pyramid(x: nd.NDArray, weights: Sequence[nd.NDArray], stride: int, join: Join) -> nd.NDArray:
    """Convolve x (N, C, H, W) depthwise by square weights (C, 1, k, k), and add or concatenate the maps."""
    # A Function drops gradients with grad_req "add": an operation stands between it and the parameters.
    kernels = [_sum(weights)] if join == "add" else [nd.identity(weight) for weight in weights]
    maps = _Depthwise(stride)(x, *kernels)
    # Also for a single map: a Function misreads gradients in oneDNN's layouts; concat's are plain.
    return nd.concat(*maps, dim=1)


def _sum(kernels: Sequence[nd.NDArray]) -> nd.NDArray:
    """Return the one kernel equal to several kernels with summed maps."""
    *smaller, largest = sorted(kernels, key=lambda kernel: kernel.shape[2])
    margins = [(largest.shape[2] - kernel.shape[2]) // 2 for kernel in smaller]
    frames = [(0, 0, 0, 0, margin, margin, margin, margin) for margin in margins]
    padded = [nd.pad(kernel, mode="constant", pad_width=frame) for kernel, frame in zip(smaller, frames)]
    return nd.add_n(*padded, largest)


class _Depthwise(autograd.Function):
    """One map of the input per kernel."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x, *kernels):
        self.save_for_backward(x, *kernels)
        return tuple(_convolve(x, kernel, self.stride) for kernel in kernels)

    def backward(self, *of_maps):
        x, *kernels = self.saved_tensors
        of_x, of_kernels = [], []
        for kernel, gradient in zip(kernels, of_maps):
            if self.stride > 1:  # the gradient of a map at stride 1
                dilated = nd.zeros_like(x)
                dilated[:, :, :: self.stride, :: self.stride] = gradient
                gradient = dilated
            of_x.append(_convolve(gradient, nd.flip(kernel, axis=(2, 3))))
            of_kernels.append(_kernel_gradient(x, gradient, kernel.shape[2]))
        return nd.add_n(*of_x), *of_kernels


def _convolve(x: nd.NDArray, kernel: nd.NDArray, stride: int = 1) -> nd.NDArray:
    channels, _, size, _ = kernel.shape
    return _convolution(x, kernel, (size, size), size // 2, channels, stride)


def _kernel_gradient(x: nd.NDArray, gradient: nd.NDArray, size: int) -> nd.NDArray:
    """Return the gradient of a kernel (C, 1, k, k) from its map's at stride 1, (N, C, H, W)."""
    images, channels, height, width = x.shape
    maps = x.reshape((1, images * channels, height, width))
    kernels = gradient.reshape((images * channels, 1, height, width))
    products = _convolution(maps, kernels, (height, width), size // 2, images * channels)
    return products.reshape((images, channels, 1, size, size)).sum(axis=0)


def _convolution(
    x: nd.NDArray, kernel: nd.NDArray, size: tuple[int, int], margin: int, groups: int, stride: int = 1
) -> nd.NDArray:
    return nd.Convolution(
        x,
        kernel,
        kernel=size,
        pad=(margin, margin),
        stride=(stride, stride),
        num_filter=groups,
        num_group=groups,
        no_bias=True,
    )
