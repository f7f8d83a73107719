"""Which device PyTorch computes on, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..errors import InvalidValueError


class Device(NamedTuple):
    """A PyTorch device, and in words which device it is and why it was chosen."""

    device: torch.device
    why: str


def choose(name: str = "auto") -> Device:
    """The device for a name."""
    if name not in ("auto", "cpu"):
        raise InvalidValueError(f"unknown device {name!r} (allowed: auto, cpu; nearest: auto)")
    return Device(torch.device("cpu"), "the CPU")
