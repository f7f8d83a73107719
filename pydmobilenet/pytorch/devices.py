"""Which device PyTorch computes on, and why."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from .. import machine
from ..errors import InvalidValueError, UnusableError


class Device(NamedTuple):
    """A device of PyTorch's, and in words which one it is and why it was chosen."""

    device: torch.device
    why: str


def choose(name: str = "auto") -> Device:
    """The device for ``auto``, ``cpu``, ``gpu``, ``gpu:N``, which ``cuda`` and ``cuda:N`` are too, or ``mps``.

    ``auto`` is the first GPU that PyTorch can use, else Apple's GPU, else the CPU. Raises InvalidValueError for another
    name, and UnusableError for a device that is absent or that PyTorch cannot use.
    """
    if re.fullmatch(r"(gpu|cuda):\d+(,\d+)+", name):
        number = re.split("[:,]", name)[1]
        processes = name.count(",") + 1
        raise InvalidValueError(
            f"device {name!r}: several GPUs: torchrun --nproc-per-node {processes} train.py ...; nearest: gpu:{number}"
        )
    match = re.fullmatch(r"auto|cpu|mps|(?:gpu|cuda)(?::(\d+))?", name)
    if match is None:
        raise InvalidValueError(f"unknown device {name!r} (allowed: auto, cpu, gpu, gpu:N, mps; nearest: auto)")
    if name == "auto":
        return _best()
    if name == "cpu":
        return Device(torch.device("cpu"), "the CPU, as asked for")
    number = int(match[1] or 0)
    obstacle = mps_obstacle() if name == "mps" else gpu_obstacle(number)
    if obstacle:
        raise UnusableError(f"device {name!r}: {obstacle}; nearest: cpu")
    if name == "mps":
        return Device(torch.device("mps"), "Apple's GPU, as asked for")
    return Device(torch.device("cuda", number), f"GPU {number}, as asked for")


def _best() -> Device:
    obstacle = gpu_obstacle(0)
    for number in range(max(1, torch.cuda.device_count())):
        if not gpu_obstacle(number):
            return Device(torch.device("cuda", number), f"GPU {number}, which PyTorch can use")
    if not mps_obstacle():
        return Device(torch.device("mps"), "Apple's GPU, which PyTorch can use")
    return Device(torch.device("cpu"), f"the CPU: {obstacle}")


def gpu_obstacle(number: int = 0) -> str:
    """Why PyTorch cannot compute on GPU `number`, in words; an empty string where it can."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return "this is a build of PyTorch without CUDA"
        return f"PyTorch cannot use a GPU here: NVIDIA's driver lists {len(machine.compute_capabilities())}"
    if number >= torch.cuda.device_count():
        return f"there is no GPU {number}: PyTorch finds {torch.cuda.device_count()}"
    capability, names = torch.cuda.get_device_capability(number), torch.cuda.get_arch_list()
    if torch.version.cuda and not has_code(capability, names):
        found = "{}.{}".format(*capability)
        return f"GPU {number} has compute capability {found}, and this build of PyTorch has code for {', '.join(names)}"
    return ""


def has_code(capability: tuple[int, int], names: list[str]) -> bool:
    """Whether a build with code of these names, as ``sm_86`` or ``compute_90``, runs on a GPU of this capability.

    Machine code runs on the same major version from its minor one on; what is to be compiled, on all newer ones.
    """
    for name in names:
        kind, major, minor = re.fullmatch(r"(\w+)_(\d+)(\d)[a-z]?", name).groups()  # type: ignore[union-attr]
        code = int(major), int(minor)
        if code <= capability and (kind == "compute" or code[0] == capability[0]):
            return True
    return False


def mps_obstacle() -> str:
    """Why PyTorch cannot compute on Apple's GPU, in words; an empty string where it can."""
    return "" if torch.backends.mps.is_available() else "PyTorch finds no GPU of Apple's here"
