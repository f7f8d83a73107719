"""Gluon for answers alone: folded networks, with operations of oneDNN's on a CPU.

On a CPU, oneDNN computes convolution, addition and ReLU as one operation, and so it does with what is left of batch
normalisation and ReLU. What it makes of a graph depends on the processor and on the shapes, so it is not relied on
before it has been seen to work (`Checked`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from ..devices import Device
from ..errors import engine_words
from ..folding import fold, lower
from ..network import IMAGES, Add, BatchNorm, Network, ReLU
from ..processes import processors
from . import devices
from .network import get_arrays
from .symbol import fused_norms, symbols

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
        make = fused if self.fused else unfused
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
    """Return an inference network that computes the same function as `net`, one of the zoo's with initialised
    parameters, in float32 on the (first) device of `net`. It is not for training: what was folded is gone.
    """
    context = next(iter(net.collect_params().values())).list_ctx()[0]
    return fused(net.description, get_arrays(net), context)


def fused(network: Network, arrays: Mapping[str, np.ndarray], context: mx.Context, onednn: bool = True) -> HybridBlock:
    """Build the folded network on a device; on a CPU with operations of oneDNN's, unless `onednn` says otherwise."""
    network, arrays = fold(network, arrays)
    reference = unfused(network, arrays, context)
    if not onednn or context.device_type != "cpu":
        return reference
    return Fused(for_onednn(network), reference)


def unfused(network: Network, arrays: Mapping[str, np.ndarray], context: mx.Context) -> mx.gluon.SymbolBlock:
    """Build a network on a device, operation by operation."""
    network = lower(network)
    images = mx.sym.var(IMAGES, dtype="float32")
    block = mx.gluon.SymbolBlock(symbols(network.layers, {IMAGES: images})[network.head.name], images)
    for name, parameter in block.collect_params().items():
        value = mx.nd.array(arrays[name], ctx=context, dtype="float32")
        parameter.shape = value.shape
        parameter.initialize(mx.init.Zero(), ctx=context)
        parameter.set_data(value)
        parameter.grad_req = "null"
    return block


def for_onednn(network: Network) -> mx.sym.Symbol:
    """Return a folded network's graph with convolution, addition and ReLU as one operation of oneDNN's, if it is safe.

    MXNet 1.9.1 also draws a batch normalisation or ReLU that follows an addition into it, although others need the
    sum as it is: logits were a fifth of their range off. A normalisation fused with its ReLU is out of its reach.
    """
    norms = fused_norms(network.layers)
    graph = symbols(network.layers, {IMAGES: mx.sym.var(IMAGES)}, fused=norms)[network.head.name]
    fused_names = {norm.name for norm in norms.values()}
    sums = {layer.name for layer in network.layers if isinstance(layer, Add)}
    followers = [
        each for each in network.layers if isinstance(each, (BatchNorm, ReLU)) and each.name not in fused_names
    ]
    safe = not any(layer.inputs[0] in sums for layer in followers)
    if safe and mx.runtime.Features().is_enabled("MKLDNN"):
        return graph.get_backend_symbol("MKLDNN")
    return graph


class Fused(mx.gluon.SymbolBlock):
    """A graph with operations of oneDNN, checked against the `reference` network of the same parameters."""

    def __init__(self, graph: mx.sym.Symbol, reference: mx.gluon.SymbolBlock):
        super().__init__(graph, mx.sym.var(IMAGES, dtype="float32"), params=reference.collect_params())
        self.checked = Checked(
            super().forward,
            reference.__call__,  # not the network itself, which would become a part of this one
            lambda network, images: [list(network(images).asnumpy())],
            TOLERANCE,
            "oneDNN's fused operations are",
            "answers are slower",
        )

    def forward(self, x, *others):
        return self.checked(x) if isinstance(x, mx.nd.NDArray) else super().forward(x, *others)


class Checked:
    """A fast function, used once it has been seen to give the reference's results: in this process, on this processor,
    for images of this shape. Where it does not, the reference is used, and a warning says so.

    `results` calls one of the two and returns lists of arrays. The warning says that `what` is left out at which price.
    """

    def __init__(
        self, fast: Callable, reference: Callable, results: Callable[..., list], tolerance: float, what: str, price: str
    ):
        self.fast, self.reference, self.results = fast, reference, results
        self.tolerance, self.what, self.price = tolerance, what, price
        self.chosen: dict[tuple[int, ...], Callable] = {}

    def __call__(self, images: mx.nd.NDArray, *others):
        if images.shape not in self.chosen:
            mx.nd.waitall()  # what has failed before is not the fast function's fault, and raises here
            obstacle = self._obstacle(images, *others)
            self.chosen[images.shape] = self.reference if obstacle else self.fast
            if obstacle:
                warnings.warn(f"{self.what} left out ({obstacle}): {self.price}", stacklevel=2)
        return self.chosen[images.shape](images, *others)

    def _obstacle(self, *inputs) -> str | None:
        """Return why the fast function cannot be used for inputs like these."""
        try:
            found = self.results(self.fast, *inputs)
        except mx.MXNetError as error:
            return f"failed: {engine_words(error)}"
        apart = np.max([*map(distance, found, self.results(self.reference, *inputs))])  # nan, if one of them is
        return None if apart <= self.tolerance else f"results off by {apart:.1%}"


def distance(arrays: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return how far arrays are from the expected ones: the largest norm of a difference by the norm of what is
    expected, or by a thousandth of the norm of all together where that is more. 0 if what is expected is not finite.
    """
    norms = np.array([np.linalg.norm(array) for array in expected])
    floor = 1e-3 * np.linalg.norm(norms)
    if not np.isfinite(floor):
        return 0.0
    differences = np.array([np.linalg.norm(mine - theirs) for mine, theirs in zip(arrays, expected)])
    return float((differences / np.maximum(norms, floor + np.finfo(float).tiny)).max(initial=0))
