"""Latency and memory of an ONNX file where it is deployed.

This file is also the program measured: a process with ONNX Runtime, NumPy and psutil alone. So it imports the package
within functions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

CALLS, WARM_UP = 300, 20


class Cost(NamedTuple):
    """Median and 99th percentile of one image's latency in ms, and a process's resident memory in MB."""

    p50: float
    p99: float
    memory: float


def measure(path: Path) -> Cost:
    """Measure a file on one thread, in its own process. Raises UnusableError if it cannot be run."""
    from ..errors import UnusableError

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, __file__, path], env=environment, capture_output=True, text=True)
    if process.returncode:
        why = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnusableError(f"{path} could not be run to measure it: {why[:200]}")
    return Cost(*json.loads(process.stdout))


def _run(path: str) -> Cost:
    import numpy as np
    import onnxruntime
    import psutil

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = Path(path).read_bytes()  # ONNX Runtime takes only UTF-8 names
    net = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (images,) = net.get_inputs()
    image = np.random.default_rng(0).random((1, *images.shape[1:])) * 255
    image = image.astype(np.uint8 if "uint8" in images.type else np.float32)
    seconds = []
    for _ in range(WARM_UP + CALLS):
        start = time.perf_counter()
        net.run(None, {images.name: image})
        seconds.append(time.perf_counter() - start)
    p50, p99 = 1000 * np.percentile(seconds[WARM_UP:], [50, 99])
    return Cost(p50, p99, psutil.Process().memory_info().rss / 1e6)


if __name__ == "__main__":
    del sys.path[0]  # the directory of this file, whose other files have common names, as session
    print(json.dumps(_run(sys.argv[1])))
