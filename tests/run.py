#!/usr/bin/env python3
"""All tests, then once more those of what oneDNN's kernels decide, at each other instruction set of this processor.

Arguments go to pytest. The first run is at the project's own limit (`pydmobilenet/gluon/runtime.py`), or at that of
``DNNL_MAX_CPU_ISA``.
"""

from __future__ import annotations

import os
import subprocess
import sys

ENVIRONMENT = dict(os.environ)  # before the package sets what suits training: the tests have their own

from pydmobilenet import machine  # noqa: E402
from pydmobilenet.gluon import runtime  # noqa: E402

NO_TESTS = 5  # pytest's exit code: none of those asked for is of this kind


def main() -> int:
    arguments = sys.argv[1:]
    first = machine.instruction_set()
    if runtime.obstacle():  # ONNX Runtime has no such levels
        return pytest(arguments, ENVIRONMENT)
    others = {machine.instruction_set(environment={machine.VARIABLE: value}): value for value in levels()}
    others.pop(first, None)
    print(f"{machine.cpu_name()}: all tests with {first or 'an unknown instruction set'}", flush=True)
    codes = [pytest(arguments, ENVIRONMENT)]
    for name, value in others.items():
        print(f"\ntraining and fusing again with {name}, {machine.VARIABLE}={value}", flush=True)
        code = pytest(["-m", "instruction_sets", *arguments], {**ENVIRONMENT, machine.VARIABLE: value})
        codes.append(0 if code == NO_TESTS else code)
    print(f"\ntested with {', '.join(name or 'unknown' for name in (first, *others))}")
    return max(codes)


def levels(flags: frozenset[str] | None = None) -> list[str]:
    """Values of ``DNNL_MAX_CPU_ISA``, from the processor's own level down, that give oneDNN quite other kernels."""
    own = machine.instruction_set(flags, {})
    order = list(machine.LEVELS)
    return [machine.ALL, *(name for name in ("AVX2", "SSE41") if own and order.index(name) < order.index(own))]


def pytest(arguments: list[str], environment: dict[str, str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
