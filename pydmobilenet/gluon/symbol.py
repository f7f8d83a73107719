"""A description, or a part of one, as a graph of MXNet's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import mxnet as mx

from ..folding import num_consumers
from ..network import EPSILON, Add, BatchNorm, Concat, Convolution, Dense, GlobalAveragePool, Layer, Maximum, ReLU


def symbols(
    layers: Iterable[Layer],
    inputs: Mapping[str, mx.sym.Symbol],
    variable: Callable[[str], mx.sym.Symbol] = mx.sym.var,
    joint: bool = False,
) -> dict[str, mx.sym.Symbol]:
    """The outputs of layers by name, from those that they need of others, `inputs`.

    `variable` gives the symbol of a parameter by its full name. If `joint`, a batch normalisation that a ReLU alone
    follows is one operation with it, which MXNet has for float32 on a CPU.
    """
    layers = list(layers)
    joined = joined_norms(layers) if joint else {}
    done_later = {norm.name for norm in joined.values()}
    found = dict(inputs)
    for layer in layers:
        if layer.name in done_later:
            continue
        if layer.name in joined:
            norm = joined[layer.name]
            operator = partial(mx.sym.contrib.BatchNormWithReLU, name=layer.name)
            found[layer.name] = _batch_norm(norm, [found[norm.inputs[0]]], _parameters(norm, variable), operator)
        else:
            before = [found[name] for name in layer.inputs]
            found[layer.name] = OPERATORS[type(layer)](layer, before, _parameters(layer, variable))
    return found


def joined_norms(layers: Sequence[Layer]) -> dict[str, BatchNorm]:
    """The batch normalisation before each ReLU that nobody else follows, by the ReLU's name."""
    used = num_consumers(layers)
    makers = {layer.name: type(layer) for layer in layers}
    norms = {
        layer.name: layer
        for layer in layers
        if isinstance(layer, BatchNorm)
        and used.get(layer.name) == 1
        and makers.get(layer.inputs[0], Convolution) is not Maximum  # behind which its gradients are wrong
    }
    return {
        layer.name: norms[layer.inputs[0]] for layer in layers if isinstance(layer, ReLU) and layer.inputs[0] in norms
    }


def _parameters(layer: Layer, variable: Callable[[str], mx.sym.Symbol]) -> list[mx.sym.Symbol]:
    return [variable(f"{layer.name}.{name}") for name in layer.parameters]


def _batch_norm(layer: BatchNorm, inputs: list, parameters: list, operator: Callable | None = None) -> mx.sym.Symbol:
    operator = operator or partial(mx.sym.BatchNorm, name=layer.name)
    return operator(*inputs, *parameters, eps=EPSILON, momentum=0.9, fix_gamma=not layer.scale)


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


def _maximum(layer: Maximum, inputs: list, parameters: list) -> mx.sym.Symbol:
    first, *others = inputs
    for other in others:
        first = mx.sym.broadcast_maximum(first, other)
    return first


def _add(layer: Add, inputs: list, parameters: list) -> mx.sym.Symbol:
    first, *others = inputs
    for other in others:
        first = first + other
    return first


OPERATORS: dict[type, Callable[[Any, list, list], mx.sym.Symbol]] = {
    Convolution: _convolution,
    BatchNorm: _batch_norm,
    ReLU: lambda layer, inputs, parameters: mx.sym.Activation(inputs[0], act_type="relu", name=layer.name),
    Add: _add,
    Maximum: _maximum,
    Concat: lambda layer, inputs, parameters: mx.sym.concat(*inputs, dim=1, name=layer.name),
    GlobalAveragePool: lambda layer, inputs, parameters: mx.sym.Pooling(
        inputs[0], pool_type="avg", global_pool=True, kernel=(1, 1), name=layer.name
    ),
    Dense: lambda layer, inputs, parameters: mx.sym.FullyConnected(
        *inputs, *parameters, num_hidden=layer.out_features, name=layer.name
    ),
}
