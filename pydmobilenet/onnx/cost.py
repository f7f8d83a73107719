"""What an ONNX file costs where it is deployed: the latency of a single image, and the memory of a process.

This file is also the program that is measured: a process that has ONNX Runtime and NumPy alone, one thread, and does
nothing but answer. So it imports the package within functions.
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
    """The median and 99th percentile of the latency of one image in ms, and the peak of a process's memory in MB."""

    p50: float
    p99: float
    memory: float


def measure(path: Path) -> Cost:
    """Measure a file on one thread of this machine. Raises UnusableError where it cannot be run."""
    from ..errors import UnusableError

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, __file__, path], env=environment, capture_output=True, text=True)
    if answer.returncode:
        why = (answer.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UnusableError(f"{path} could not be run to measure it: {why[:200]}")
    return Cost(*json.loads(answer.stdout))


def _run(path: str) -> Cost:
    import resource

    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = Path(path).read_bytes()  # ONNX Runtime takes no name that is not UTF-8
    net = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (images,) = net.get_inputs()
    image = np.random.default_rng(0).random((1, *images.shape[1:])) * 255
    image = image.astype(np.uint8 if "uint8" in images.type else np.float32)
    seconds = []
    for _ in range(WARM_UP + CALLS):
        begun = time.perf_counter()
        net.run(None, {images.name: image})
        seconds.append(time.perf_counter() - begun)
    p50, p99 = 1000 * np.percentile(seconds[WARM_UP:], [50, 99])
    if sys.platform == "linux":  # where getrusage tells of the parent process too
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return Cost(p50, p99, peak)


if __name__ == "__main__":
    del sys.path[0]  # the directory of this file, whose other files have names as common as session
    print(json.dumps(_run(sys.argv[1])))
