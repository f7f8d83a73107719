"""Networks as TensorFlow Lite graphs: pixels to logits (operators: https://ai.google.dev/edge/litert).

A graph takes pixels ``images`` (N, H, W, 3) in uint8, in float32 as in int8. Maps are (N, H, W, channels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..data import Task
from ..data.dataset import scale_and_shift
from ..folding import Arrays, fold, fused_relus
from ..network import EPSILON, IMAGES, Add, BatchNorm, Convolution, Dense, Layer, Network

LOGITS = "logits"
PIXELS = "pixels"
SCHEMA_VERSION, IDENTIFIER = 3, b"TFL3"
MAX_WEIGHTS = 25  # of a channel, in XNNPACK's fast depthwise kernels
ALIGNMENT = 16  # bytes, of constants, as the schema asks for
Scale = tuple[float, int]
"""The step of an int8 map, and the number that stands for 0."""
PIXEL_SCALE: Scale = (1.0, -128)

# Operators by name: the version of their definition in float32 and in int8, and the class of their options.
OPERATORS: dict[str, tuple[int, int, str]] = {
    "ADD": (1, 2, "AddOptions"),
    "CONCATENATION": (1, 2, "ConcatenationOptions"),
    "CONV_2D": (1, 3, "Conv2DOptions"),
    "DEPTHWISE_CONV_2D": (1, 3, "DepthwiseConv2DOptions"),
    "DEQUANTIZE": (1, 2, "DequantizeOptions"),
    "FULLY_CONNECTED": (1, 4, "FullyConnectedOptions"),
    "MAXIMUM": (1, 2, "MaximumMinimumOptions"),
    "MEAN": (1, 2, "ReducerOptions"),
    "PAD": (1, 2, "PadOptions"),
    "QUANTIZE": (1, 1, "QuantizeOptions"),
    "RELU": (1, 2, ""),
}


@dataclass(frozen=True)
class Columns(Convolution):
    """A depthwise convolution by some columns of a kernel, with equal distances. Its weight has these alone."""

    columns: tuple[int, ...] = ()


def prepare(network: Network, arrays: Arrays, task: Task, whole: bool = False) -> tuple[Network, dict[str, np.ndarray]]:
    """Fold a network that takes pixels of 0 to 255, into layers that LiteRT is fast on.

    What is left of batch normalisation becomes 1x1 depthwise. The first of these normalises the pixels, and folds with
    the network's own. Unless kept `whole`, large depthwise kernels become sums of `column_groups`. An `Add` has two
    inputs.
    """
    scale, shift = (values.astype(np.float64) for values in scale_and_shift(task))
    pixels = Convolution(PIXELS, (IMAGES,), 3, 3, 1, groups=3, bias=True)
    layers: list[Layer] = [pixels]
    for layer in network.layers:
        layers.append(replace(layer, inputs=tuple(PIXELS if name == IMAGES else name for name in layer.inputs)))
    own = {f"{PIXELS}.weight": scale[:, None], f"{PIXELS}.bias": -shift.ravel()}
    network, folded = fold(Network(tuple(layers)), {**arrays, **own})
    layers = []
    for layer in network.layers:
        if isinstance(layer, BatchNorm):
            layer = _depthwise(layer, folded)
        groups = column_groups(layer.kernel) if isinstance(layer, Convolution) and not whole else []
        if isinstance(layer, Convolution) and is_depthwise(layer) and len(groups) > 1:
            layers += _by_columns(layer, groups, folded)
            layer = Add(layer.name, tuple(part.name for part in layers[-len(groups) :]))
        while isinstance(layer, Add) and len(layer.inputs) > 2:
            first = Add(f"{layer.name}_{len(layer.inputs)}", layer.inputs[:2])
            layers.append(first)
            layer = replace(layer, inputs=(first.name, *layer.inputs[2:]))
        layers.append(layer)
    return Network(tuple(layers)), folded


def is_depthwise(layer: Convolution) -> bool:
    """Return whether each output channel sees one input channel, and each input channel makes one."""
    return layer.groups == layer.in_channels == layer.out_channels


def column_groups(kernel: int) -> list[list[int]]:
    """Return the columns of a depthwise kernel in groups of at most `MAX_WEIGHTS`, each with equal distances.

    For 7x7 they are the three columns in the middle, and two pairs.
    """
    most = MAX_WEIGHTS // kernel
    centre = min(kernel, max(1, most - 1 + most % 2))
    margin = (kernel - centre) // 2
    pairs = [[column, kernel - 1 - column] for column in range(margin)]
    return [list(range(margin, kernel - margin)), *reversed(pairs)]


def _by_columns(layer: Convolution, groups: list[list[int]], arrays: dict[str, np.ndarray]) -> list[Columns]:
    """Return the summands of a depthwise convolution, with their arrays in place of its own. The first has the bias."""
    weight, bias = arrays.pop(f"{layer.name}.weight"), arrays.pop(f"{layer.name}.bias", 0)
    parts = []
    for number, columns in enumerate(groups):
        values = {**vars(layer), "name": f"{layer.name}.columns{number}", "columns": tuple(columns)}
        parts.append(Columns(**values))
        arrays[f"{parts[-1].name}.weight"] = weight[..., columns]
        arrays[f"{parts[-1].name}.bias"] = np.zeros(layer.out_channels) + (bias if number == 0 else 0)
    return parts


def _depthwise(norm: BatchNorm, arrays: dict[str, np.ndarray]) -> Convolution:
    """Return a batch normalisation as a 1x1 depthwise convolution, with its arrays in place of the others."""
    gamma, beta, mean, variance = (arrays.pop(f"{norm.name}.{name}") for name in norm.parameters)
    scale = (gamma if norm.scale else 1) / np.sqrt(variance + EPSILON)
    arrays[f"{norm.name}.weight"] = scale[:, None, None, None]
    arrays[f"{norm.name}.bias"] = beta - mean * scale
    return Convolution(norm.name, norm.inputs, norm.channels, norm.channels, 1, groups=norm.channels, bias=True)


def convert(
    network: Network,
    arrays: Arrays,
    image: tuple[int, int, int],
    scales: Mapping[str, Scale] | None = None,
    metadata: Mapping[str, bytes] | None = None,
) -> bytes:
    """Convert a network of `prepare` for an `image` (3, H, W); in int8 with the `scales` of each layer's output.

    Weights are int8 with a scale for each output channel. The batch size is 1; an interpreter can change it.
    """
    graph = _Graph(arrays, network.shapes(image), scales)
    fused = fused_relus(network)
    for layer in network.layers:
        graph.add_layer(layer, fused.get(layer.name))
    graph.finish(network.head.name)
    return graph.dump(metadata or {})


class _Buffer(schema.BufferT):
    """A constant at a multiple of `ALIGNMENT`: the schema's own class aligns to 1."""

    def Pack(self, builder: flatbuffers.Builder) -> Any:
        if self.data is not None:
            builder.Prep(ALIGNMENT, len(self.data))
        return super().Pack(builder)


class _Graph:
    """Tensors and operators. A layer's output has the layer's name."""

    def __init__(self, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]], scales: Mapping[str, Scale] | None):
        self.arrays, self.shapes, self.scales = arrays, shapes, scales
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [_Buffer()]  # the first one is empty, for what is no constant
        self.operators: list[Any] = []
        self.codes: list[str] = []
        self.numbers: dict[str, int] = {}  # of maps
        shape = _channels_last(shapes[IMAGES])
        self.images = self.tensor(IMAGES, shape, "UINT8", quantisation=_per_tensor(1.0, 0))
        code = "DEQUANTIZE" if scales is None else "QUANTIZE"
        self.numbers[IMAGES] = self.operator(code, [self.images], self.map("images_as_map", shape, PIXEL_SCALE))

    def tensor(self, name: str, shape: Sequence[int], kind: str, data: Any = None, quantisation: Any = None) -> int:
        if data is not None:
            self.buffers.append(_Buffer(data=np.ascontiguousarray(data).reshape(-1).view(np.uint8)))
        self.tensors.append(
            schema.TensorT(
                shape=list(shape),
                type=getattr(schema.TensorType, kind),
                buffer=0 if data is None else len(self.buffers) - 1,
                name=name,
                quantization=quantisation,
                hasRank=True,
            )
        )
        return len(self.tensors) - 1

    def map(self, name: str, shape: Sequence[int], scale: Scale | None = None) -> int:
        """Add a layer's output, in int8 if there are scales."""
        quantisation = None
        if self.scales is not None:
            quantisation = _per_tensor(*(scale or self.scales[name]))
        self.numbers[name] = self.tensor(name, shape, "FLOAT32" if self.scales is None else "INT8", None, quantisation)
        return self.numbers[name]

    def operator(self, code: str, inputs: list[int], output: int, **options: Any) -> int:
        if code not in self.codes:
            self.codes.append(code)
        kind = OPERATORS[code][2]
        added = schema.OperatorT(opcodeIndex=self.codes.index(code), inputs=inputs, outputs=[output])
        if kind:
            added.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            added.builtinOptions = getattr(schema, f"{kind}T")(**options)
        self.operators.append(added)
        return output

    def add_layer(self, layer: Layer, relu: Layer | None = None) -> None:
        """Add a layer with the ReLU behind it, if it can do this itself."""
        if layer.name in self.numbers:  # a ReLU that the layer before it does
            return
        inputs = [self.numbers[name] for name in layer.inputs]
        name = relu.name if relu else layer.name
        shape = _channels_last(self.shapes[layer.name])
        kinds = schema.ActivationFunctionType
        activation = {"fusedActivationFunction": kinds.RELU if relu else kinds.NONE}
        if isinstance(layer, Convolution):
            self._convolve(layer, inputs, name, shape, activation)
        elif isinstance(layer, Dense):
            self.operator("FULLY_CONNECTED", [*inputs, *self._weights(layer, 0)], self.map(name, shape))
        elif isinstance(layer, Add):
            self.operator("ADD", inputs, self.map(name, shape), **activation)
        elif layer.operator == "Concat":
            self.operator("CONCATENATION", inputs, self.map(name, shape), axis=3)
        elif layer.operator == "GlobalAveragePool":
            axes = self.tensor(f"{layer.name}.axes", [2], "INT32", np.array([1, 2], np.int32))
            self.operator("MEAN", [*inputs, axes], self.map(name, shape))
        else:
            self.operator({"Maximum": "MAXIMUM", "ReLU": "RELU"}[layer.operator], inputs, self.map(name, shape))

    def _convolve(
        self, layer: Convolution, inputs: list[int], name: str, shape: list[int], activation: dict[str, int]
    ) -> None:
        """Add a convolution. With a stride, TensorFlow's SAME pads another side than the checkpoints: pad before it."""
        columns = layer.columns if isinstance(layer, Columns) else range(layer.kernel)
        margins = layer.kernel // 2, (columns[-1] - columns[0]) // 2
        if layer.stride > 1 and any(margins):
            inputs = [self._pad(layer, inputs, margins)]
        depthwise = is_depthwise(layer)
        self.operator(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [*inputs, *self._weights(layer, 3 if depthwise else 0)],
            self.map(name, shape),
            padding=schema.Padding.SAME if layer.stride == 1 else schema.Padding.VALID,
            strideW=layer.stride,
            strideH=layer.stride,
            dilationWFactor=columns[1] - columns[0] if len(columns) > 1 else 1,
            dilationHFactor=1,
            **({"depthMultiplier": 1} if depthwise else {}),
            **activation,
        )

    def _pad(self, layer: Convolution, inputs: list[int], margins: tuple[int, int]) -> int:
        padding = np.array([[0, 0], *([margin] * 2 for margin in margins), [0, 0]], np.int32)
        paddings = self.tensor(f"{layer.name}.paddings", padding.shape, "INT32", padding)
        _, height, width = self.shapes[layer.inputs[0]]
        shape = [1, height + 2 * margins[0], width + 2 * margins[1], layer.in_channels]
        scale = None if self.scales is None else self._scale(layer.inputs[0])
        return self.operator("PAD", [*inputs, paddings], self.map(f"{layer.name}.padded", shape, scale))

    def _scale(self, name: str) -> Scale:
        assert self.scales is not None
        return PIXEL_SCALE if name == IMAGES else self.scales[name]

    def _weights(self, layer: Layer, axis: int) -> list[int]:
        """Add the weights of a layer, with the output channels on an `axis`, and the bias."""
        names = f"{layer.name}.weight", f"{layer.name}.bias"
        weight = self.arrays[names[0]]
        if isinstance(layer, Convolution):
            weight = weight.transpose((1, 2, 3, 0) if is_depthwise(layer) else (0, 2, 3, 1))
        bias = self.arrays.get(names[1], np.zeros(weight.shape[axis]))
        if self.scales is None:
            return [
                self.tensor(name, values.shape, "FLOAT32", values.astype(np.float32))
                for name, values in zip(names, (weight, bias))
            ]
        step = self._scale(layer.inputs[0])[0]
        scale = weight_scales(weight, bias, axis, step)
        shape = [len(scale) if position == axis else 1 for position in range(weight.ndim)]
        weight = np.rint(weight / scale.reshape(shape)).astype(np.int8)
        whole = np.rint(bias / (step * scale)).astype(np.int32)
        return [
            self.tensor(names[0], weight.shape, "INT8", weight, _per_channel(scale, axis)),
            self.tensor(names[1], whole.shape, "INT32", whole, _per_channel(step * scale, 0)),
        ]

    def finish(self, name: str) -> None:
        """Add the output in float32."""
        self.logits = self.numbers[name]
        if self.scales is None:
            self.tensors[self.logits].name = LOGITS
        else:
            logits = self.tensor(LOGITS, _channels_last(self.shapes[name]), "FLOAT32")
            self.logits = self.operator("DEQUANTIZE", [self.logits], logits)

    def dump(self, metadata: Mapping[str, bytes]) -> bytes:
        entries = []
        for name, content in metadata.items():
            self.buffers.append(_Buffer(data=np.frombuffer(content, np.uint8)))
            entries.append(schema.MetadataT(name=name, buffer=len(self.buffers) - 1))
        codes = [
            schema.OperatorCodeT(
                deprecatedBuiltinCode=getattr(schema.BuiltinOperator, code),
                builtinCode=getattr(schema.BuiltinOperator, code),
                version=OPERATORS[code][self.scales is not None],
            )
            for code in self.codes
        ]
        part = schema.SubGraphT(
            tensors=self.tensors,
            inputs=[self.images],
            outputs=[self.logits],
            operators=self.operators,
            name="pydmobilenet",
        )
        signature = schema.SignatureDefT(
            inputs=[schema.TensorMapT(name=IMAGES, tensorIndex=self.images)],
            outputs=[schema.TensorMapT(name=LOGITS, tensorIndex=self.logits)],
            signatureKey="serving_default",  # TensorFlow's name
            subgraphIndex=0,
        )
        model = schema.ModelT(
            version=SCHEMA_VERSION,
            operatorCodes=codes,
            subgraphs=[part],
            description="pydmobilenet",
            buffers=self.buffers,
            metadata=entries,
            signatureDefs=[signature],
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())


def weight_scales(weight: np.ndarray, bias: np.ndarray, axis: int, step: float) -> np.ndarray:
    """Return the scale of each output channel: the largest weight is 127, and a bias in int32 does not overflow."""
    others = tuple(position for position in range(weight.ndim) if position != axis)
    largest = abs(weight).max(axis=others) / 127
    return np.maximum(np.maximum(largest, abs(bias) / (step * 2**30)), 1e-12)


def _channels_last(shape: tuple[int, ...]) -> list[int]:
    return [1, *shape[1:], shape[0]]


def _per_tensor(scale: float, zero: int) -> Any:
    return schema.QuantizationParametersT(scale=[scale], zeroPoint=[zero])


def _per_channel(scale: np.ndarray, axis: int) -> Any:
    return schema.QuantizationParametersT(scale=scale.tolist(), zeroPoint=[0] * len(scale), quantizedDimension=axis)
