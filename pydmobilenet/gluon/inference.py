"""Gluon for answers alone: folded networks, with operations of oneDNN's on a CPU.

On a CPU, oneDNN computes convolution, addition and ReLU as one operation, and so it does with what is left of batch
normalisation and ReLU. What it makes of a graph depends on the processor and on the shapes, so it is not relied on
before it has been seen to work (`Fused`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from ..devices import Device
from ..errors import engine_words
from ..folding import fold, lower
from ..network import IMAGES, Add, BatchNorm, Layer, Network, ReLU
from ..processes import processors
from . import devices
from .network import get_arrays
from .symbol import joined_norms, symbols

TOLERANCE = 1e-3  # of the largest logit; rounding makes 1e-6


class GluonEngine:
    """MXNet on one device. Networks are folded before they answer, unless `fused` says otherwise."""

    name = "gluon"

    def __init__(self, device: str | Device = "auto", fused: bool = True):
        self.context, self.device = devices.choose(device)
        self.fused = fused

    @property
    def batch_size(self) -> int:
        """Images a call."""
        return batch_size(self.context)

    @property
    def processes(self) -> int:
        """How many processes may work at once. On a CPU, one a processor is faster than one with all processors."""
        return 1 if self.context.device_type != "cpu" else processors()

    def load(self, network: Network, arrays: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """The network with these parameters: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
        make = fused if self.fused else literal
        return predictor(make(network, arrays, self.context), self.context)


def batch_size(context: mx.Context) -> int:
    """Images a call: on a CPU so few that a layer's maps stay in its caches, on a GPU so many that it is full."""
    return 25 if context.device_type == "cpu" else 500


def predictor(net: HybridBlock, context: mx.Context) -> Callable[[np.ndarray], np.ndarray]:
    """A network as a function of NumPy arrays: images (N, 3, 32, 32) in float32 to logits (N, outputs)."""
    net.hybridize(static_alloc=True, static_shape=True)

    def predict(images: np.ndarray) -> np.ndarray:
        return net(mx.nd.array(images, ctx=context)).asnumpy()

    return predict


def fuse(net: HybridBlock) -> HybridBlock:
    """An inference network that computes the same function as `net`, one of the zoo's with initialised parameters.

    It stands on the (first) device of `net`, in float32, and is not for training: what was folded is gone.
    """
    context = next(iter(net.collect_params().values())).list_ctx()[0]
    return fused(net.description, get_arrays(net), context)


def fused(network: Network, arrays: Mapping[str, np.ndarray], context: mx.Context, onednn: bool = True) -> HybridBlock:
    """The folded network on a device; on a CPU with operations of oneDNN's, unless `onednn` says otherwise."""
    network, arrays = fold(network, arrays)
    reference = literal(network, arrays, context)
    if not onednn or context.device_type != "cpu":
        return reference
    return Fused(for_onednn(network), reference)


def literal(network: Network, arrays: Mapping[str, np.ndarray], context: mx.Context) -> mx.gluon.SymbolBlock:
    """A network on a device, operation by operation."""
    images = mx.sym.var(IMAGES, dtype="float32")
    block = mx.gluon.SymbolBlock(_logits(lower(network).layers, images), images)
    for name, parameter in block.collect_params().items():
        value = mx.nd.array(arrays[name], ctx=context, dtype="float32")
        parameter.shape = value.shape
        parameter.initialize(mx.init.Zero(), ctx=context)
        parameter.set_data(value)
        parameter.grad_req = "null"
    return block


def _logits(layers: Iterable[Layer], images: mx.sym.Symbol, joint: bool = False) -> mx.sym.Symbol:
    layers = list(layers)
    return symbols(layers, {IMAGES: images}, joint=joint)[layers[-1].name]


class Fused(mx.gluon.SymbolBlock):
    """A graph with operations of oneDNN, used once it has been seen to answer as the `reference` network of the same
    parameters does: in this process, on this processor, for images of this shape. Where it does not, the reference one
    answers, and a warning says so.
    """

    def __init__(self, graph: mx.sym.Symbol, reference: mx.gluon.SymbolBlock):
        super().__init__(graph, mx.sym.var(IMAGES, dtype="float32"), params=reference.collect_params())
        self.reference = reference.__call__  # not the network itself, which would become a part of this one
        self.works: dict[tuple[int, ...], bool] = {}

    def forward(self, x, *others):
        if isinstance(x, mx.nd.NDArray) and not self._works(x):
            return self.reference(x)
        return super().forward(x, *others)

    def _works(self, x: mx.nd.NDArray) -> bool:
        if x.shape not in self.works:
            obstacle = self._obstacle(x)
            self.works[x.shape] = not obstacle
            if obstacle:
                warnings.warn(f"oneDNN's fused operations are left out, as {obstacle}: slower", stacklevel=3)
        return self.works[x.shape]

    def _obstacle(self, x: mx.nd.NDArray) -> str:
        """Why oneDNN's operations cannot be used for images like these, or nothing."""
        try:
            found = super().forward(x).asnumpy()
        except mx.MXNetError as error:
            return f"they do not work here ({engine_words(error)})"
        expected = self.reference(x).asnumpy()
        apart, size = abs(found - expected).max(), abs(expected).max()
        if apart <= TOLERANCE * size or not np.isfinite(size):
            return ""
        return f"they give other logits (up to {apart:.2g} off, of {size:.2g})"


def for_onednn(network: Network) -> mx.sym.Symbol:
    """A network's graph with convolution, addition and ReLU as one operation of oneDNN's, where that is safe."""
    graph = _logits(network.layers, mx.sym.var(IMAGES), joint=True)
    if sums_are_safe(network.layers) and mx.runtime.Features().is_enabled("MKLDNN"):
        return graph.get_backend_symbol("MKLDNN")
    return graph


def sums_are_safe(layers: Iterable[Layer]) -> bool:
    """Whether MXNet leaves every sum as it is.

    MXNet 1.9.1 also draws a batch normalisation or ReLU that follows an addition into it, although others need the
    sum as it is: logits were a fifth of their range off. A batch normalisation that is joined with its ReLU is out of
    its reach."""
    layers = list(layers)
    sums = {layer.name for layer in layers if isinstance(layer, Add)}
    joined = {norm.name for norm in joined_norms(layers).values()}
    followers = (layer for layer in layers if isinstance(layer, (BatchNorm, ReLU)) and layer.name not in joined)
    return not any(layer.inputs[0] in sums for layer in followers)
