"""What this machine's processor is called, and which of oneDNN's kernels it runs.

oneDNN computes MXNet's convolutions and normalisations on a CPU. It takes the kernels of the highest instruction set
that the processor has, up to ``DNNL_MAX_CPU_ISA``, which it reads when it makes its first kernel.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

from .errors import nearest

VARIABLE = "DNNL_MAX_CPU_ISA"
NEWER_VARIABLE = "ONEDNN_MAX_CPU_ISA"  # PyTorch's oneDNN 3 reads it before the other one, MXNet's 2.4 not at all
ALL = "ALL"
# Kernels that differ in more than their last steps, from the lowest on, and a flag (as Linux calls it) of theirs.
LEVELS = {"SSE41": "sse4_1", "AVX": "avx", "AVX2": "avx2", "AVX512": "avx512vl"}
KINDS = ("CORE", "CORE_VNNI", "CORE_BF16", "CORE_AMX", "MIC", "MIC_4OPS")
NAMES = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", *(f"AVX512_{kind}" for kind in KINDS), ALL)  # oneDNN 2.4's


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
