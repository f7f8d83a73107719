"""Static int8 quantisation of ONNX files, by ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx

from ..network import IMAGES

BATCH = 50


def quantise(model: onnx.ModelProto, images: np.ndarray) -> bytes:
    """Return a model in int8 with the ranges of its maps on `images`, which it takes; weights have a scale a channel.

    Weights have 7 bits: on processors without VNNI, the sums of products in 16 bits would overflow.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        batches = iter([images[start : start + BATCH] for start in range(0, len(images), BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {IMAGES: batch}

    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "int8.onnx")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)  # advice on another preparation
        try:
            quantize_static(
                model,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(level)
        return target.read_bytes()
