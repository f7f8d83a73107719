"""Fusing: the same function with fewer steps, for inference.

A batch normalisation that follows a convolution is a scale and a shift of its output channels: it goes into the
convolution's weights and bias. PydMobileNet-Add sums three convolutions of the same input, so one convolution by the
sum of the kernels, the smaller ones padded with zeros, does the same. Both are exact but for rounding; the folding is
done in float64. Concat's three stay three: as one 7x7 convolution with three outputs a channel they ran 4 times slower.

A ReLU goes ahead of the concatenation that it follows, to the convolutions. On a CPU, oneDNN then computes
convolution, addition and ReLU as one operation, and so it does with what is left of batch normalisation and ReLU.

The network is rewritten as a graph, so that it can be fused whatever its blocks are. What oneDNN makes of it depends on
the processor and on the shapes, so it is not relied on before it has been seen to work (`Fused`).
"""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from ..errors import engine_words

TOLERANCE = 1e-3  # of the largest logit; rounding makes 1e-6
ADDITIONS = ("elemwise_add", "broadcast_add", "_Plus")


@dataclass(frozen=True)
class Convolution:
    """A convolution that is not yet part of the new graph, so that what follows can still go into it.

    `weight` (outputs, inputs of a group, height, width) and `bias` (outputs,) are float64.
    """

    data: mx.sym.Symbol
    name: str
    options: dict[str, str]
    weight: np.ndarray
    bias: np.ndarray

    def scaled(self, scale: np.ndarray, shift: np.ndarray) -> Convolution:
        """The convolution followed by a scale and a shift of its output channels."""
        return replace(self, weight=self.weight * scale[:, None, None, None], bias=self.bias * scale + shift)

    def sums_with(self, other: Convolution) -> bool:
        """Whether the sum of both is a convolution: same input, stride and groups, each centred on its pixel."""
        same = ("stride", "dilate", "num_group", "num_filter")
        return (
            self.data is other.data
            and all(self.options[key] == other.options[key] for key in same)
            and ast.literal_eval(self.options["dilate"]) == (1, 1)
            and all(conv.centred for conv in (self, other))
        )

    @property
    def centred(self) -> bool:
        size = self.weight.shape[2:]
        return all(s % 2 for s in size) and ast.literal_eval(self.options["pad"]) == tuple(s // 2 for s in size)

    def plus(self, other: Convolution) -> Convolution:
        """The sum of two convolutions of which `sums_with` is true."""
        small, large = sorted((self, other), key=lambda conv: conv.weight.shape[2])
        margin = [(0, 0), (0, 0)] + [
            ((b - a) // 2,) * 2 for a, b in zip(small.weight.shape[2:], large.weight.shape[2:])
        ]
        return replace(large, weight=large.weight + np.pad(small.weight, margin), bias=large.bias + small.bias)


class _Rewriter:
    """Walks a graph in its order and builds the fused one, with its parameters."""

    def __init__(self, graph: mx.sym.Symbol, parameters: dict[str, np.ndarray]):
        content = json.loads(graph.tojson())
        self.nodes = content["nodes"]
        self.head = content["heads"][0][0]
        self.old = parameters
        self.new: dict[str, np.ndarray] = {}
        self.uses = Counter(source for node in self.nodes for source, *_ in node["inputs"])
        # What each node has become: a symbol of the new graph, a pending convolution, or a list of them side by side.
        self.values: dict[int, mx.sym.Symbol | Convolution | list[Convolution]] = {}

    def run(self) -> mx.sym.Symbol:
        for number, node in enumerate(self.nodes):
            value = self._rewrite(node)
            # Pending only where nobody else needs the value as it is.
            self.values[number] = value if self.uses[number] == 1 else self._symbol(value)
        return self._symbol(self.values[self.head])

    def _rewrite(self, node: dict):
        operator, options = node["op"], node.get("attrs", {})
        inputs = [self.values[source] for source, *_ in node["inputs"]]
        if operator == "null":
            return mx.sym.var(node["name"])
        if operator == "Convolution":
            weight, *bias = (self._parameter(source) for source, *_ in node["inputs"][1:])
            bias = bias[0] if bias else np.zeros(len(weight))
            return Convolution(self._symbol(inputs[0]), node["name"], options, weight, bias)
        if operator == "BatchNorm" and not isinstance(inputs[0], mx.sym.Symbol):
            return self._normalised(inputs[0], node)
        if operator in ADDITIONS and all(isinstance(i, Convolution) for i in inputs):
            first, second = inputs
            if first.sums_with(second):
                return first.plus(second)
        if operator == "Concat" and options.get("dim") == "1" and all(isinstance(i, Convolution) for i in inputs):
            return inputs
        if operator == "Activation" and isinstance(inputs[0], list):
            parts = (mx.sym.Activation(self._symbol(conv), **options) for conv in inputs[0])
            return mx.sym.concat(*parts, dim=1, name=node["name"])
        for source, *_ in node["inputs"]:
            name = self.nodes[source]["name"]
            if name in self.old:
                self.new[name] = self.old[name]
        return apply(operator, [self._symbol(value) for value in inputs], node["name"], options)

    def _normalised(self, value: Convolution | list[Convolution], node: dict):
        """A pending convolution, or several side by side, with the batch normalisation folded in."""
        gamma, beta, mean, variance = (self._parameter(source) for source, *_ in node["inputs"][1:])
        options = node["attrs"]
        if options.get("fix_gamma", "True") == "True":
            gamma = np.ones_like(gamma)
        scale = gamma / np.sqrt(variance + float(options.get("eps", "1e-3")))
        shift = beta - mean * scale
        if isinstance(value, Convolution):
            return value.scaled(scale, shift)
        ends = np.cumsum([len(conv.weight) for conv in value])[:-1]
        return [conv.scaled(*part) for conv, *part in zip(value, np.split(scale, ends), np.split(shift, ends))]

    def _parameter(self, number: int) -> np.ndarray:
        return self.old[self.nodes[number]["name"]].astype(np.float64)

    def _symbol(self, value) -> mx.sym.Symbol:
        """The symbol of a value; a pending convolution becomes part of the new graph."""
        if isinstance(value, mx.sym.Symbol):
            return value
        if isinstance(value, list):
            return mx.sym.concat(*(self._symbol(conv) for conv in value), dim=1)
        options = {**value.options, "kernel": str(value.weight.shape[2:]), "no_bias": "False"}
        options["pad"] = str(tuple(size // 2 for size in value.weight.shape[2:])) if value.centred else options["pad"]
        names = f"{value.name}_weight", f"{value.name}_bias"
        self.new.update(zip(names, (value.weight, value.bias)))
        return mx.sym.Convolution(value.data, *(mx.sym.var(name) for name in names), name=value.name, **options)


def fuse(net: HybridBlock, portable: bool = False) -> HybridBlock:
    """An inference network that computes the same function as `net`, which has one input and initialised parameters.

    The result stands on the (first) device of `net`, in float32, and is not for training: what was folded is gone. On a
    CPU it also has operations of oneDNN, unless it is to be `portable`.
    """
    parameters = {name: parameter.list_data()[0] for name, parameter in net.collect_params().items()}
    context = next(iter(parameters.values())).context
    rewriter = _Rewriter(net(mx.sym.var("data")), {name: array.asnumpy() for name, array in parameters.items()})
    graph = rewriter.run()
    plain = mx.gluon.SymbolBlock(graph, mx.sym.var("data", dtype="float32"))
    for name, parameter in plain.collect_params().items():
        value = mx.nd.array(rewriter.new[name].astype(np.float32), ctx=context)
        parameter.shape = value.shape
        parameter.initialize(mx.init.Zero(), ctx=context)
        parameter.set_data(value)
        parameter.grad_req = "null"
    return plain if portable or context.device_type != "cpu" else Fused(for_onednn(graph), plain)


class Fused(mx.gluon.SymbolBlock):
    """A graph with operations of oneDNN, used once it has been seen to answer as the `plain` network of the same
    parameters does: in this process, on this processor, for images of this shape. Where it does not, the plain one
    answers, and a warning says so.
    """

    def __init__(self, graph: mx.sym.Symbol, plain: mx.gluon.SymbolBlock):
        super().__init__(graph, mx.sym.var("data", dtype="float32"), params=plain.collect_params())
        self.plain = plain.__call__  # not the network itself, which would become a part of this one
        self.works: dict[tuple[int, ...], bool] = {}

    def forward(self, x, *others):
        if isinstance(x, mx.nd.NDArray) and not self._works(x):
            return self.plain(x)
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
        expected = self.plain(x).asnumpy()
        apart, size = abs(found - expected).max(), abs(expected).max()
        if apart <= TOLERANCE * size or not np.isfinite(size):
            return ""
        return f"they give other logits (up to {apart:.2g} off, of {size:.2g})"


def for_onednn(graph: mx.sym.Symbol) -> mx.sym.Symbol:
    """The graph with convolution, addition and ReLU as one operation of oneDNN's, where that is safe."""
    graph = joined(graph)
    nodes = json.loads(graph.tojson())["nodes"]
    # MXNet 1.9.1 would also draw a batch normalisation or ReLU that follows the addition into it, although others need
    # the sum as it is: logits were a fifth of their range off.
    tempting = any(
        node["op"] in ("BatchNorm", "Activation") and nodes[node["inputs"][0][0]]["op"] in ADDITIONS for node in nodes
    )
    if tempting or not mx.runtime.Features().is_enabled("MKLDNN"):
        return graph
    return graph.get_backend_symbol("MKLDNN")


def joined(graph: mx.sym.Symbol) -> mx.sym.Symbol:
    """The graph with every batch normalisation that a ReLU alone follows as one operation with it: float32, CPU."""
    content = json.loads(graph.tojson())
    nodes = content["nodes"]
    uses = Counter(source for node in nodes for source, *_ in node["inputs"])
    values = []
    for node in nodes:
        operator, options, sources = node["op"], node.get("attrs", {}), node["inputs"]
        if operator == "null":
            values.append(mx.sym.var(node["name"]))
            continue
        before = nodes[sources[0][0]]
        if options.get("act_type") == "relu" and before["op"] == "BatchNorm" and uses[sources[0][0]] == 1:
            operator, options, sources = "_contrib_BatchNormWithReLU", before["attrs"], before["inputs"]
        values.append(apply(operator, [values[source] for source, *_ in sources], node["name"], options))
    return mx.sym.Group([values[head] for head, *_ in content["heads"]])


def apply(operator: str, inputs: Sequence[mx.sym.Symbol], name: str, options: Mapping[str, str]) -> mx.sym.Symbol:
    """An operator of a graph's JSON, applied again."""
    for place in (mx.sym, mx.sym._internal):
        if hasattr(place, operator):
            return getattr(place, operator)(*inputs, name=name, **options)
    return getattr(mx.sym.contrib, operator.removeprefix("_contrib_"))(*inputs, name=name, **options)
