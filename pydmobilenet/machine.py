"""What this machine offers to this process: processors, memory, NVIDIA's GPUs."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

from .errors import UnusableError


def available_processors() -> int:
    """The number of processors that this process may use: its affinity, and its control group's quota, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, cgroup_quota())))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Processors' worth of time that this process's control groups grant, the tightest of them, or infinity.

    A line of `membership` is ``0::/path`` in version 2 and ``4:cpu,cpuacct:/path`` in version 1. A quota of any
    ancestor binds too; in a container the path may lie outside of what is mounted, and only the root can be read.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no control groups: not Linux
        return math.inf
    quotas = [math.inf]
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "" or "cpu" in controllers.split(","):
            top = root / controllers
            group = top / path.lstrip("/")
            quotas += [_quota(place) for place in (group, *group.parents) if place == top or top in place.parents]
    return min(quotas)


def _quota(group: Path) -> float:
    """The quota of one control group, in processors; infinity where it sets none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def available_memory() -> int:
    """The bytes of this machine's memory that are free; all there are, where the system does not tell."""
    with suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(network: str, parameters: int) -> None:
    """Raises UnusableError where the parameters of a network, in float32 with their gradients, do not fit into the
    memory that is free.
    """
    needed, free = 8 * parameters, available_memory()
    if needed > free:
        raise UnusableError(
            f"{network} has {parameters:,} parameters: with their gradients, {needed / 1e9:,.1f} GB (allowed: the "
            f"{free / 1e9:,.1f} GB of memory that are free)"
        )


def limit_spinning() -> None:
    """Have GNU's OpenMP, which MXNet and PyTorch compute with, put a thread that waits to sleep soon. It has to precede
    their import, and leaves alone what the user has set.

    Otherwise a thread spins for long before it sleeps. Where other programs use the processors too, what it waits for
    is then not running: beside two busy jobs, PyTorch trained 36 images/s by two threads, and 172 so. No difference was
    seen on a quiet machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def keep_freed_memory(most: int = 256 << 20) -> None:
    """Have this process keep up to `most` bytes that it has freed, for what it allocates next. glibc alone can.

    Otherwise it gives memory back to the system at once where that lies at the end of its heap, as a network's maps do,
    and takes it anew, page by page: ResNet-29 ran at two thirds of its speed in PyTorch.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its most: smaller blocks are of the heap
        libc.mallopt(-1, most)  # M_TRIM_THRESHOLD


def compute_capabilities() -> list[tuple[int, int]]:
    """The compute capability of each GPU that NVIDIA's driver lists; asks the driver alone, runs nothing on a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [(_attribute(driver, 75, gpu), _attribute(driver, 76, gpu)) for gpu in range(count.value)]


def _attribute(driver: ctypes.CDLL, attribute: int, number: int) -> int:
    """A device's attribute by CUDA's number for it: 75 and 76 are the compute capability's two parts."""
    gpu, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(gpu), number)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu)
    return value.value
