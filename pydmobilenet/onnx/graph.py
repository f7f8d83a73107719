"""Networks as ONNX graphs (operators: https://onnx.ai/onnx/operators)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import __version__
from ..data import Task, about
from ..exporting import check_finite
from ..folding import lower
from ..network import EPSILON, IMAGES, BatchNorm, Convolution, Layer, Network
from ..text import encodable

OPSET, IR_VERSION = 17, 8  # of 2022, supported by ONNX Runtime 1.13 and later
LOGITS = "logits"
OPERATORS = {
    "Convolution": "Conv",
    "BatchNorm": "BatchNormalization",
    "ReLU": "Relu",
    "Add": "Add",
    "Maximum": "Max",
    "Concat": "Concat",
    "GlobalAveragePool": "GlobalAveragePool",
    "Dense": "Gemm",
}


def convert(
    network: Network,
    arrays: Mapping[str, np.ndarray],
    task: Task | None = None,
    uint8_input: bool = False,
    metadata: Mapping[str, str] | None = None,
    image_size: int = 32,
) -> onnx.ModelProto:
    """Convert a network with its `arrays` (constants, float32) to ``logits`` (N, outputs) for any batch size N.

    The input ``images`` is normalised, (N, 3, H, W) in float32; with `uint8_input`, pixels (N, H, W, 3) in uint8, which
    the graph normalises for `task`. H and W are the task's, else `image_size`. Raises BadFileError for arrays that are
    not finite.
    """
    check_finite(arrays)
    graph = _Graph(arrays)
    if uint8_input:
        if task is None:
            raise ValueError("uint8_input needs a task for its mean and std")
        graph.add_normalisation(task)
    for layer in lower(network).layers:
        graph.add_layer(layer)
    graph.add("Identity", [network.head.name], LOGITS)
    size = task.image_size if task else image_size
    shape: list[str | int | None] = ["N", size, size, 3] if uint8_input else ["N", 3, size, size]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "pydmobilenet",
            [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8 if uint8_input else TensorProto.FLOAT, shape)],
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


class _Graph:
    """Nodes and constants of a graph. A layer's output has the layer's name."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.images = IMAGES

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def add_normalisation(self, task: Task) -> None:
        """Convert uint8 (N, H, W, 3) as `data.normalise` does, to (N, 3, H, W)."""
        mean, std = np.array(task.mean), np.array(task.std)
        scale = self.constant("pixel_scale", 1 / (255 * std))
        shift = self.constant("pixel_shift", mean / std)
        pixels = self.add("Cast", [IMAGES], "pixels", to=TensorProto.FLOAT)
        scaled = self.add("Mul", [pixels, scale], "pixels_scaled")
        normal = self.add("Sub", [scaled, shift], "pixels_normalised")
        self.images = self.add("Transpose", [normal], "pixels_transposed", perm=[0, 3, 1, 2])

    def add_layer(self, layer: Layer) -> None:
        inputs = [self.images if name == IMAGES else name for name in layer.inputs]
        for name in layer.parameters:  # in ONNX's order, too
            array = self.arrays[f"{layer.name}.{name}"]
            if isinstance(layer, BatchNorm) and not layer.scale and name == "gamma":
                array = np.ones_like(array)
            inputs.append(self.constant(f"{layer.name}.{name}", array))
        operator, attributes = OPERATORS[layer.operator], _attributes(layer)
        if layer.operator == "GlobalAveragePool":
            inputs, operator = [self.add(operator, inputs, f"{layer.name}_map")], "Flatten"
        while layer.operator == "Add" and len(inputs) > 2:  # OpenCV's dnn answers wrongly to a Sum of three
            first = self.add("Add", inputs[:2], f"{layer.name}_{len(inputs)}")
            inputs = [first, *inputs[2:]]
        self.add(operator, inputs, layer.name, **attributes)


def _attributes(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, Convolution):
        return {
            "kernel_shape": [layer.kernel] * 2,
            "strides": [layer.stride] * 2,
            "pads": [layer.kernel // 2] * 4,
            "group": layer.groups,
        }
    others: dict[str, dict[str, Any]] = {
        "BatchNorm": {"epsilon": EPSILON},
        "Concat": {"axis": 1},
        "Dense": {"transB": 1},
    }
    return others.get(layer.operator, {})
