"""How many processors and how much memory this process may use."""

from __future__ import annotations

import math
import os
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
