"""Inference with Gluon: lists of layers as MXNet graphs, folded, with oneDNN's fused operations on a CPU.

oneDNN computes convolution + addition + ReLU, and BatchNorm + ReLU, as one operation. The result depends on the
processor and the shapes, so it is checked on first use (`Checked`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from ..devices import Device
from ..errors import engine_words
from ..folding import fold, lower, num_consumers
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
    Pyramid,
    ReLU,
)
from ..processes import processors
from . import runtime
from .network import get_arrays

TOLERANCE = 1e-3  # of the largest logit; rounding makes 1e-6


class GluonEngine:
    """MXNet on one device. Folds networks if `fused`."""

    name = "gluon"

    def __init__(self, device: str | Device = "auto", fused: bool = True):
        self.context, self.fused = runtime.choose(device).device, fused

    @property
    def batch_size(self) -> int:
        return batch_size(self.context)

    @property
    def processes(self) -> int:
        """Run one process per processor on a CPU: faster than one process with all processors."""
        return processors() if self.context.device_type == "cpu" else 1

    def load(self, network: Network, arrays: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """Return the network with these parameters: images (N, 3, H, W) in float32 to logits (N, outputs)."""
        make = build_fused if self.fused else build_reference
        return predictor(make(network, arrays, self.context), self.context)


def batch_size(context: mx.Context) -> int:
    """Return images per call: few enough for a CPU's caches, enough to fill a GPU."""
    return 25 if context.device_type == "cpu" else 500


def predictor(net: HybridBlock, context: mx.Context) -> Callable[[np.ndarray], np.ndarray]:
    """Return a network as a function of NumPy arrays: images (N, 3, H, W) in float32 to logits (N, outputs)."""
    net.hybridize(static_alloc=True, static_shape=True)

    def predict(images: np.ndarray) -> np.ndarray:
        return net(mx.nd.array(images, ctx=context)).asnumpy()

    return predict


def fuse(net: HybridBlock) -> HybridBlock:
    """Return a folded inference network of the same function as `net`, in float32 on its first device.

    `net` is one of the zoo's, with initialised parameters. The result cannot be trained.
    """
    context = next(iter(net.collect_params().values())).list_ctx()[0]
    return build_fused(net.description, get_arrays(net), context)


def build_fused(network: Network, arrays: Mapping[str, np.ndarray], context: mx.Context) -> HybridBlock:
    """Build the folded network on a device, on a CPU with oneDNN's fused operations."""
    network, arrays = fold(network, arrays)
    reference = build_reference(network, arrays, context)
    return Fused(for_onednn(network), reference) if context.device_type == "cpu" else reference


def build_reference(network: Network, arrays: Mapping[str, np.ndarray], context: mx.Context) -> mx.gluon.SymbolBlock:
    """Build a network on a device, layer by layer."""
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


def symbols(
    layers: Iterable[Layer],
    inputs: Mapping[str, mx.sym.Symbol],
    variable: Callable[[str], mx.sym.Symbol] = mx.sym.var,
    norms: Mapping[str, BatchNorm] | None = None,
) -> dict[str, mx.sym.Symbol]:
    """Return the layers' outputs by name, from `inputs` by name.

    `variable` gives a parameter's symbol by its full name; `norms` comes from `fusible_norms`.
    """
    norms = norms or {}
    values = dict(inputs)
    for layer in layers:
        if layer in norms.values():
            continue
        norm = norms.get(layer.name)
        source = norm or layer
        operands = [values[name] for name in source.inputs], [variable(f"{source.name}.{p}") for p in source.parameters]
        values[layer.name] = (_norm_relu if norm else OPERATORS[type(layer)])(source, *operands)
    return values


def fusible_norms(layers: Sequence[Layer]) -> dict[str, BatchNorm]:
    """Return the batch normalisations to fuse with their ReLU, by the ReLU's name: in float32 on a CPU.

    Each has one consumer, and its gradients were tried behind the layer in front. Behind a maximum they are wrong.
    """
    consumers = num_consumers(layers)
    tried = {layer.name for layer in layers if isinstance(layer, (Convolution, Pyramid, BatchNorm, Add, Concat))}
    tried -= {layer.name for layer in layers if isinstance(layer, Pyramid) and layer.join == "max"}
    norms = {
        layer.name: layer
        for layer in layers
        if isinstance(layer, BatchNorm) and consumers[layer.name] == 1 and layer.inputs[0] in tried
    }
    relus = [layer for layer in layers if isinstance(layer, ReLU)]
    return {relu.name: norms[relu.inputs[0]] for relu in relus if relu.inputs[0] in norms}


def _batch_norm(
    layer: BatchNorm, inputs: list, parameters: list, operator: Callable = mx.sym.BatchNorm
) -> mx.sym.Symbol:
    options = {"eps": EPSILON, "momentum": 0.9, "fix_gamma": not layer.scale, "name": layer.name}
    return operator(*inputs, *parameters, **options)


_norm_relu: Callable[..., mx.sym.Symbol] = partial(_batch_norm, operator=mx.sym.contrib.BatchNormWithReLU)


def _convolution(layer: Convolution, inputs: list, parameters: list) -> mx.sym.Symbol:
    margin = layer.kernel // 2
    return mx.sym.Convolution(
        inputs[0],
        *parameters,
        kernel=(layer.kernel, layer.kernel),
        stride=(layer.stride, layer.stride),
        pad=(margin, margin),
        dilate=(1, 1),
        num_filter=layer.out_channels,
        num_group=layer.groups,
        no_bias=not layer.bias,
        name=layer.name,
    )


OPERATORS: dict[type, Callable[[Any, list, list], mx.sym.Symbol]] = {
    Convolution: _convolution,
    BatchNorm: _batch_norm,
    ReLU: lambda layer, inputs, parameters: mx.sym.Activation(inputs[0], act_type="relu", name=layer.name),
    Add: lambda layer, inputs, parameters: reduce(add, inputs),
    Maximum: lambda layer, inputs, parameters: reduce(mx.sym.broadcast_maximum, inputs),
    Concat: lambda layer, inputs, parameters: mx.sym.concat(*inputs, dim=1, name=layer.name),
    GlobalAveragePool: lambda layer, inputs, parameters: mx.sym.Pooling(
        inputs[0], pool_type="avg", global_pool=True, kernel=(1, 1), name=layer.name
    ),
    Dense: lambda layer, inputs, parameters: mx.sym.FullyConnected(
        *inputs, *parameters, num_hidden=layer.out_features, name=layer.name
    ),
}


def for_onednn(network: Network) -> mx.sym.Symbol:
    """Return a folded network's graph, with oneDNN's fused operations if that is safe.

    MXNet 1.9.1 also fuses a BatchNorm or ReLU behind an addition, although others need the sum: logits were a fifth of
    their range off. A BatchNorm fused with its ReLU is out of its reach.
    """
    norms = fusible_norms(network.layers)
    graph = symbols(network.layers, {IMAGES: mx.sym.var(IMAGES)}, norms=norms)[network.head.name]
    fused_names = {norm.name for norm in norms.values()}
    sums = {layer.name for layer in network.layers if isinstance(layer, Add)}
    safe = not any(
        isinstance(layer, (BatchNorm, ReLU)) and layer.name not in fused_names and layer.inputs[0] in sums
        for layer in network.layers
    )
    if safe and mx.runtime.Features().is_enabled("MKLDNN"):
        return graph.get_backend_symbol("MKLDNN")
    return graph


class Fused(mx.gluon.SymbolBlock):
    """oneDNN-fused graph, checked against `reference` on first use, with fallback."""

    def __init__(self, graph: mx.sym.Symbol, reference: mx.gluon.SymbolBlock):
        super().__init__(graph, mx.sym.var(IMAGES, dtype="float32"), params=reference.collect_params())
        self.checked = Checked(
            super().forward,
            reference.__call__,  # a bound method: the network itself would be registered as a child
            lambda network, images: [list(network(images).asnumpy())],
            TOLERANCE,
            "oneDNN's fused operations are",
            "inference is slower",
        )

    def forward(self, x, *others):
        return self.checked(x) if isinstance(x, mx.nd.NDArray) else super().forward(x, *others)


class Checked:
    """A fast function, compared with its reference on the first images of each shape. On a difference, warn and use
    the reference.

    `results` calls one of the two and returns lists of arrays. The warning says: `what` left out, and the `price`.
    """

    def __init__(
        self, fast: Callable, reference: Callable, results: Callable[..., list], tolerance: float, what: str, price: str
    ):
        self.fast, self.reference, self.results = fast, reference, results
        self.tolerance, self.what, self.price = tolerance, what, price
        self.chosen: dict[tuple[int, ...], Callable] = {}

    def __call__(self, images: mx.nd.NDArray, *others):
        if images.shape not in self.chosen:
            mx.nd.waitall()  # earlier failures raise here: they are not the fast function's
            obstacle = self._obstacle(images, *others)
            self.chosen[images.shape] = self.reference if obstacle else self.fast
            if obstacle:
                warnings.warn(f"{self.what} left out ({obstacle}): {self.price}", stacklevel=2)
        return self.chosen[images.shape](images, *others)

    def _obstacle(self, *inputs) -> str | None:
        """Say why the fast function cannot be used for these inputs, or None."""
        try:
            results = self.results(self.fast, *inputs)
        except mx.MXNetError as error:
            return f"failed: {engine_words(error)}"
        apart = np.max([*map(distance, results, self.results(self.reference, *inputs))])  # nan, if one of them is
        return None if apart <= self.tolerance else f"results off by {apart:.1%}"


def distance(arrays: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest relative error: the norm of a difference by the expected norm, or by a thousandth of the
    total norm if that is more. 0 if the expected arrays are not finite.
    """
    norms = np.array([np.linalg.norm(array) for array in expected])
    floor = 1e-3 * np.linalg.norm(norms)
    if not np.isfinite(floor):
        return 0.0
    differences = np.array([np.linalg.norm(array - reference) for array, reference in zip(arrays, expected)])
    return float((differences / np.maximum(norms, floor + np.finfo(float).tiny)).max(initial=0))
