"""The same function in fewer layers: pyramids lowered to convolutions, and networks folded for inference.

A batch normalisation after a convolution scales and shifts its output channels, so it goes into weights and bias.
PydMobileNet-Add sums three convolutions of the same input: one convolution by the sum of the zero-padded kernels does
the same. A ReLU after a concatenation goes before it, so that engines compute it with the convolutions. All of it is
exact up to rounding, in float64. Concat's three convolutions stay three: as one 7x7 with three outputs a channel they
ran 4 times slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .network import EPSILON, Add, BatchNorm, Concat, Convolution, Layer, Maximum, Network, Pyramid, ReLU

Arrays = Mapping[str, np.ndarray]
JOINS: dict[str, type[Layer]] = {"add": Add, "concat": Concat, "max": Maximum}


def lower(network: Network) -> Network:
    """Replace pyramids by convolutions and a sum, concatenation or maximum."""
    layers: list[Layer] = []
    alias: dict[str, str] = {}  # from a pyramid of one kernel to its convolution
    for layer in network.layers:
        layer = replace(layer, inputs=tuple(alias.get(name, name) for name in layer.inputs))
        if not isinstance(layer, Pyramid):
            layers.append(layer)
            continue
        shape = layer.channels, layer.channels
        maps = [
            Convolution(f"{layer.name}.conv{kernel}", layer.inputs, *shape, kernel, layer.stride, layer.channels)
            for kernel in layer.kernels
        ]
        layers += maps
        if len(maps) > 1:
            layers.append(JOINS[layer.join](layer.name, tuple(conv.name for conv in maps)))
        else:
            alias[layer.name] = maps[0].name
    return Network(tuple(layers))


def fused_relus(network: Network) -> dict[str, Layer]:
    """Return by the name of a layer the ReLU that it can do itself, as the only layer that uses its output."""
    consumers = num_consumers(network.layers)
    relus = {layer.inputs[0]: layer for layer in network.layers if isinstance(layer, ReLU)}
    able = [layer.name for layer in network.layers if isinstance(layer, (Convolution, BatchNorm, Add))]
    return {name: relus[name] for name in able if name in relus and consumers[name] == 1}


def num_consumers(layers: Iterable[Layer]) -> dict[str, int]:
    """Count the layers that use each output."""
    return Counter(name for layer in layers for name in layer.inputs)


def fold(network: Network, arrays: Arrays) -> tuple[Network, dict[str, np.ndarray]]:
    """Fold a network with `arrays` by their full names. Return the folded one with its arrays in float64.

    Tensors of PyTorch keep their type, and their gradients.
    """
    network = lower(network)
    folding = _Folding(network, arrays)
    for layer in network.layers:
        folding.add(layer)
    layers = tuple(folding.layers.values())
    kept = [f"{layer.name}.{name}" for layer in layers for name in layer.parameters]
    return Network(layers), {name: folding.arrays[name] for name in kept}


def _double(array: Any) -> Any:
    return array if hasattr(array, "requires_grad") else np.asarray(array, np.float64)


class _Folding:
    """A partly folded network."""

    def __init__(self, network: Network, arrays: Arrays):
        self.arrays: dict[str, Any] = {name: _double(array) for name, array in arrays.items()}
        self.consumers = num_consumers(network.layers)
        self.layers: dict[str, Layer] = {}
        self.alias: dict[str, str] = {}  # from a layer folded away to the one with its output

    def add(self, layer: Layer) -> None:
        layer = replace(layer, inputs=tuple(self.alias.get(name, name) for name in layer.inputs))
        before = [self.layers.get(name) for name in layer.inputs]
        first = before[0]
        alone = all(self.consumers[name] == 1 for name in layer.inputs)  # no other layer uses the inputs
        convolutions = self._convolutions(first) if alone else []
        if isinstance(layer, BatchNorm) and first and convolutions:
            self._scale(convolutions, layer)
            self._replace(layer, first)
        elif isinstance(layer, Add) and alone and (summands := _summands(before)):
            self._replace(layer, self._sum(summands))
        elif isinstance(layer, ReLU) and isinstance(first, Concat) and convolutions:
            self._replace(layer, self._activate(first))
        else:
            self.layers[layer.name] = layer

    def _replace(self, layer: Layer, other: Layer) -> None:
        """Leave a layer out: another one has its output."""
        self.alias[layer.name] = other.name
        self.consumers[other.name] = self.consumers[layer.name]

    def _convolutions(self, layer: Layer | None) -> list[Convolution]:
        """Return the convolutions for a layer's output: itself, or its inputs if a concatenation alone uses them."""
        if isinstance(layer, Convolution):
            return [layer]
        if isinstance(layer, Concat):
            before = [self.layers.get(name) for name in layer.inputs]
            convs = [conv for conv in before if isinstance(conv, Convolution) and self.consumers[conv.name] == 1]
            return convs if len(convs) == len(before) else []
        return []

    def _scale(self, convolutions: list[Convolution], norm: BatchNorm) -> None:
        """Put a batch normalisation of their concatenated outputs into convolutions."""
        gamma, beta, mean, variance = (self.arrays[f"{norm.name}.{name}"] for name in norm.parameters)
        scale = (gamma if norm.scale else 1) / (variance + EPSILON) ** 0.5
        shift = beta - mean * scale
        start = 0
        for layer in convolutions:
            part = slice(start, start + layer.out_channels)
            start = part.stop
            weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
            self.arrays[weight] = self.arrays[weight] * scale[part, None, None, None]
            self.arrays[bias] = self.arrays.get(bias, 0) * scale[part] + shift[part]
            self.layers[layer.name] = replace(layer, bias=True)

    def _sum(self, convolutions: list[Convolution]) -> Convolution:
        """Add summed convolutions to the one with the largest kernel."""
        kernel = max(layer.kernel for layer in convolutions)
        largest = next(layer for layer in convolutions if layer.kernel == kernel)
        weight = 0 * self.arrays[f"{largest.name}.weight"]
        for layer in convolutions:
            margin = (largest.kernel - layer.kernel) // 2
            inner = slice(margin, largest.kernel - margin)
            weight[:, :, inner, inner] += self.arrays[f"{layer.name}.weight"]
            if layer is not largest:
                del self.layers[layer.name]
        self.arrays[f"{largest.name}.weight"] = weight
        return largest

    def _activate(self, concat: Concat) -> Concat:
        """Put a ReLU between a concatenation and its inputs."""
        del self.layers[concat.name]
        relus = [ReLU(f"{name}_relu", (name,)) for name in concat.inputs]
        for layer in (*relus, replace(concat, inputs=tuple(relu.name for relu in relus))):
            self.layers[layer.name] = layer
        return concat


def _summands(layers: list[Layer | None]) -> list[Convolution]:
    """Return the layers if they are convolutions without bias and differ in an odd kernel alone; otherwise nothing."""
    convs = [layer for layer in layers if isinstance(layer, Convolution) and not layer.bias and layer.kernel % 2]
    alike = len({replace(layer, name="", kernel=1) for layer in convs}) == 1
    return convs if alike and len(convs) == len(layers) else []
