"""Names of devices, and the choice of one."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from . import machine
from .errors import InvalidValueError, UnusableError, unknown


class Device(NamedTuple):
    """An engine's own device object, its title, and the reason for the choice if nobody named it."""

    device: Any
    title: str
    reason: str = ""


class Wanted(NamedTuple):
    """A parsed device name. `kind` is auto, cpu, gpu or mps; `numbers` may be empty."""

    name: str
    kind: str
    numbers: tuple[int, ...] = ()

    def candidates(self, gpus: int) -> list[tuple[str, int]]:
        """List kinds and numbers. For ``auto`` they are alternatives: all GPUs, then Apple's."""
        if self.kind == "auto":
            return [*(("gpu", number) for number in range(gpus)), ("mps", 0)]
        return [(self.kind, number) for number in self.numbers or (0,)]


def parse(name: str) -> Wanted:
    """Parse ``auto``, ``cpu``, ``gpu``, ``mps``, ``gpu:1`` or ``gpu:0,1``. Raises InvalidValueError.

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
        raise InvalidValueError(f"device {name!r} repeats a number; nearest: {kind}:{nearest}")
    return Wanted(name, kind, numbers)


def select(
    wanted: Wanted,
    engine: str,
    gpus: int,
    obstacle: Callable[[str, int], str],
    make: Callable[[str, int], Any],
) -> list[Device]:
    """Select the devices. ``auto`` is the first GPU without an obstacle, else Apple's, else the CPU.

    `obstacle` says why `engine` cannot use a kind and number, or nothing; `make` gives the engine's object. Raises
    UnusableError for a named device with an obstacle.
    """
    candidates = wanted.candidates(gpus)
    if wanted.kind == "auto":
        usable = next((candidate for candidate in candidates if not obstacle(*candidate)), None)
        if usable:
            return [Device(make(*usable), _title(*usable))]
        reason = obstacle("gpu", 0) if gpus or machine.compute_capabilities() else "no GPU found"
        if gpus:
            warnings.warn(f"{reason}; computing on the CPU", stacklevel=4)
        return [Device(make("cpu", 0), "the CPU", reason)]
    for kind, number in candidates:
        if reason := obstacle(kind, number):
            other = engine == "MXNet" and (kind == "mps" or number < len(machine.compute_capabilities()))
            nearest = "engine pytorch" if other and importlib.util.find_spec("torch") else "cpu"
            raise UnusableError(f"device {wanted.name!r}: {reason}; nearest: {nearest}")
    return [Device(make(kind, number), _title(kind, number)) for kind, number in candidates]


def _title(kind: str, number: int) -> str:
    return {"cpu": "the CPU", "mps": "Apple's GPU"}.get(kind, f"GPU {number}")
