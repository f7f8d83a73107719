"""What this machine offers: processors, memory, NVIDIA's GPUs; and which of oneDNN's kernels it runs.

oneDNN computes MXNet's convolutions and normalisations on a CPU. It takes the kernels of the highest instruction set
that the processor has, up to ``DNNL_MAX_CPU_ISA``, which it reads when it makes its first kernel.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import UnusableError, nearest

VARIABLE = "DNNL_MAX_CPU_ISA"
NEWER_VARIABLE = "ONEDNN_MAX_CPU_ISA"  # PyTorch's oneDNN 3 reads it before the other one, MXNet's 2.4 not at all
ALL = "ALL"
# Kernels that differ in more than their last steps, from the lowest on, and a flag (as Linux calls it) of theirs.
LEVELS = {"SSE41": "sse4_1", "AVX": "avx", "AVX2": "avx2", "AVX512": "avx512vl"}
KINDS = ("CORE", "CORE_VNNI", "CORE_BF16", "CORE_AMX", "MIC", "MIC_4OPS")
NAMES = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", *(f"AVX512_{kind}" for kind in KINDS), ALL)  # oneDNN 2.4's


def available_processors() -> int:
    """Count the processors that this process may use: its affinity, and its control groups' quota, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, cgroup_quota())))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Return the tightest quota of this process's control groups and their ancestors, in processors, or infinity.

    A line of `membership` is ``0::/path`` in version 2 and ``4:cpu,cpuacct:/path`` in version 1. In a container the
    path may lie outside of what is mounted, and only the root can be read.
    """
    quotas = [math.inf]
    with suppress(OSError):  # no control groups: not Linux
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                top = root / controllers
                group = top / path.lstrip("/")
                quotas += [_quota(each) for each in (group, *group.parents) if each == top or top in each.parents]
    return min(quotas)


def _quota(group: Path) -> float:
    with suppress(OSError, ValueError):  # ValueError: no limit is "max"
        if (group / "cpu.max").exists():
            quota, period = map(int, (group / "cpu.max").read_text().split())
        else:
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return math.inf if quota < 0 else quota / period
    return math.inf


def available_memory() -> float:
    """Return the bytes of memory that are free; all there are, or infinity, where the system does not tell."""
    with suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def check_memory(network: str, parameters: int) -> None:
    """Raises UnusableError where a network's parameters in float32, with their gradients, do not fit into memory."""
    needed, free = 8 * parameters, available_memory()
    if needed > free:
        raise UnusableError(
            f"{network} has {parameters:,} parameters: with their gradients, {needed / 1e9:,.1f} GB (allowed: the "
            f"{free / 1e9:,.1f} GB of memory that are free)"
        )


def limit_spinning() -> None:
    """Have GNU's OpenMP put a thread that waits to sleep soon. Has to precede the import of MXNet and PyTorch.

    A thread that spins for long keeps others from what it waits for: beside two busy jobs, PyTorch trained 36 images/s
    by two threads, and 172 so. No difference was seen on a quiet machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def keep_freed_memory(most: int = 256 << 20) -> None:
    """Have this process keep up to `most` bytes that it has freed, for what it allocates next. glibc alone can.

    Otherwise it gives a network's maps back to the system, and takes them anew page by page: ResNet-29 ran at two
    thirds of its speed in PyTorch.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its most: smaller blocks are of the heap
        libc.mallopt(-1, most)  # M_TRIM_THRESHOLD


def compute_capabilities() -> list[tuple[int, int]]:
    """List the compute capability of each GPU that NVIDIA's driver lists. Ask it alone, and run nothing on a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count, gpu, major, minor = (ctypes.c_int() for _ in range(4))
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        driver.cuDeviceGet(ctypes.byref(gpu), number)
        for attribute, value in ((75, major), (76, minor)):  # CUDA's numbers for both parts of it
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu)
        found.append((major.value, minor.value))
    return found


def instruction_set(
    flags: Collection[str] | None = None, environment: Mapping[str, str] = os.environ, engine: str = "gluon"
) -> str:
    """Return which of the `LEVELS` an engine's oneDNN uses on a processor with these flags, by default this one.

    It is nothing where there is none, and where the flags are not known.
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
    """Say why oneDNN does not understand a value of ``DNNL_MAX_CPU_ISA``, or nothing."""
    if value in NAMES:
        return ""
    return (
        f"{VARIABLE} is {value!r}, which oneDNN does not know and passes over{nearest(value, NAMES)} "
        f"(allowed: {', '.join(NAMES)})"
    )


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the processor's flags; none where the system does not tell them (it is not Linux on x86)."""
    return frozenset(_cpuinfo(path).get("flags", "").split())


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor is called."""
    return _cpuinfo(path).get("model name") or platform.processor() or platform.machine()


def _cpuinfo(path: Path) -> dict[str, str]:
    try:
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
