"""Inference with ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime

from ..devices import Device, parse
from ..errors import BadFileError, UnusableError
from ..folding import fold
from ..network import IMAGES, Network
from ..processes import processors
from .graph import LOGITS, convert

if os.environ.get("ORT_DISABLE_TELEMETRY") != "0" and hasattr(onnxruntime, "disable_telemetry_events"):
    onnxruntime.disable_telemetry_events()  # on Windows, and where it was imported before this package


def choose(name: str = "auto") -> Device:
    """Choose the CPU. Raises InvalidValueError for an unknown name, and UnusableError for another device."""
    wanted = parse(name)
    if wanted.kind not in ("auto", "cpu") or any(wanted.numbers):
        raise UnusableError(f"engine 'onnxruntime' runs on the CPU here, not on {name}; nearest: --device cpu")
    return Device("cpu", "the CPU")


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU. Folds networks if `fused`."""

    name = "onnxruntime"
    batch_size = 10  # few enough for the caches; the fastest of 4 to 50

    def __init__(self, fused: bool = True):
        self.fused = fused

    @property
    def processes(self) -> int:
        """Run one process per processor: faster than one process with all processors."""
        return processors()

    def load(self, network: Network, arrays: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """Return the network with these parameters: images (N, 3, H, W) in float32 to logits (N, outputs)."""
        if self.fused:
            network, arrays = fold(network, arrays)
        sessions: dict[int, Callable[[np.ndarray], np.ndarray]] = {}

        def predict(images: np.ndarray) -> np.ndarray:
            size = images.shape[2]  # a fixed size is up to a sixth faster
            if size not in sessions:
                sessions[size] = predictor(convert(network, arrays, image_size=size))
            return sessions[size](images)

        return predict


def predictor(model: onnx.ModelProto | bytes, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model as a function of its input, on `threads`, by default one per processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or processors()
    options.inter_op_num_threads = 1  # the networks are chains
    options.log_severity_level = 3  # errors
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([LOGITS], {IMAGES: images})[0]


def properties(content: bytes) -> dict[str, str]:
    """Return the metadata of a file. Raises BadFileError."""
    try:
        return {entry.key: entry.value for entry in onnx.load_model_from_string(content).metadata_props}
    except Exception as error:  # protobuf's own, which depend on its version
        raise BadFileError(f"no ONNX file: {type(error).__name__}") from None


def takes_pixels(content: bytes) -> bool:
    """Return whether the input of a file is pixels (N, H, W, 3) in uint8."""
    (images,) = onnx.load_model_from_string(content).graph.input
    return images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
