"""A described network as an ONNX graph. The standard is at https://onnx.ai/onnx/operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import __version__
from ..data import Task, about
from ..errors import BadFileError
from ..folding import lower
from ..network import EPSILON, IMAGES, BatchNorm, Convolution, Layer, Network
from ..text import encodable

OPSET, IR_VERSION = 17, 8  # of 2022: ONNX Runtime knows them from 1.13 on
LOGITS = "logits"


def convert(
    network: Network,
    arrays: Mapping[str, np.ndarray],
    task: Task | None = None,
    uint8_input: bool = False,
    metadata: Mapping[str, str] | None = None,
    image_size: int = 32,
) -> onnx.ModelProto:
    """The graph of a network with its `arrays`, which are constants in it, in float32; the batch size is free.

    Its input is ``images``, normalised as `task` says, (N, 3, H, W) in float32, of the task's size or, without one, of
    `image_size`; with `uint8_input` they are the pixels as an image file has them, (N, H, W, 3) in uint8, and the graph
    normalises them itself. Its output is ``logits`` (N, outputs). Raises BadFileError for arrays that are not finite.
    """
    check_finite(arrays)
    graph = _Graph(arrays)
    if uint8_input:
        if task is None:
            raise ValueError("uint8_input needs a task, which tells how the pixels are normalised")
        graph.names[IMAGES] = graph.pixels(task)
    for layer in lower(network).layers:
        graph.add(layer)
    graph.node("Identity", [network.head.name], LOGITS)
    kind = TensorProto.UINT8 if uint8_input else TensorProto.FLOAT
    size = task.image_size if task else image_size
    shape: list[str | int | None] = ["N", size, size, 3] if uint8_input else ["N", 3, size, size]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "pydmobilenet",
            [helper.make_tensor_value_info(IMAGES, kind, shape)],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", network.outputs])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pydmobilenet",
        producer_version=__version__,
    )
    properties = {**(about(task) if task else {}), **(metadata or {})}
    helper.set_model_props(model, {name: encodable(value) for name, value in properties.items()})
    return model


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises BadFileError for arrays that are not finite."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BadFileError(f"the network's parameter {name} has values that are not finite")


class _Graph:
    """Nodes and constants under construction. `names` has the output of each layer where it is not the layer's name."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.names: dict[str, str] = {}

    def node(self, operator: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def parameters(self, layer: Layer) -> list[str]:
        """A layer's parameters as constants, in the order in which ONNX wants them, which is the layer's own."""
        found = []
        for name in layer.parameters:
            full_name, array = f"{layer.name}.{name}", self.arrays[f"{layer.name}.{name}"]
            if isinstance(layer, BatchNorm) and not layer.scale and name == "gamma":
                array = np.ones_like(array)
            found.append(self.constant(full_name, array))
        return found

    def pixels(self, task: Task) -> str:
        """uint8 (N, H, W, 3) to what `data.normalise` makes of them, (N, 3, H, W)."""
        mean, std = np.array(task.mean), np.array(task.std)
        scale = self.constant("pixel_scale", 1 / (255 * std))
        shift = self.constant("pixel_shift", mean / std)
        numbers = self.node("Cast", [IMAGES], "pixels", to=TensorProto.FLOAT)
        scaled = self.node("Mul", [numbers, scale], "pixels_scaled")
        normal = self.node("Sub", [scaled, shift], "pixels_normalised")
        return self.node("Transpose", [normal], "pixels_transposed", perm=[0, 3, 1, 2])

    def add(self, layer: Layer) -> None:
        inputs = [self.names.get(name, name) for name in layer.inputs]
        OPERATORS[layer.operator](self, layer, inputs)

    def convolution(self, layer: Convolution, inputs: list[str]) -> None:
        self.node(
            "Conv",
            [*inputs, *self.parameters(layer)],
            layer.name,
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[layer.kernel // 2] * 4,
            group=layer.groups,
        )

    def batch_norm(self, layer: BatchNorm, inputs: list[str]) -> None:
        self.node("BatchNormalization", [*inputs, *self.parameters(layer)], layer.name, epsilon=EPSILON)

    def relu(self, layer: Layer, inputs: list[str]) -> None:
        self.node("Relu", inputs, layer.name)

    def addition(self, layer: Layer, inputs: list[str]) -> None:
        self.node("Sum" if len(inputs) > 2 else "Add", inputs, layer.name)

    def maximum(self, layer: Layer, inputs: list[str]) -> None:
        self.node("Max", inputs, layer.name)

    def concat(self, layer: Layer, inputs: list[str]) -> None:
        self.node("Concat", inputs, layer.name, axis=1)

    def pool(self, layer: Layer, inputs: list[str]) -> None:
        self.node("Flatten", [self.node("GlobalAveragePool", inputs, f"{layer.name}_map")], layer.name)

    def dense(self, layer: Layer, inputs: list[str]) -> None:
        self.node("Gemm", [*inputs, *self.parameters(layer)], layer.name, transB=1)


OPERATORS: dict[str, Callable[[_Graph, Any, list[str]], None]] = {
    "Convolution": _Graph.convolution,
    "BatchNorm": _Graph.batch_norm,
    "ReLU": _Graph.relu,
    "Add": _Graph.addition,
    "Maximum": _Graph.maximum,
    "Concat": _Graph.concat,
    "GlobalAveragePool": _Graph.pool,
    "Dense": _Graph.dense,
}
