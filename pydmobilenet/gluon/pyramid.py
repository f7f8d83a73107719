"""The training step, and pyramids whose gradients a CPU computes by forward convolutions.

MXNet's backward pass of a depthwise 5x5 or 7x7 convolution costs a CPU 10 to 50 times what the forward pass costs. But
both gradients are convolutions themselves:

- that of the input is a depthwise convolution of the output's gradient with the kernel turned by 180 degrees; for a
  stride of 2, after zeros have been put between the gradient's pixels;
- that of the kernel is a depthwise convolution of the input with the output's gradient as its kernel, image by image
  and channel by channel, summed over the images.

Kernels whose maps are summed act on the same input, so that one 7x7 kernel, the sum of the three padded with zeros,
stands for them. All of it is exact but for rounding. The twin of `pytorch/pyramid.py`.

On a CPU, batch normalisation and the ReLU behind it also become one operation. Whether oneDNN has kernels for all that
depends on the processor and the shapes, so it is checked on first use (`Checked`). Which instruction set is best to
train with stands in `gluon/runtime.py`.
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
from .inference import Checked
from .symbol import fused_norms, symbols

Loss = Callable[[nd.NDArray, nd.NDArray], nd.NDArray]
"""Logits (N, outputs) and target distributions (N, outputs) to losses (N,)."""

# How far an array of the faster step may be from the reference's, of its norm. Rounding makes 1e-6 and, where it lets
# the input of a ReLU change its sign, up to 0.035 in a new network of 56 layers. Wrong kernels make more than 0.1.
TOLERANCE = 0.1


class Step:
    """Compute the gradients of one batch on one device."""

    def __init__(self, network: Callable[[nd.NDArray], nd.NDArray], loss: Loss):
        self.network, self.loss = network, loss

    def __call__(self, images: nd.NDArray, targets: nd.NDArray, scale: float = 1.0) -> tuple[nd.NDArray, nd.NDArray]:
        """Leave the gradients of the summed losses, times `scale`, in the parameters. Return logits and losses (N,)."""
        # On a CPU, MXNet updates moving statistics only where gradients flow: without this, not those of the stem.
        images.attach_grad()
        with autograd.record():
            logits = self.network(images)
            losses = self.loss(logits, targets)
            scaled = losses * scale
        scaled.backward()
        return logits, losses


def make_step(net: HybridBlock, loss: Loss, context: mx.Context) -> Step | Checked:
    """Return the fastest step for a network with initialised parameters on a device: on a CPU, checked against the
    reference, MXNet's own backward pass of the hand-written network.
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
    """Return the gradients that a step writes and the moving statistics; both are restored."""
    parameters = list(parameters)
    written = [
        [each.grad(context) for each in parameters if each.grad_req != "null"],
        [each.data(context) for each in parameters if each.grad_req == "null"],
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
    """A network as compiled segments, which share its parameters, and the pyramids between them."""

    def __init__(self, net: HybridBlock):
        network, parameters = net.description, net._collect_params_with_prefix()
        if not any(map(_own_gradient, network.layers)):
            network = lower(network)
        dtype = np.dtype(next(iter(parameters.values())).dtype)
        # The fused operation knows no other type, and below AVX2 it has no fast kernels: it was 12 times slower.
        fuse = dtype == np.float32 and machine.instruction_set() not in ("SSE41", "AVX")
        norms = fused_norms(network.layers) if fuse else {}
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


def _own_gradient(layer: Layer) -> bool:
    """Return whether a pyramid's gradients are computed here. For 3x3 kernels, MobileNet's, MXNet's own are fast."""
    return isinstance(layer, Pyramid) and max(layer.kernels) > 3 and layer.join != "max"


def _operator(layer: Pyramid, parameters: dict[str, gluon.Parameter]) -> Callable[[nd.NDArray], nd.NDArray]:
    weights = [parameters[f"{layer.name}.{name}"] for name in layer.parameters]
    return lambda x: pyramid(x, [weight.data(x.context) for weight in weights], layer.stride, layer.join)


def pyramid(x: nd.NDArray, weights: Sequence[nd.NDArray], stride: int, join: Join) -> nd.NDArray:
    """Convolve x (N, C, H, W), a channel at a time, by square weights (C, 1, k, k), and add or concatenate the maps."""
    # A Function drops gradients that are to be added to others: an operation stands between it and the parameters.
    kernels = [_sum(weights)] if join == "add" else [nd.identity(weight) for weight in weights]
    maps = _Depthwise(stride)(x, *kernels)
    # Also for a single map: a Function misreads gradients in a layout of oneDNN's, and concat's are in the plain one.
    return nd.concat(*maps, dim=1)


def _sum(kernels: Sequence[nd.NDArray]) -> nd.NDArray:
    """Return one kernel that does what several do whose maps are summed."""
    *smaller, largest = sorted(kernels, key=lambda kernel: kernel.shape[2])
    margins = [(largest.shape[2] - kernel.shape[2]) // 2 for kernel in smaller]
    frames = [(0, 0, 0, 0, margin, margin, margin, margin) for margin in margins]
    padded = [nd.pad(kernel, mode="constant", pad_width=frame) for kernel, frame in zip(smaller, frames)]
    return nd.add_n(*padded, largest)


class _Depthwise(autograd.Function):
    """The maps of one input, one for each kernel."""

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
            if self.stride > 1:  # the gradient of the map that a stride of 1 would have made
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
    """Return the gradient of a kernel (C, 1, k, k), from that of its map at stride 1, (N, C, H, W)."""
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
