"""Parameters and multiply-adds, counted from a network's graph: exact for whatever the network is."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from .catalog import Complexity


def count(net: HybridBlock, shape: tuple[int, int, int] = (3, 32, 32)) -> Complexity:
    """The complexity of a network for one image of `shape` (channels, height, width). Needs no parameter values."""
    graph = net(mx.sym.var("data"))
    arguments, _, _ = graph.infer_shape(data=(1, *shape))
    shapes = dict(zip(graph.list_arguments(), arguments))
    parameters = sum(int(np.prod(size)) for name, size in shapes.items() if name != "data")

    internals = graph.get_internals()
    _, outputs, _ = internals.infer_shape(data=(1, *shape))
    sizes = dict(zip(internals.list_outputs(), outputs))
    nodes = json.loads(graph.tojson())["nodes"]
    multiply_adds = 0
    for node in nodes:
        if node["op"] in ("Convolution", "FullyConnected"):
            weight = shapes[nodes[node["inputs"][1][0]]["name"]]
            # Each output value is a sum over one filter: its input channels, of the group if there are groups, times
            # its area; of a dense layer, its inputs.
            multiply_adds += int(np.prod(sizes[f"{node['name']}_output"])) * int(np.prod(weight[1:]))
    return Complexity(parameters, multiply_adds)
