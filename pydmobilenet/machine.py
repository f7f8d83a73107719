"""This machine: processors, memory, NVIDIA's GPUs, and oneDNN's instruction set.

oneDNN computes MXNet's convolutions and normalisations on a CPU. It takes the kernels of the highest instruction set
of the processor, up to ``DNNL_MAX_CPU_ISA``, which it reads when it makes its first kernel.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from .errors import UnusableError, nearest

VARIABLE = "DNNL_MAX_CPU_ISA"
NEWER_VARIABLE = "ONEDNN_MAX_CPU_ISA"  # PyTorch's oneDNN 3 reads it before the other one, MXNet's 2.4 not at all
ALL = "ALL"
# Levels with other kernels, from the lowest on, and a flag of each, as Linux calls it.
LEVELS = {"SSE41": "sse4_1", "AVX": "avx", "AVX2": "avx2", "AVX512": "avx512vl"}
KINDS = ("CORE", "CORE_VNNI", "CORE_BF16", "CORE_AMX", "MIC", "MIC_4OPS")
NAMES = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", *(f"AVX512_{kind}" for kind in KINDS), ALL)  # oneDNN 2.4's
CPUINFO = Path("/proc/cpuinfo")  # on Linux


def available_processors() -> int:
    """Count the processors of this process: its affinity, and its control groups' quota, rounded up."""
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:  # Windows has an affinity, macOS none
        process = psutil.Process()
        affinity = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, cgroup_quota())))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Return the tightest quota of this process's control groups, in processors, or infinity.

    Of version 1, only the root is read: there a container has its own quota. psutil reads neither.
    """
    candidates: list[tuple[Path, ...]] = [(root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us")]
    with suppress(OSError):  # not Linux
        group = root / membership.read_text().rpartition("::/")[2].strip()
        candidates += [(each / "cpu.max",) for each in (group, *group.parents)]
    quotas = [math.inf]
    for paths in candidates:
        with suppress(OSError, ValueError):  # ValueError: no limit is "max"
            quota, period = (int(word) for path in paths for word in path.read_text().split())
            quotas.append(quota / period if quota > 0 else math.inf)
    return min(quotas)


def available_memory() -> int:
    """Return the bytes of free memory."""
    return psutil.virtual_memory().available


def check_memory(network: str, parameters: int) -> None:
    """Raise UnusableError if a network's parameters in float32, with their gradients, do not fit into memory."""
    needed, free = 8 * parameters, available_memory()
    if needed > free:
        raise UnusableError(
            f"{network} has {parameters:,} parameters: with their gradients, {needed / 1e9:,.1f} GB (allowed: the "
            f"{free / 1e9:,.1f} GB of memory that are free)"
        )


def limit_spinning() -> None:
    """Let idle threads of GNU's OpenMP sleep soon. Call before importing MXNet or PyTorch.

    Beside two busy jobs, PyTorch trained 36 images/s by two spinning threads, and 172 so; on a quiet machine as before.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def keep_freed_memory(most: int = 256 << 20) -> None:
    """Let glibc keep up to `most` freed bytes for later allocations; do nothing elsewhere.

    Otherwise each map is returned to the system and paged in anew: ResNet-29 ran at two thirds of its speed in PyTorch.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its most: smaller blocks are of the heap
        libc.mallopt(-1, most)  # M_TRIM_THRESHOLD


def compute_capabilities() -> list[tuple[int, int]]:
    """List the compute capability of each GPU of NVIDIA's driver, without running anything on a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count, gpu, major, minor = (ctypes.c_int() for _ in range(4))
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    capabilities = []
    for number in range(count.value):
        driver.cuDeviceGet(ctypes.byref(gpu), number)
        for attribute, value in ((75, major), (76, minor)):  # CUDA's numbers for both parts of it
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu)
        capabilities.append((major.value, minor.value))
    return capabilities


def instruction_set(
    flags: Collection[str] | None = None, environment: Mapping[str, str] = os.environ, engine: str = "gluon"
) -> str:
    """Return the level of `LEVELS` that an engine's oneDNN uses; nothing where the flags are unknown.

    `flags` are the processor's, by default this one's.
    """
    flags = cpu_flags() if flags is None else flags
    limit = environment.get(VARIABLE, ALL)
    if engine == "pytorch":
        limit = environment.get(NEWER_VARIABLE, limit)
    names = list(LEVELS)
    if limit in NAMES and limit != ALL:
        names = names[: names.index(limit.partition("_")[0]) + 1]
    return next((name for name in reversed(names) if LEVELS[name] in flags), "")


def why_unknown(value: str) -> str:
    """Explain a value of ``DNNL_MAX_CPU_ISA`` that oneDNN does not know; return nothing for a valid one."""
    if value in NAMES:
        return ""
    return f"oneDNN ignores {VARIABLE}={value!r}{nearest(value, NAMES)} (allowed: {', '.join(NAMES)})"


def cpu_flags(path: Path = CPUINFO) -> frozenset[str]:
    """Return the processor's flags; none unless the system is Linux on x86."""
    return frozenset(_cpuinfo("flags", path).split())


def cpu_name(path: Path = CPUINFO) -> str:
    """Return the processor's name."""
    return _cpuinfo("model name", path) or platform.processor() or platform.machine()


def _cpuinfo(field: str, path: Path) -> str:
    with suppress(OSError):
        found = re.search(rf"^{field}\s*: (.*)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        return found[1].strip() if found else ""
    return ""
