"""All that must happen before ``import mxnet``, with the reasons.

MXNet 1.9.1, the last release, reads its environment while it is imported: afterwards, each setting comes too late.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy

from .. import machine

# The shared libraries that the GPU wheel links to, each after those that it needs itself. The wheel brings none of
# them; the NVIDIA packages of the `gpu` extra do, in directories that the dynamic loader does not search.
CUDA_LIBRARIES = (
    *("libcudart.so.11.0", "libnvrtc.so.11.2", "libnvToolsExt.so.1", "libcublasLt.so.11", "libcublas.so.11"),
    *("libcusparse.so.11", "libcusolver.so.11", "libcufft.so.10", "libcurand.so.10", "libnccl.so.2", "libcudnn.so.8"),
)
_own_limit = False  # whether it is this module that has set it, and not the user

NO_MXNET = (
    "MXNet is not installed: pip install 'pydmobilenet[cpu]', or 'pydmobilenet[gpu]' for NVIDIA GPUs, on Python 3.9 to "
    "3.11"
)


def prepare() -> None:
    """Make ``import mxnet`` work and use this machine well. Keep what a user has set, and import no engine."""
    if importlib.util.find_spec("mxnet") is None:
        return
    vars(numpy).setdefault("bool", numpy.bool_)  # MXNet 1.9.1 still uses the name, which was gone in NumPy 1.24 to 1.26
    limit_instructions()  # in time even after MXNet's import, as long as it has made no kernel
    if "mxnet" in sys.modules:
        return
    # MXNet takes half of the processors for hyper-threads and leaves them idle; measured here: 1.4 to 1.9 times faster.
    os.environ.setdefault("OMP_NUM_THREADS", str(machine.available_processors()))
    machine.limit_spinning()
    # cuDNN's trial runs may choose another algorithm, and so another rounding, each time.
    os.environ.setdefault("MXNET_CUDNN_AUTOTUNE_DEFAULT", "0")
    load_cuda_libraries()


@functools.lru_cache
def obstacle() -> str:
    """Say why MXNet cannot be used here, or nothing. Imports it."""
    if importlib.util.find_spec("mxnet") is None:
        return NO_MXNET
    if missing := "" if "mxnet" in sys.modules else load_cuda_libraries():
        return missing
    try:
        import mxnet  # noqa: F401
    except Exception as error:  # NumPy 2 lacks names that it uses; a build of one's own may lack libraries
        return not_imported("MXNet", error)
    return ""


def not_imported(engine: str, error: Exception) -> str:
    """Say why an engine could not be imported."""
    return f"{engine} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def limit_instructions() -> None:
    """Limit oneDNN to AVX2 unless the user has set ``DNNL_MAX_CPU_ISA``.

    The one place where that is chosen, and why (measured on an AMD EPYC with AVX-512):

    - The fast way to train a PydMobileNet or a Wide ResNet (`gluon/pyramid.py`) cannot run with AVX-512: oneDNN 2.4.4
      has no backward kernel of normalisation and ReLU for the layout in which its AVX-512 depthwise kernels leave the
      maps. With AVX2 it is 5 to 9 times as fast as what can run with AVX-512.
    - With AVX2, training gives the same bits on every machine that has it.
    - Below AVX2 the fused operation has no fast kernels; there it is not used.

    The price: a ResNet trains at 0.6 of its speed. ``DNNL_MAX_CPU_ISA=ALL`` lifts the limit; what then cannot run falls
    back to what can, with a warning. Commands that only answer lift it themselves (`use_all_instructions`).

    PyTorch, in the same process, is not limited by it: what a user has set holds for both.
    """
    global _own_limit
    value = os.environ.get(machine.VARIABLE)
    if not value:
        os.environ[machine.VARIABLE] = "AVX2"
        os.environ.setdefault(machine.NEWER_VARIABLE, machine.ALL)
        _own_limit = True
    elif value.upper() in machine.NAMES:
        os.environ[machine.VARIABLE] = value.upper()  # oneDNN knows no other spelling


def use_all_instructions() -> None:
    """Lift the limit of `limit_instructions`, for a process that trains nothing: AVX-512 makes inference 1.4 to 2.6
    times as fast. Keep what the user has set. After MXNet's first kernel, it is too late.
    """
    global _own_limit
    if _own_limit:
        os.environ[machine.VARIABLE] = machine.ALL  # processes that this one starts take it over
        _own_limit = False


def gpu_wheel() -> str:
    """Return the name of the installed GPU build of MXNet, or nothing."""
    for name in ("mxnet-cu112", "mxnet-cu115", "mxnet-cu117"):
        with suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            return name
    return ""


def load_cuda_libraries() -> str:
    """Load what an installed GPU wheel links to, and say what is missing, or nothing."""
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
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    for name in CUDA_LIBRARIES:
        library = next((str(found) for place in places for found in place.glob(f"*/lib/{name}")), name)
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            needs = f"the GPU build of MXNet ({wheel}) needs a CUDA library that cannot be loaded ({error})"
            return f"{needs}: pip install 'pydmobilenet[gpu]' brings all of them"
    return ""
