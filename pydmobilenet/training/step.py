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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.gluon.block import HybridBlock

from ..deploy.fuse import joined
from ..models import Network
from ..models.blocks import Pyramid, PyramidAdd, ResidualBlock

Loss = Callable[[nd.NDArray, nd.NDArray], nd.NDArray]
"""Logits (N, outputs) and target distributions (N, outputs) to losses (N,)."""


def make(net: HybridBlock, loss: Loss, context: mx.Context) -> LiteralStep | PyramidStep:
    """The fastest step for a network on a device."""
    if context.device_type != "cpu":
        return LiteralStep(net, loss)
    pyramid = isinstance(net, Network) and isinstance(net.stages[0][0].spatial, Pyramid)
    return PyramidStep(net, loss) if pyramid else LiteralStep(traced(net, net(mx.sym.var("data")), ["data"]), loss)


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
        blocks = [block for stage in net.stages for block in stage]
        parts = [net.stem, *blocks, net.head]
        self.pyramids = [PyramidGradient(block.spatial) for block in blocks]
        maps = [0, *(pyramid.maps for pyramid in self.pyramids)]
        self.pieces = [piece(net, *neighbours) for neighbours in zip(parts, parts[1:], maps)]
        for each in self.pieces:
            each.hybridize(static_alloc=True, static_shape=True)
        self.loss = loss
        self.gradients: dict[tuple[int, int], nd.NDArray] = {}

    def __call__(self, images: nd.NDArray, targets: nd.NDArray, scale: float = 1.0) -> tuple[nd.NDArray, nd.NDArray]:
        """Leave the gradients of the summed losses, times `scale`, in the parameters; answer logits and losses (N,)."""
        inputs, heads = [wanting_gradient(images)], []
        for number, (piece, pyramid) in enumerate(zip(self.pieces, self.pyramids)):
            with autograd.record():
                whole, narrow = piece(*inputs)
            inputs = [self._variable(number, i, array) for i, array in enumerate([whole, *pyramid(narrow)])]
            heads.append(([whole, narrow], inputs))
        with autograd.record():
            logits = self.pieces[-1](*inputs)
            losses = self.loss(logits, targets)
            scaled = losses * scale
        scaled.backward()
        for pyramid, (outputs, (whole, *maps)) in zip(reversed(self.pyramids), reversed(heads)):
            autograd.backward(outputs, [whole.grad, pyramid.backward([each.grad for each in maps])])
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


def piece(net: Network, done: HybridBlock, then: HybridBlock, maps: int) -> HybridBlock:
    """From one pyramid of a network to the next: the end of `done`, a block or the stem, and the beginning of `then`, a
    block or the head.

    Takes the input of `done` and the `maps` of its pyramid to the input of `then` and that of its pyramid; the first
    piece takes images, the last one gives logits.
    """
    names = [f"input{number}" for number in range(1 + maps)]
    x, *parts = (mx.sym.var(name) for name in names)
    if isinstance(done, ResidualBlock):
        x = done.finish(mx.sym, x, mx.sym.concat(*parts, dim=1) if maps > 1 else parts[0])
    else:
        x = done(x)
    graph = mx.sym.Group([x, then.begin(mx.sym, x)]) if isinstance(then, ResidualBlock) else then(x)
    return traced(net, graph, names)


def traced(net: HybridBlock, graph: mx.sym.Symbol, inputs: Sequence[str]) -> HybridBlock:
    """A graph of (a part of) a network as a block that shares the network's parameters."""
    parameters = net.collect_params()
    dtype = np.dtype(next(iter(parameters.values())).dtype)
    if dtype == np.float32:  # the joint operation knows no other type
        graph = joined(graph)
    return gluon.SymbolBlock(graph, [mx.sym.var(name, dtype=dtype) for name in inputs], params=parameters)


class PyramidGradient:
    """A pyramid's maps, and their gradients by forward convolutions."""

    def __init__(self, pyramid: Pyramid):
        self.convolutions = [pyramid.conv3, pyramid.conv5, pyramid.conv7]
        self.merged = isinstance(pyramid, PyramidAdd)
        self.maps = 1 if self.merged else len(self.convolutions)
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
