"""A network as an ONNX graph.

MXNet's own exporter stops at ``import onnx.mapping``, which current releases of onnx no longer have, and lists
parameters as inputs. These networks need nine operators, so they are written directly. The standard is at
https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping

import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock

from .. import __version__
from ..data import Task
from ..errors import BadFileError, UnusableError
from ..text import encodable

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise UnusableError(f"ONNX cannot be imported ({error}): pip install '.[onnx]' in the checkout") from error

OPSET, IR_VERSION = 17, 8  # of 2022: ONNX Runtime knows them from 1.13 on
INPUT, OUTPUT = "images", "logits"


def convert(
    net: HybridBlock, task: Task, uint8_input: bool = False, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """The graph of a network with initialised parameters, which are constants in it; the batch size is free.

    Its input is ``images``, normalised as `task` says, (N, 3, 32, 32) in float32; with `uint8_input` they are the
    pixels as an image file has them, (N, 32, 32, 3) in uint8, and the graph normalises them itself. Its output is
    ``logits`` (N, outputs). Raises BadFileError for parameters that are not initialised or not finite, and
    UnusableError for an operator that has no counterpart here.
    """
    builder = _Builder(parameters(net))
    data = builder.pixels(task) if uint8_input else INPUT
    logits = builder.add(net(mx.sym.var("data")), data)
    builder.node("Identity", [logits], name=OUTPUT)
    kind, shape = (TensorProto.UINT8, ["N", 32, 32, 3]) if uint8_input else (TensorProto.FLOAT, ["N", 3, 32, 32])
    graph = helper.make_graph(
        builder.nodes,
        "pydmobilenet",
        [helper.make_tensor_value_info(INPUT, kind, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", builder.outputs])],
        builder.constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pydmobilenet",
        producer_version=__version__,
    )
    properties = {**about(task), **(metadata or {})}
    helper.set_model_props(model, {name: encodable(value) for name, value in properties.items()})
    return model


def about(task: Task) -> dict[str, str]:
    """What a file says about its classes and images: numbers and lists as JSON, in which every name is exact."""
    return {
        "dataset": task.name,
        "classes": json.dumps(task.classes),
        "mean": json.dumps(task.mean),
        "std": json.dumps(task.std),
    }


def parameters(net: HybridBlock) -> dict[str, np.ndarray]:
    """The parameters by the names that the network's graph has for them; raises BadFileError as `convert` does."""
    arrays = {}
    for name, parameter in net.collect_params().items():
        try:
            array = parameter.list_data()[0].asnumpy()
        except (RuntimeError, mx.gluon.parameter.DeferredInitializationError):
            raise BadFileError(f"the network's parameter {name} is not initialised: load weights first") from None
        if not np.isfinite(array).all():
            raise BadFileError(f"the network's parameter {name} has values that are not finite")
        arrays[name] = array.astype(np.float32)
    return arrays


class _Builder:
    """Nodes and constants of a graph under construction."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs = 0  # of the last dense layer

    def node(self, operator: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def pixels(self, task: Task) -> str:
        """uint8 (N, H, W, 3) to what `data.normalise` makes of them, (N, 3, H, W)."""
        mean, std = np.array(task.mean), np.array(task.std)
        scale = self.constant("pixel_scale", (1 / (255 * std)).astype(np.float32))
        shift = self.constant("pixel_shift", (mean / std).astype(np.float32))
        numbers = self.node("Cast", [INPUT], "pixels", to=TensorProto.FLOAT)
        scaled = self.node("Mul", [numbers, scale], "pixels_scaled")
        normal = self.node("Sub", [scaled, shift], "pixels_normalised")
        return self.node("Transpose", [normal], "data", perm=[0, 3, 1, 2])

    def add(self, graph: mx.sym.Symbol, data: str) -> str:
        """Add MXNet's graph of one input, which is called `data` here; the name of its output."""
        content = json.loads(graph.tojson())
        nodes, names = content["nodes"], []
        for node in nodes:
            operator, options = node["op"], node.get("attrs", {})
            inputs = [names[source] for source, *_ in node["inputs"]]
            if operator == "null":
                names.append(node["name"] if node["name"] in self.arrays else data)
                continue
            if operator not in OPERATORS:
                raise UnusableError(f"{operator} has no counterpart here (allowed: {', '.join(OPERATORS)})")
            names.append(OPERATORS[operator](self, node["name"], inputs, options))
        return names[content["heads"][0][0]]

    def convolution(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        pad = _pair(options, "pad", 0)
        return self.node(
            "Conv",
            [inputs[0], *(self.constant(key, self.arrays[key]) for key in inputs[1:])],
            name,
            kernel_shape=_pair(options, "kernel", 1),
            strides=_pair(options, "stride", 1),
            dilations=_pair(options, "dilate", 1),
            pads=[*pad, *pad],
            group=int(options.get("num_group", 1)),
        )

    def batch_norm(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        data, gamma, *others = inputs
        scale = self.arrays[gamma]
        if options.get("fix_gamma", "True") == "True":
            scale = np.ones_like(scale)
        constants = [self.constant(gamma, scale), *(self.constant(key, self.arrays[key]) for key in others)]
        epsilon = float(options.get("eps", "1e-3"))
        return self.node("BatchNormalization", [data, *constants], name, epsilon=epsilon)

    def activation(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        if options["act_type"] != "relu":
            raise UnusableError(f"the activation {options['act_type']} has no counterpart here (allowed: relu)")
        return self.node("Relu", inputs, name)

    def addition(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        return self.node("Add", inputs, name)

    def concat(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        return self.node("Concat", inputs, name, axis=int(options.get("dim", 1)))

    def pooling(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        if (options.get("pool_type"), options.get("global_pool")) != ("avg", "True"):
            raise UnusableError("a pooling other than the average over the map has no counterpart here")
        return self.node("GlobalAveragePool", inputs, name)

    def flatten(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        return self.node("Flatten", inputs, name)

    def dense(self, name: str, inputs: list[str], options: dict[str, str]) -> str:
        data, *constants = inputs
        flat = self.node("Flatten", [data], f"{name}_flat")
        self.outputs = int(options["num_hidden"])
        constants = [self.constant(key, self.arrays[key]) for key in constants]
        return self.node("Gemm", [flat, *constants], name, transB=1)


def _pair(options: dict[str, str], key: str, default: int) -> list[int]:
    return list(ast.literal_eval(options.get(key, "()")) or (default, default))


Writer = Callable[[_Builder, str, "list[str]", "dict[str, str]"], str]
OPERATORS: dict[str, Writer] = {
    "Convolution": _Builder.convolution,
    "BatchNorm": _Builder.batch_norm,
    "Activation": _Builder.activation,
    "elemwise_add": _Builder.addition,
    "broadcast_add": _Builder.addition,
    "Concat": _Builder.concat,
    "Pooling": _Builder.pooling,
    "Flatten": _Builder.flatten,
    "FullyConnected": _Builder.dense,
}
