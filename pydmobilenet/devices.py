"""The names of devices, and which one an engine takes."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from . import machine
from .errors import InvalidValueError, UnusableError, unknown

Obstacle = Callable[[str, int], str]
"""Why an engine cannot use a device of a kind and a number, in words, or nothing."""


class Device(NamedTuple):
    """A device as its engine's own object, and in words which one it is and why."""

    device: Any
    why: str


class Wanted(NamedTuple):
    """A device's `name`, parsed. Its `kind` is auto, cpu, gpu or mps; `numbers` are those given, perhaps none."""

    name: str
    kind: str
    numbers: tuple[int, ...] = ()

    def candidates(self, gpus: int) -> list[tuple[str, int]]:
        """List kinds and numbers. Those of ``auto`` are alternatives: so many GPUs, then Apple's."""
        if self.kind == "auto":
            return [*(("gpu", number) for number in range(gpus)), ("mps", 0)]
        return [(self.kind, number) for number in self.numbers or (0,)]


def parse(name: str) -> Wanted:
    """Parse ``auto``, ``cpu``, ``gpu``, ``mps``, ``gpu:1`` or, of several, ``gpu:0,1``. Raises InvalidValueError.

    ``cuda`` is ``gpu``. As in the authors' runner, a number is a GPU's, and -1 the CPU.
    """
    text = "cpu" if name == "-1" else f"gpu:{name}" if name.isdecimal() else name
    match = re.fullmatch(r"(auto|mps)|(cpu|gpu|cuda)(?::(\d+(?:,\d+)*))?", text)
    if match is None:
        raise unknown("device", name, ("auto", "cpu", "gpu", "mps"), "auto, cpu, gpu, gpu:N, mps")
    kind = match[1] or match[2].replace("cuda", "gpu")
    numbers = tuple(map(int, match[3].split(","))) if match[3] else ()
    if len(set(numbers)) < len(numbers):
        nearest = ",".join(map(str, dict.fromkeys(numbers)))
        raise InvalidValueError(f"device {name!r} names one twice; nearest: {kind}:{nearest}")
    return Wanted(name, kind, numbers)


def take(wanted: Wanted, engine: str, gpus: int, obstacle: Obstacle) -> list[tuple[str, int, str]]:
    """Return the kind and the number of each device that is wanted, and in words which one it is and why.

    ``auto`` is the first of the `gpus` without an obstacle, else Apple's GPU, else the CPU. Raises UnusableError for a
    device with an obstacle.
    """
    found = wanted.candidates(gpus)
    if wanted.kind == "auto":
        usable = next((each for each in found if not obstacle(*each)), None)
        if usable:
            return [(*usable, f"{_title(*usable)}, which {engine} can use")]
        reason = obstacle("gpu", 0)
        if gpus:
            warnings.warn(f"{reason}; computing on the CPU", stacklevel=4)
        return [("cpu", 0, f"the CPU: {reason}")]
    for kind, number in found:
        if reason := obstacle(kind, number):
            other = engine == "MXNet" and (kind == "mps" or number < len(machine.compute_capabilities()))
            nearest = "engine pytorch" if other and importlib.util.find_spec("torch") else "cpu"
            raise UnusableError(f"device {wanted.name!r}: {reason}; nearest: {nearest}")
    return [(kind, number, f"{_title(kind, number)}, as asked for") for kind, number in found]


def _title(kind: str, number: int) -> str:
    return {"cpu": "the CPU", "mps": "Apple's GPU"}.get(kind, f"GPU {number}")
