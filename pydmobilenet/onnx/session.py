"""ONNX Runtime: a model as a function of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from ..errors import UnusableError
from ..processes import processors
from .graph import INPUT, OUTPUT

try:
    import onnxruntime
except ImportError as error:
    raise UnusableError(f"ONNX Runtime cannot be imported ({error}): pip install '.[onnx]' in the checkout") from error


def predictor(model: onnx.ModelProto | bytes, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A model as a function of its input, on the CPU, by so many threads; by default by all processors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or processors()
    options.inter_op_num_threads = 1  # the networks are chains
    options.log_severity_level = 3  # errors
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]
