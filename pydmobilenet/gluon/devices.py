"""Which device MXNet computes on: a GPU that the wheel has no code for is refused before any kernel runs."""

from __future__ import annotations

import os
import warnings

import mxnet as mx

from .. import machine
from ..devices import Device, parse, take
from ..errors import InvalidValueError

# The GPU wheels of MXNet 1.9.1 hold machine code for sm_50 to sm_86 and nothing to compile for newer cards from;
# sm_86 code runs on 8.9 too.
OLDEST, NEWEST = (5, 0), (8, 9)


def choose(name: str | Device = "auto") -> Device:
    """Choose one context by its name. Raises InvalidValueError for several, and as `choose_several` does."""
    if isinstance(name, Device):
        return name
    first, *others = choose_several(name)
    if others:
        raise InvalidValueError(f"device {name!r}: several are for training; nearest: {name.partition(',')[0]}")
    return first


def choose_several(name: str = "auto") -> list[Device]:
    """Choose the contexts that a name stands for.

    Raises InvalidValueError for an unknown name, and UnusableError for a device that MXNet cannot use.
    """
    found = [
        Device(mx.Context(kind, number), why) for kind, number, why in take(parse(name), "MXNet", gpus(), obstacle)
    ]
    unknown_setting = machine.why_unknown(os.environ.get(machine.VARIABLE, machine.ALL))
    if unknown_setting and found[0].device.device_type == "cpu":
        warnings.warn(unknown_setting, stacklevel=2)
    return found


def gpus() -> int:
    """Count the GPUs, of which MXNet may have no code for some; a CPU build has none."""
    return len(machine.compute_capabilities()) if mx.runtime.Features().is_enabled("CUDA") else 0


def obstacle(kind: str = "gpu", number: int = 0) -> str:
    """Say why MXNet cannot compute on a device, or nothing."""
    if kind == "cpu":
        return ""
    if kind == "mps":
        return "MXNet cannot use Apple's GPU"
    if not mx.runtime.Features().is_enabled("CUDA"):
        return "this is the CPU build of MXNet (for NVIDIA GPUs: pip install '.[gpu]' in the checkout)"
    capabilities = machine.compute_capabilities()
    if number >= len(capabilities):
        return f"there is no GPU {number}: NVIDIA's driver lists {len(capabilities)}"
    if not OLDEST <= capabilities[number] <= NEWEST:
        found, oldest, newest = ("{}.{}".format(*version) for version in (capabilities[number], OLDEST, NEWEST))
        return (
            f"GPU {number} has compute capability {found}, and MXNet 1.9.1 has code for {oldest} to {newest} "
            "(Maxwell to Ada; not Hopper, not Blackwell)"
        )
    return ""
