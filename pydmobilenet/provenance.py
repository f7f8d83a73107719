"""What a result was made with, so far as it may depend on it: versions, processor, instruction set, threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import numpy

from . import _runtime, processor


def environment() -> dict[str, str]:
    """Versions, the processor and how it is used, by name; imports no engine."""
    from . import __version__

    mxnet = _runtime.gpu_wheel() or "mxnet"
    return {
        "pydmobilenet": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        mxnet: importlib.metadata.version(mxnet),
        "processor": processor.cpu_name(),
        "instruction_set": processor.instruction_set() or "unknown",
        "threads": os.environ.get("OMP_NUM_THREADS", "the engine's default"),
    }


def summary() -> str:
    """The processor, the instruction set and the threads on a line, as benchmarks print them beside their figures."""
    found = environment()
    return f"{found['processor']}, {found['instruction_set']}, OMP_NUM_THREADS={found['threads']}"
