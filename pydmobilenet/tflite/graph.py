"""Networks as TensorFlow Lite graphs: pixels to logits (operators: https://ai.google.dev/edge/litert).

A graph takes pixels ``images`` (N, H, W, 3) in uint8, in float32 as in int8. Maps are (N, H, W, channels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..data import Task
from ..data.dataset import scale_and_shift
from ..folding import Arrays, fold, num_consumers
from ..network import EPSILON, IMAGES, Add, BatchNorm, Convolution, Dense, Layer, Network, ReLU

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


def prepare(network: Network, arrays: Arrays, task: Task) -> tuple[Network, dict[str, np.ndarray]]:
    """Fold a network that takes pixels of 0 to 255; what is left of batch normalisation becomes 1x1 depthwise.

    The first of these normalises the pixels, and folds with the network's own. An `Add` has two inputs.
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
        while isinstance(layer, Add) and len(layer.inputs) > 2:
            first = Add(f"{layer.name}_{len(layer.inputs)}", layer.inputs[:2])
            layers.append(first)
            layer = replace(layer, inputs=(first.name, *layer.inputs[2:]))
        layers.append(layer)
    return Network(tuple(layers)), folded


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
    consumers = num_consumers(network.layers)
    for layer in network.layers:
        graph.add_layer(layer, _fused_relu(layer, network, consumers))
    graph.finish(network.head.name)
    return graph.dump(metadata or {})


def _fused_relu(layer: Layer, network: Network, consumers: Mapping[str, int]) -> Layer | None:
    """Return the ReLU that a convolution can do itself: the only layer that uses its output."""
    if not isinstance(layer, Convolution) or consumers[layer.name] != 1:
        return None
    return next((other for other in network.layers if isinstance(other, ReLU) and layer.name in other.inputs), None)


def activations(network: Network) -> list[str]:
    """Return the names of a graph's maps: of all layers but those whose ReLU is fused."""
    consumers = num_consumers(network.layers)
    return [layer.name for layer in network.layers if not _fused_relu(layer, network, consumers)]


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
        self.fused: set[str] = set()
        self.numbers: dict[str, int] = {}  # of maps
        shape = _channels_last(shapes[IMAGES])
        self.images = self.tensor(IMAGES, shape, "UINT8", quantisation=_per_tensor(1.0, 0))
        code = "DEQUANTIZE" if scales is None else "QUANTIZE"
        self.operator(code, [self.images], self.map(IMAGES, shape, PIXEL_SCALE))

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
        if layer.name in self.fused:
            return
        inputs = [self.numbers[name] for name in layer.inputs]
        name = relu.name if relu else layer.name
        self.fused.add(name)
        shape = _channels_last(self.shapes[layer.name])
        if isinstance(layer, Convolution):
            self._convolve(layer, inputs, name, shape, relu is not None)
        elif isinstance(layer, Dense):
            weight, bias = (self.arrays[f"{layer.name}.{part}"] for part in layer.parameters)
            inputs += self._weights(layer, layer.name, weight, bias, 0)
            self.operator("FULLY_CONNECTED", inputs, self.map(name, shape))
        elif layer.operator == "GlobalAveragePool":
            axes = self.tensor(f"{layer.name}.axes", [2], "INT32", np.array([1, 2], np.int32))
            self.operator("MEAN", [*inputs, axes], self.map(name, shape))
        else:
            code = {"Add": "ADD", "Concat": "CONCATENATION", "Maximum": "MAXIMUM", "ReLU": "RELU"}[layer.operator]
            self.operator(code, inputs, self.map(name, shape), **({"axis": 3} if layer.operator == "Concat" else {}))

    def _convolve(self, layer: Convolution, inputs: list[int], name: str, shape: list[int], relu: bool) -> None:
        """Add a convolution; a large depthwise one in float32 as the sum of some by fewer columns of the kernel."""
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        weight = self.arrays[f"{layer.name}.weight"].transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
        whole = [list(range(layer.kernel))]
        columns = column_groups(layer.kernel) if depthwise and self.scales is None else whole
        parts = [f"{name}_{number}" for number in range(len(columns))] if len(columns) > 1 else [name]
        zero = np.zeros(layer.out_channels)
        sums: list[int] = []
        for part, chosen in zip(parts, columns):
            bias = self.arrays.get(f"{layer.name}.bias", zero) if part == parts[0] else zero
            constants = self._weights(layer, part, weight[:, :, chosen], bias, 3 if depthwise else 0)
            sums.append(self._convolve_columns(layer, inputs, constants, chosen, part, shape, relu and len(parts) == 1))
        kind = schema.ActivationFunctionType
        for number, other in enumerate(sums[1:], 2):
            last = number == len(sums)
            output = self.map(name if last else f"{name}_sum{number}", shape)
            sums[0] = self.operator(
                "ADD", [sums[0], other], output, fusedActivationFunction=kind.RELU if relu and last else kind.NONE
            )

    def _convolve_columns(
        self,
        layer: Convolution,
        inputs: list[int],
        constants: list[int],
        columns: list[int],
        name: str,
        shape: list[int],
        relu: bool,
    ) -> int:
        """Add a convolution by some columns of its kernel.

        With a stride, TensorFlow's SAME pads another side than the checkpoints: pad before it.
        """
        dilation = columns[1] - columns[0] if len(columns) > 1 else 1
        margins = layer.kernel // 2, (columns[-1] - columns[0]) // 2
        if layer.stride > 1 and any(margins):
            inputs = [self._pad(layer, inputs, name, margins)]
        types, kinds = schema.Padding, schema.ActivationFunctionType
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return self.operator(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [*inputs, *constants],
            self.map(name, shape),
            padding=types.SAME if layer.stride == 1 else types.VALID,
            strideW=layer.stride,
            strideH=layer.stride,
            fusedActivationFunction=kinds.RELU if relu else kinds.NONE,
            dilationWFactor=dilation,
            dilationHFactor=1,
            **({"depthMultiplier": 1} if depthwise else {}),
        )

    def _pad(self, layer: Convolution, inputs: list[int], name: str, margins: tuple[int, int]) -> int:
        padding = np.array([[0, 0], *([margin] * 2 for margin in margins), [0, 0]], np.int32)
        paddings = self.tensor(f"{name}.paddings", padding.shape, "INT32", padding)
        _, height, width = self.shapes[layer.inputs[0]]
        shape = [1, height + 2 * margins[0], width + 2 * margins[1], layer.in_channels]
        scale = None if self.scales is None else self._scale(layer.inputs[0])
        return self.operator("PAD", [*inputs, paddings], self.map(f"{name}.padded", shape, scale))

    def _scale(self, name: str) -> Scale:
        assert self.scales is not None
        return PIXEL_SCALE if name == IMAGES else self.scales[name]

    def _weights(self, layer: Layer, name: str, weight: np.ndarray, bias: np.ndarray, axis: int) -> list[int]:
        """Add the weights, with the output channels on an `axis`, and the bias."""
        names = f"{name}.weight", f"{name}.bias"
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
        model = schema.ModelT(
            version=SCHEMA_VERSION,
            operatorCodes=codes,
            subgraphs=[part],
            description="pydmobilenet",
            buffers=self.buffers,
            metadata=entries,
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())


def column_groups(kernel: int) -> list[list[int]]:
    """Return the columns of a depthwise kernel in groups of at most 25 weights, each with equal distances.

    XNNPACK has fast kernels for so many. 7x7 are the three columns in the middle, and two pairs.
    """
    centre = min(kernel, max(1, MAX_WEIGHTS // kernel - (MAX_WEIGHTS // kernel + 1) % 2))
    margin = (kernel - centre) // 2
    pairs = [[column, kernel - 1 - column] for column in range(margin)]
    return [list(range(margin, kernel - margin)), *reversed(pairs)]


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
