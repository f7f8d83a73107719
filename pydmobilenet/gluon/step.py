"""Forward and backward pass of one batch on one device: the gradients of a network's parameters.

MXNet's backward pass of a depthwise 5x5 or 7x7 convolution costs a CPU 10 to 50 times what the forward pass costs.
`PyramidStep` computes the same gradients by forward convolutions:

- that of the input is a depthwise convolution of the output's gradient with the kernel turned by 180 degrees; for a
  stride of 2, after zeros have been put between the gradient's pixels;
- that of the kernel is a depthwise convolution of the input with the output's gradient as its kernel, image by image
  and channel by channel, summed over the images.

Add's three kernels act on the same input, so that one 7x7 kernel, the sum of the three padded with zeros, stands for
them. All of it is exact but for rounding.

On a CPU, batch normalisation and the ReLU behind it also become one operation of MXNet's, which gives the same bits.

Whether oneDNN has kernels for all that depends on the processor and on the shapes, so none of it is relied on before it
has been seen to work (`CheckedStep`). Which instruction set is best to train with stands in `gluon/runtime.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.gluon.block import HybridBlock

from .. import processor
from ..errors import engine_words
from ..folding import lower
from ..network import IMAGES, Add, Convolution, Layer
from .blocks import Pyramid, PyramidAdd
from .network import Network
from .symbol import symbols

Loss = Callable[[nd.NDArray, nd.NDArray], nd.NDArray]
"""Logits (N, outputs) and target distributions (N, outputs) to losses (N,)."""


# How far an array of the faster step's may be from the literal one's, of its norm. Rounding makes 1e-6 and, where it
# lets the input of a ReLU change its sign, up to 0.035 in a new network of 56 layers. Wrong kernels make more than 0.1.
TOLERANCE = 0.1


def make(net: HybridBlock, loss: Loss, context: mx.Context) -> LiteralStep | CheckedStep:
    """The fastest step that works for a network, which has its parameters, on a device."""
    literal = LiteralStep(net, loss)
    if context.device_type != "cpu":
        return literal
    pyramid = isinstance(net, Network) and isinstance(net.stages[0][0].spatial, Pyramid)
    fast = PyramidStep(net, loss) if pyramid else LiteralStep(traced(net, whole(net)), loss)
    return CheckedStep(fast, literal, net.collect_params().values(), context)


class CheckedStep:
    """A faster step, used once it has been seen to give the literal step's gradients: in this process, on this
    processor, for images of this shape. Where it does not, the literal step is used, and a warning says so.
    """

    def __init__(
        self,
        fast: LiteralStep | PyramidStep,
        literal: LiteralStep,
        parameters: Iterable[gluon.Parameter],
        context: mx.Context,
    ):
        self.chosen, self.literal = fast, literal
        self.parameters, self.context = list(parameters), context
        self.checked: set[tuple[int, ...]] = set()

    def __call__(self, images: nd.NDArray, targets: nd.NDArray, scale: float = 1.0) -> tuple[nd.NDArray, nd.NDArray]:
        """Leave the gradients of the summed losses, times `scale`, in the parameters; answer logits and losses (N,)."""
        if self.chosen is not self.literal and images.shape not in self.checked:
            obstacle = self._obstacle(images, targets)
            if obstacle:
                self.chosen = self.literal
                warnings.warn(
                    f"the faster training step is left out, as {obstacle}: MXNet's own is up to 9 times slower"
                    + ("" if processor.instruction_set() == "AVX2" else "; DNNL_MAX_CPU_ISA=AVX2 may bring it back"),
                    stacklevel=2,
                )
            self.checked.add(images.shape)
        return self.chosen(images, targets, scale)

    def _obstacle(self, images: nd.NDArray, targets: nd.NDArray) -> str:
        """Why the faster step cannot be used, or nothing."""
        nd.waitall()  # what has failed before is no fault of the step's
        try:
            found = self._results(self.chosen, images, targets)
        except mx.MXNetError as error:
            return f"it does not work here ({engine_words(error)})"
        for mine, expected in zip(found, self._results(self.literal, images, targets)):
            apart = distance(mine, expected)
            if not apart <= TOLERANCE:  # nan too
                return f"what it computes is off by {apart:.1%}"
        return ""

    def _results(self, step: LiteralStep | PyramidStep, images: nd.NDArray, targets: nd.NDArray) -> list[list]:
        """The gradients that a step leaves, and the moving statistics; what it has written is restored."""
        before = [[array.copy() for array in kind] for kind in self._written()]
        try:
            step(images, targets)
            nd.waitall()
            return [[array.asnumpy() for array in kind] for kind in self._written()]
        finally:
            for kind, values in zip(self._written(), before):
                for array, value in zip(kind, values):
                    array[:] = value

    def _written(self) -> list[list[nd.NDArray]]:
        """What a pass writes: gradients, and moving statistics."""
        return [
            [each.grad(self.context) for each in self.parameters if each.grad_req != "null"],
            [each.data(self.context) for each in self.parameters if each.grad_req == "null"],
        ]


def distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """How far arrays are from the expected ones: the largest norm of a difference by the norm of what is expected, or
    by a thousandth of the norm of all together where that is more. 0 where what is expected is not finite.
    """
    norms = np.array([np.linalg.norm(array) for array in expected])
    floor = 1e-3 * np.linalg.norm(norms)
    if not np.isfinite(floor):
        return 0.0
    differences = np.array([np.linalg.norm(mine - theirs) for mine, theirs in zip(found, expected)])
    return float((differences / np.maximum(norms, floor + np.finfo(float).tiny)).max(initial=0))


class LiteralStep:
    """MXNet's own backward pass of the whole hybridised network."""

    def __init__(self, net: HybridBlock, loss: Loss):
        net.hybridize(static_alloc=True, static_shape=True)
        self.net = net
        self.loss = loss

    def __call__(self, images: nd.NDArray, targets: nd.NDArray, scale: float = 1.0) -> tuple[nd.NDArray, nd.NDArray]:
        """Leave the gradients of the summed losses, times `scale`, in the parameters; answer logits and losses (N,)."""
        with autograd.record():
            logits = self.net(wanting_gradient(images))
            losses = self.loss(logits, targets)
            scaled = losses * scale
        scaled.backward()
        return logits, losses


class PyramidStep:
    """The network in pieces, cut at the pyramids, whose gradients are computed by forward convolutions."""

    def __init__(self, net: Network, loss: Loss):
        self.pyramids = [PyramidGradient(block.spatial) for stage in net.stages for block in stage]
        self.pieces = [traced(net, piece) for piece in pieces(lower(net.description).layers)]
        for each in self.pieces:
            each.hybridize(static_alloc=True, static_shape=True)
        self.loss = loss
        self.gradients: dict[tuple[int, int], nd.NDArray] = {}

    def __call__(self, images: nd.NDArray, targets: nd.NDArray, scale: float = 1.0) -> tuple[nd.NDArray, nd.NDArray]:
        """Leave the gradients of the summed losses, times `scale`, in the parameters; answer logits and losses (N,)."""
        inputs, heads = [wanting_gradient(images)], []
        for number, (piece, pyramid) in enumerate(zip(self.pieces, self.pyramids)):
            with autograd.record():
                block_input, pyramid_input = piece(*inputs)
            arrays = [block_input, *pyramid(pyramid_input)]
            inputs = [self._variable(number, i, array) for i, array in enumerate(arrays)]
            heads.append(([block_input, pyramid_input], inputs))
        with autograd.record():
            logits = self.pieces[-1](*inputs)
            losses = self.loss(logits, targets)
            scaled = losses * scale
        scaled.backward()
        for pyramid, (outputs, (block_input, *maps)) in zip(reversed(self.pyramids), reversed(heads)):
            autograd.backward(outputs, [block_input.grad, pyramid.backward([each.grad for each in maps])])
        return logits, losses

    def _variable(self, piece: int, number: int, array: nd.NDArray) -> nd.NDArray:
        """The array as the beginning of a new piece of the tape; its gradient's buffer is used again in each step."""
        array = array.detach()
        gradient = self.gradients.get((piece, number))
        if gradient is None or gradient.shape != array.shape:
            gradient = self.gradients[piece, number] = nd.zeros(array.shape, array.context, array.dtype)
        autograd.mark_variables([array], [gradient])
        return array


def wanting_gradient(images: nd.NDArray) -> nd.NDArray:
    """The images as something to be differentiated by, though nobody wants the result.

    On a CPU, MXNet brings the moving statistics up to date in the backward pass, and leaves out the backward pass of
    whatever has nothing to learn before it: those of the stem, which stands first and has no scale and shift, would
    stay at 0 and 1.
    """
    images.attach_grad()
    return images


class Piece(NamedTuple):
    """Layers of a network, and the names of what they take and of what they give."""

    layers: Sequence[Layer]
    inputs: Sequence[str]
    outputs: Sequence[str]


def whole(net: HybridBlock) -> Piece:
    """All of a network."""
    return Piece(lower(net.description).layers, [IMAGES], [net.description.head.name])


def pieces(layers: Sequence[Layer]) -> list[Piece]:
    """A network cut at its pyramids, which are left out. The first piece takes images, the last one gives logits.

    The others take the input of the block that they begin in, and the maps of its pyramid. All but the last one give
    the input of the block that they end in, and that of its pyramid.
    """
    groups = [list(group) for _, group in groupby(layers, is_pyramid)]
    found, inputs = [], [IMAGES]
    for number in range(0, len(groups) - 1, 2):
        piece, pyramid = groups[number : number + 2]
        later = {name for group in groups[number + 2 :: 2] for layer in group for name in layer.inputs}
        block_input = next(name for name in [*inputs, *(layer.name for layer in piece)] if name in later)
        found.append(Piece(piece, inputs, [block_input, pyramid[0].inputs[0]]))
        maps = [layer.name for layer in pyramid if layer.name in later]
        inputs = [block_input, *maps]
    return [*found, Piece(groups[-1], inputs, [layers[-1].name])]


def is_pyramid(layer: Layer) -> bool:
    """Whether a layer is one of a pyramid's convolutions, or their sum."""
    if isinstance(layer, Convolution):
        return ".spatial." in layer.name
    return isinstance(layer, Add) and layer.name.endswith(".spatial")


def traced(net: HybridBlock, piece: Piece) -> HybridBlock:
    """A piece of a network as a block that shares the network's parameters."""
    parameters = net._collect_params_with_prefix()
    dtype = np.dtype(next(iter(parameters.values())).dtype)
    inputs = [mx.sym.var(name, dtype=dtype) for name in piece.inputs]
    # The joint operation knows no other type, and below AVX2 it has no fast kernels: it was 12 times slower.
    joint = dtype == np.float32 and processor.instruction_set() not in ("SSE41", "AVX")
    named_inputs = dict(zip(piece.inputs, inputs))
    found = symbols(piece.layers, named_inputs, lambda name: mx.sym.var(parameters[name].name), joint)
    return gluon.SymbolBlock([found[name] for name in piece.outputs], inputs, params=net.collect_params())


class PyramidGradient:
    """A pyramid's maps, and their gradients by forward convolutions."""

    def __init__(self, pyramid: Pyramid):
        self.convolutions = [pyramid.conv3, pyramid.conv5, pyramid.conv7]
        self.merged = isinstance(pyramid, PyramidAdd)
        self.stride = pyramid.stride
        self.dilated: nd.NDArray | None = None  # zeros but at every `stride`-th pixel

    def __call__(self, x: nd.NDArray) -> list[nd.NDArray]:
        """The maps of x (N, C, H, W), one a kernel: each (N, C, H / stride, W / stride)."""
        self.x = x
        with autograd.record():  # so that a kernel's gradient finds its way to the parameters that it is made of
            self.kernels = self._kernels(x.context)
        return [depthwise(x, kernel, self.stride) for kernel in self.kernels]

    def backward(self, gradients: Sequence[nd.NDArray]) -> nd.NDArray:
        """From the maps' gradients to that of x; the kernels' gradients go to the parameters."""
        parts = []
        for kernel, gradient in zip(self.kernels, gradients):
            gradient = self._at_stride_1(gradient)
            parts.append(depthwise(gradient, nd.flip(kernel, axis=(2, 3))))
            kernel.backward(kernel_gradient(self.x, gradient, kernel.shape[2]))
        del self.x, self.kernels
        return nd.add_n(*parts) if len(parts) > 1 else parts[0]

    def _kernels(self, context: mx.Context) -> list[nd.NDArray]:
        kernels = [convolution.weight.data(context) for convolution in self.convolutions]
        if not self.merged:
            return [nd.identity(kernel) for kernel in kernels]
        *smaller, largest = kernels
        margins = [(largest.shape[2] - kernel.shape[2]) // 2 for kernel in smaller]
        frames = [(0, 0, 0, 0, margin, margin, margin, margin) for margin in margins]
        padded = [nd.pad(kernel, mode="constant", pad_width=frame) for kernel, frame in zip(smaller, frames)]
        return [nd.add_n(*padded, largest)]

    def _at_stride_1(self, gradient: nd.NDArray) -> nd.NDArray:
        """The gradient of the map that a stride of 1 would have made, of which every `stride`-th pixel was used."""
        if self.stride == 1:
            return gradient
        if self.dilated is None or self.dilated.shape != self.x.shape:
            self.dilated = nd.zeros(self.x.shape, self.x.context, self.x.dtype)
        self.dilated[:, :, :: self.stride, :: self.stride] = gradient
        return self.dilated


def depthwise(x: nd.NDArray, kernel: nd.NDArray, stride: int = 1) -> nd.NDArray:
    """x (N, C, H, W) by a square kernel (C, 1, k, k), a channel at a time, zeros around it."""
    channels, _, size, _ = kernel.shape
    return nd.Convolution(
        x,
        kernel,
        kernel=(size, size),
        pad=(size // 2, size // 2),
        stride=(stride, stride),
        num_filter=channels,
        num_group=channels,
        no_bias=True,
    )


def kernel_gradient(x: nd.NDArray, gradient: nd.NDArray, size: int) -> nd.NDArray:
    """The gradient of a depthwise kernel of `size`, (C, 1, k, k), from that of its map at stride 1, (N, C, H, W)."""
    images, channels, height, width = x.shape
    products = nd.Convolution(
        x.reshape((1, images * channels, height, width)),
        gradient.reshape((images * channels, 1, height, width)),
        kernel=(height, width),
        pad=(size // 2, size // 2),
        num_filter=images * channels,
        num_group=images * channels,
        no_bias=True,
    )
    return products.reshape((images, channels, 1, size, size)).sum(axis=0)
