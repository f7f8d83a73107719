"""Which device MXNet computes on, and why: a GPU that the wheel has no code for is refused before any kernel runs."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from typing import NamedTuple

import mxnet as mx
from mxnet import Context

from .. import machine, processor
from ..errors import InvalidValueError, UnusableError

# The GPU wheels of MXNet 1.9.1 hold machine code for sm_50 to sm_86 and nothing to compile for newer cards from;
# sm_86 code runs on 8.9 too.
OLDEST, NEWEST = (5, 0), (8, 9)


class Device(NamedTuple):
    """An MXNet context, and in words which device it is and why it was chosen."""

    context: Context
    why: str


def choose(name: str = "auto") -> Device:
    """The device for ``auto``, ``cpu``, ``cpu:N``, ``gpu`` or ``gpu:N``, which ``cuda`` and ``cuda:N`` are too.

    ``auto`` is the GPU if MXNet can run on it.

    Raises InvalidValueError for another name, and UnusableError for a GPU that is absent or that MXNet cannot use.
    """
    match = re.fullmatch(r"(auto|cpu|gpu|cuda)(?::(\d+))?", name)
    if match is None or (match[1] == "auto" and match[2]):
        raise InvalidValueError(f"unknown device {name!r} (allowed: auto, cpu, gpu, gpu:N; nearest: auto)")
    kind, number = match[1], int(match[2] or 0)
    if kind == "cpu":
        return _cpu(number, "the CPU, as asked for")
    obstacle = gpu_obstacle(number)
    if kind != "auto":
        if obstacle:
            pytorch = number < len(machine.compute_capabilities()) and importlib.util.find_spec("torch")
            raise UnusableError(f"device {name!r}: {obstacle}; nearest: {'engine pytorch' if pytorch else 'cpu'}")
        return Device(mx.gpu(number), f"GPU {number}, as asked for")
    for number in range(1, len(machine.compute_capabilities()) if obstacle else 0):  # perhaps another one will do
        if not gpu_obstacle(number):
            return Device(mx.gpu(number), f"GPU {number}, which MXNet can use ({obstacle})")
    if obstacle:
        if machine.compute_capabilities() and mx.runtime.Features().is_enabled("CUDA"):
            warnings.warn(f"{obstacle}; computing on the CPU", stacklevel=2)
        return _cpu(0, f"the CPU: {obstacle}")
    return Device(mx.gpu(), "GPU 0, which MXNet can use")


def _cpu(number: int, why: str) -> Device:
    unknown_setting = processor.why_unknown(os.environ.get(processor.VARIABLE, processor.ALL))
    if unknown_setting:
        warnings.warn(unknown_setting, stacklevel=3)
    return Device(mx.cpu(number), why)


def choose_several(name: str = "auto") -> list[Device]:
    """The devices for a name that `choose` knows, or for several of a kind: ``gpu:0,1``, ``cpu:0,1``.

    Raises as `choose` does, and InvalidValueError for one that is named twice.
    """
    match = re.fullmatch(r"(cpu|gpu|cuda):(\d+(?:,\d+)+)", name)
    if match is None:
        return [choose(name)]
    numbers = [int(number) for number in match[2].split(",")]
    if len(set(numbers)) < len(numbers):
        nearest = ",".join(str(number) for number in dict.fromkeys(numbers))
        raise InvalidValueError(f"device {name!r} names one twice; nearest: {match[1]}:{nearest}")
    return [choose(f"{match[1]}:{number}") for number in numbers]


def gpu_obstacle(number: int = 0) -> str:
    """Why MXNet cannot compute on GPU `number`, in words; an empty string where it can."""
    if not mx.runtime.Features().is_enabled("CUDA"):
        return "this is the CPU build of MXNet (for NVIDIA GPUs: pip install '.[gpu]' in the checkout)"
    capabilities = machine.compute_capabilities()
    if number >= len(capabilities):
        return f"there is no GPU {number}: NVIDIA's driver lists {len(capabilities)}"
    capability = capabilities[number]
    if not OLDEST <= capability <= NEWEST:
        found, oldest, newest = ("{}.{}".format(*version) for version in (capability, OLDEST, NEWEST))
        return (
            f"GPU {number} has compute capability {found}, and MXNet 1.9.1 has code for {oldest} to {newest} "
            "(Maxwell to Ada; not Hopper, not Blackwell)"
        )
    return ""
