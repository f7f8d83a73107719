"""What this machine offers: processors, memory, NVIDIA's GPUs."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

from .errors import UnusableError


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
