"""MXNet's environment, and its devices. Importable without MXNet.

MXNet 1.9.1, the last release, reads its environment during import: later settings have no effect.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy

from .. import machine
from ..devices import Device, parse, select
from ..errors import InvalidValueError

# The GPU wheel links to these, in loading order. The NVIDIA packages of the `gpu` extra bring them, in directories
# unknown to the dynamic loader.
CUDA_LIBRARIES = (
    *("libcudart.so.11.0", "libnvrtc.so.11.2", "libnvToolsExt.so.1", "libcublasLt.so.11", "libcublas.so.11"),
    *("libcusparse.so.11", "libcusolver.so.11", "libcufft.so.10", "libcurand.so.10", "libnccl.so.2", "libcudnn.so.8"),
)
# The GPU wheels hold machine code for sm_50 to sm_86 and no PTX for newer cards; sm_86 code runs on 8.9 too.
OLDEST, NEWEST = (5, 0), (8, 9)
NO_MXNET = (
    "MXNet is not installed: pip install 'pydmobilenet[cpu]', or 'pydmobilenet[gpu]' for NVIDIA GPUs, on Python 3.9 to "
    "3.11"
)
_limited_here = False  # whether this module limited oneDNN, and not the user


def prepare() -> None:
    """Prepare ``import mxnet`` without importing it. Keep a user's settings."""
    if importlib.util.find_spec("mxnet") is None:
        return
    vars(numpy).setdefault("bool", numpy.bool_)  # MXNet 1.9.1 needs the name; NumPy 1.24 to 1.26 lack it
    limit_instructions()  # in time until MXNet makes its first kernel
    if "mxnet" in sys.modules:
        return
    # MXNet takes half of the processors for hyper-threads and leaves them idle; measured here: 1.4 to 1.9 times faster.
    os.environ.setdefault("OMP_NUM_THREADS", str(machine.available_processors()))
    machine.limit_spinning()
    # cuDNN's autotuning may choose another algorithm, and so another rounding, each time.
    os.environ.setdefault("MXNET_CUDNN_AUTOTUNE_DEFAULT", "0")
    load_cuda_libraries()


@functools.lru_cache
def obstacle() -> str:
    """Import MXNet; say why it cannot be used here, or nothing."""
    if importlib.util.find_spec("mxnet") is None:
        return NO_MXNET
    if missing := "" if "mxnet" in sys.modules else load_cuda_libraries():
        return missing
    try:
        import mxnet  # noqa: F401
    except Exception as error:  # NumPy 2 lacks names that it uses; a custom build may lack libraries
        return import_failure("MXNet", error)
    return ""


def import_failure(engine: str, error: Exception) -> str:
    """Describe a failed import of an engine."""
    return f"{engine} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def limit_instructions() -> None:
    """Limit oneDNN to AVX2 unless the user has set ``DNNL_MAX_CPU_ISA``.

    Measured on an AMD EPYC with AVX-512:

    - The fast training step (`gluon/pyramid.py`) cannot run with AVX-512: oneDNN 2.4.4 has no backward kernel of
      BatchNorm + ReLU for the layout of its AVX-512 depthwise kernels. With AVX2 it is 5 to 9 times faster than the
      alternative.
    - With AVX2, training gives the same bits on every machine that has it.

    The price: a ResNet trains at 0.6 of its speed. ``DNNL_MAX_CPU_ISA=ALL`` lifts the limit; unsupported kernels then
    fall back, with a warning. Inference commands lift it themselves (`use_all_instructions`). PyTorch is not limited.
    """
    global _limited_here
    value = os.environ.get(machine.VARIABLE)
    if not value:
        os.environ[machine.VARIABLE] = "AVX2"
        os.environ.setdefault(machine.NEWER_VARIABLE, machine.ALL)
        _limited_here = True
    elif value.upper() in machine.NAMES:
        os.environ[machine.VARIABLE] = value.upper()  # oneDNN knows no other spelling


def use_all_instructions() -> None:
    """Lift the limit of `limit_instructions` before MXNet's first kernel: AVX-512 makes inference 1.4 to 2.6 times as
    fast. Keep a user's setting.
    """
    global _limited_here
    if _limited_here:
        os.environ[machine.VARIABLE] = machine.ALL  # child processes inherit it
        _limited_here = False


def gpu_wheel() -> str:
    """Return the name of the installed GPU build of MXNet, or nothing."""
    for name in ("mxnet-cu112", "mxnet-cu115", "mxnet-cu117"):
        with suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            return name
    return ""


def load_cuda_libraries() -> str:
    """Load the libraries of an installed GPU wheel; name a missing one, or nothing."""
    wheel = gpu_wheel()
    if not wheel:
        return ""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (
            f"the GPU build of MXNet ({wheel}) is installed, but NVIDIA's driver (libcuda.so.1) was not found: install "
            f"the driver, or the CPU build: pip uninstall {wheel}, then pip install 'pydmobilenet[cpu]'"
        )
    spec = importlib.util.find_spec("nvidia")
    directories = [Path(path) for path in spec.submodule_search_locations or ()] if spec else []
    for name in CUDA_LIBRARIES:
        library = next((str(path) for directory in directories for path in directory.glob(f"*/lib/{name}")), name)
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            needs = f"the GPU build of MXNet ({wheel}) needs a CUDA library that cannot be loaded ({error})"
            return f"{needs}: pip install 'pydmobilenet[gpu]' brings all of them"
    return ""


def choose(name: str | Device = "auto") -> Device:
    """Choose one context by name. Raises InvalidValueError for several names, and as `choose_several`."""
    if isinstance(name, Device):
        return name
    first, *others = choose_several(name)
    if others:
        raise InvalidValueError(f"device {name!r}: several are for training; nearest: {name.partition(',')[0]}")
    return first


def choose_several(name: str = "auto") -> list[Device]:
    """Choose contexts by name.

    Raises InvalidValueError for an unknown name, and UnusableError for a device that MXNet cannot use.
    """
    import mxnet as mx

    chosen = select(parse(name), "MXNet", gpus(), device_obstacle, mx.Context)
    unknown_setting = machine.why_unknown(os.environ.get(machine.VARIABLE, machine.ALL))
    if unknown_setting and chosen[0].device.device_type == "cpu":
        warnings.warn(unknown_setting, stacklevel=2)
    return chosen


def gpus() -> int:
    """Count the driver's GPUs; 0 for a CPU build."""
    return len(machine.compute_capabilities()) if _features().is_enabled("CUDA") else 0


def device_obstacle(kind: str = "gpu", number: int = 0) -> str:
    """Say why MXNet cannot compute on a device, or nothing."""
    if kind == "cpu":
        return ""
    if kind == "mps":
        return "MXNet cannot use Apple's GPU"
    if not _features().is_enabled("CUDA"):
        return "this is the CPU build of MXNet (for NVIDIA GPUs: pip install 'pydmobilenet[gpu]')"
    capabilities = machine.compute_capabilities()
    if number >= len(capabilities):
        return f"there is no GPU {number}: NVIDIA's driver lists {len(capabilities)}"
    if not OLDEST <= capabilities[number] <= NEWEST:
        capability, oldest, newest = ("{}.{}".format(*version) for version in (capabilities[number], OLDEST, NEWEST))
        return f"GPU {number} has compute capability {capability}; MXNet 1.9.1 supports {oldest} to {newest}"
    return ""


def _features() -> Any:
    import mxnet as mx

    return mx.runtime.Features()
