"""A list of layers as a graph of MXNet's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import mxnet as mx

from ..folding import num_consumers
from ..network import (
    EPSILON,
    Add,
    BatchNorm,
    Concat,
    Convolution,
    Dense,
    GlobalAveragePool,
    Layer,
    Maximum,
    Pyramid,
    ReLU,
)


def symbols(
    layers: Iterable[Layer],
    inputs: Mapping[str, mx.sym.Symbol],
    variable: Callable[[str], mx.sym.Symbol] = mx.sym.var,
    fused: Mapping[str, BatchNorm] | None = None,
) -> dict[str, mx.sym.Symbol]:
    """Return the outputs of layers by name. `inputs` are those that they need of others.

    `variable` gives the symbol of a parameter by its full name. `fused` is what `fused_norms` gives.
    """
    fused = fused or {}
    values = dict(inputs)
    for layer in layers:
        if layer in fused.values():
            continue
        norm = fused.get(layer.name)
        source = norm or layer
        operands = [values[name] for name in source.inputs], [variable(f"{source.name}.{p}") for p in source.parameters]
        values[layer.name] = (_norm_relu if norm else OPERATORS[type(layer)])(source, *operands)
    return values


def fused_norms(layers: Sequence[Layer]) -> dict[str, BatchNorm]:
    """Return the batch normalisations that can be one operation with their ReLU, by its name: in float32 on a CPU.

    Nobody else uses them, and gradients have been tried behind the layers in front. Behind a maximum they are wrong.
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
