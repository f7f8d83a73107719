"""Inference with LiteRT on the CPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from ..errors import BadFileError

XNNPACK = OpResolverType.AUTO
BUILT_IN = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # 17 times as fast for 7x7 depthwise in int8
REFERENCE = OpResolverType.BUILTIN_REF  # slow, and as those of tflite-micro to 1 step of int8
CALLS, WARM_UP = 300, 20
ALLOCATE = """
import sys
from tflite_micro import runtime
runtime.Interpreter.from_bytes(sys.stdin.buffer.read()).print_allocations()
"""


def interpreter(
    content: bytes, batch_size: int = 1, threads: int = 1, keep: bool = False, kernels: OpResolverType = XNNPACK
) -> Interpreter:
    """Return the interpreter of a file for a batch size; with `keep`, it keeps all maps. Raises BadFileError."""
    how = {"num_threads": threads, "experimental_preserve_all_tensors": keep, "experimental_op_resolver_type": kernels}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the memory that keeping takes
            net = Interpreter(model_content=content, **how)
        (images,) = net.get_input_details()
        net.resize_tensor_input(images["index"], [batch_size, *images["shape"][1:]])
        net.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BadFileError(f"no network for LiteRT: {' '.join(str(error).split())[:200]}") from None
    return net


def predictor(
    content: bytes, threads: int = 1, kernels: OpResolverType = XNNPACK
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a file as a function: pixels (N, H, W, 3) in uint8 to logits (N, outputs)."""
    nets: dict[int, Interpreter] = {}

    def predict(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) not in nets:
            nets[len(pixels)] = interpreter(content, len(pixels), threads, kernels=kernels)
        net = nets[len(pixels)]
        net.set_tensor(net.get_input_details()[0]["index"], pixels)
        net.invoke()
        return net.get_tensor(net.get_output_details()[0]["index"])

    return predict


def latency(content: bytes) -> tuple[float, float]:
    """Return the median and the 99th percentile of one image's latency in ms, on one thread."""
    net = interpreter(content)
    (images,) = net.get_input_details()
    net.set_tensor(images["index"], np.random.default_rng(0).integers(0, 256, images["shape"], np.uint8))
    seconds = []
    for _ in range(WARM_UP + CALLS):
        start = time.perf_counter()
        net.invoke()
        seconds.append(time.perf_counter() - start)
    p50, p99 = 1000 * np.percentile(seconds[WARM_UP:], [50, 99])
    return float(p50), float(p99)


def arena(content: bytes) -> int | None:
    """Return the bytes of memory that a file needs in tflite-micro beside itself; None if this is not installed.

    It prints them on standard error alone, so that it runs in a process of its own.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        return None
    process = subprocess.run([sys.executable, "-c", ALLOCATE], input=content, capture_output=True)
    total = re.search(rb"Arena allocation total (\d+) bytes", process.stderr)
    return int(total[1]) if total else None
