"""What this machine's processor is called, and which of oneDNN's instruction sets it has.

oneDNN computes MXNet's convolutions and normalisations on a CPU. It has kernels for several instruction sets and takes
the highest one that the processor has, up to ``DNNL_MAX_CPU_ISA``, which it reads when it makes its first kernel.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

from .errors import nearest

VARIABLE = "DNNL_MAX_CPU_ISA"
NEWER_VARIABLE = "ONEDNN_MAX_CPU_ISA"  # PyTorch's oneDNN 3 reads it before the other one, MXNet's 2.4 not at all
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
# oneDNN 2.4's names, from the lowest on, and the processor's flags (as Linux calls them) that each asks for.
INSTRUCTION_SETS = {
    "SSE41": ("sse4_1",),
    "AVX": ("avx",),
    "AVX2": ("avx2",),
    "AVX2_VNNI": ("avx2", "avx_vnni"),
    "AVX512_CORE": AVX512,
    "AVX512_CORE_VNNI": (*AVX512, "avx512_vnni"),
    "AVX512_CORE_BF16": (*AVX512, "avx512_vnni", "avx512_bf16"),
    "AVX512_CORE_AMX": (*AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
}
ALL = "ALL"
# Of these the Xeon Phi alone had kernels.
NAMES = (*INSTRUCTION_SETS, "AVX512_MIC", "AVX512_MIC_4OPS", ALL)


def instruction_set(
    flags: Collection[str] | None = None, environment: Mapping[str, str] = os.environ, engine: str = "gluon"
) -> str:
    """The instruction set that an engine's oneDNN uses on a processor with these flags, by default this one; "" if it
    has none of them, or if the flags are not known.
    """
    flags = cpu_flags() if flags is None else flags
    names = list(INSTRUCTION_SETS)
    limit = environment.get(VARIABLE, ALL)
    if engine == "pytorch":
        limit = environment.get(NEWER_VARIABLE, limit)
    if limit in names:
        names = names[: names.index(limit) + 1]
    return next((name for name in reversed(names) if set(INSTRUCTION_SETS[name]) <= set(flags)), "")


def levels(flags: Collection[str] | None = None) -> list[str]:
    """Values of ``DNNL_MAX_CPU_ISA`` under which oneDNN takes quite other kernels: the processor's own level, then each
    lower one.
    """
    own = instruction_set(flags, {})
    order = list(INSTRUCTION_SETS)
    lower = [name for name in ("AVX2", "SSE41") if own and order.index(name) < order.index(own)]
    return [ALL, *lower]


def why_unknown(value: str) -> str:
    """Why oneDNN does not understand a value of ``DNNL_MAX_CPU_ISA``; "" where it does."""
    if value in NAMES:
        return ""
    return (
        f"{VARIABLE} is {value!r}, which oneDNN does not know and passes over{nearest(value, NAMES)} "
        f"(allowed: {', '.join(NAMES)})"
    )


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's flags; an empty set where the system does not tell them (it is not Linux on x86)."""
    return frozenset(_cpuinfo(path).get("flags", "").split())


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor is called."""
    return _cpuinfo(path).get("model name") or platform.processor() or platform.machine()


def _cpuinfo(path: Path) -> dict[str, str]:
    """The fields of the first processor in ``/proc/cpuinfo``."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
