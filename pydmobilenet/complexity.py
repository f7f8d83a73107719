"""Parameters and multiply-adds, counted from a network's graph: exact for whatever the network is."""

from __future__ import annotations

import json
from typing import NamedTuple

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from .catalog import Complexity


class Layer(NamedTuple):
    """One operation of a network: what it is called in the checkpoint, where it learns; the shape of its output for one
    image; its parameters, and its multiply-adds.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def count(net: HybridBlock, shape: tuple[int, int, int] = (3, 32, 32)) -> Complexity:
    """The complexity of a network for one image of `shape` (channels, height, width). Needs no parameter values."""
    table = layers(net, shape)
    return Complexity(sum(layer.parameters for layer in table), sum(layer.multiply_adds for layer in table))


def layers(net: HybridBlock, shape: tuple[int, int, int] = (3, 32, 32)) -> list[Layer]:
    """The operations of a network, in the order of computing, for one image of `shape` (channels, height, width)."""
    graph = net(mx.sym.var("data"))
    internals = graph.get_internals()
    _, outputs, _ = internals.infer_shape(data=(1, *shape))
    sizes = dict(zip(internals.list_outputs(), outputs))
    arguments, _, _ = graph.infer_shape(data=(1, *shape))
    shapes = dict(zip(graph.list_arguments(), arguments))  # of what counts as a parameter: no moving statistics
    names = {parameter.name: name for name, parameter in net._collect_params_with_prefix().items()}
    nodes = json.loads(graph.tojson())["nodes"]
    table = []
    for node in (node for node in nodes if node["op"] != "null"):
        learnt = [nodes[source]["name"] for source, *_ in node["inputs"] if nodes[source]["name"] in names]
        output = sizes[f"{node['name']}_output"]
        multiply_adds = 0
        if node["op"] in ("Convolution", "FullyConnected"):
            # Each output value is a sum over one filter: its input channels, of the group if there are groups, times
            # its area; of a dense layer, its inputs.
            multiply_adds = int(np.prod(output)) * int(np.prod(shapes[learnt[0]][1:]))
        table.append(
            Layer(
                name=names[learnt[0]].rpartition(".")[0] if learnt else "",
                operator=node["op"],
                shape=tuple(output[1:]),
                parameters=sum(int(np.prod(shapes[name])) for name in learnt if name in shapes),
                multiply_adds=multiply_adds,
            )
        )
    return table
