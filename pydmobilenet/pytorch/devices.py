"""Which device PyTorch computes on, and what it throws, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .. import machine
from ..devices import Device, parse, take
from ..errors import InvalidValueError, UserError, engine_error


def choose(name: str | Device = "auto") -> Device:
    """Choose a ``torch.device`` by its name.

    Raises InvalidValueError for an unknown name, and UnusableError for a device that PyTorch cannot use.
    """
    if isinstance(name, Device):
        return name
    wanted = parse(name)
    if (several := len(wanted.numbers)) > 1:
        nearest = f"{wanted.kind}:{wanted.numbers[0]}"
        how = f"several GPUs: torchrun --nproc-per-node {several} train.py ..."
        raise InvalidValueError(f"device {name!r}: {how}; nearest: {nearest}")
    ((kind, number, why),) = take(wanted, "PyTorch", gpus(), obstacle)
    return Device(torch.device("cuda", number) if kind == "gpu" else torch.device(kind), why)


def gpus() -> int:
    """Count the GPUs that PyTorch finds, of which it may have no code for some."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def obstacle(kind: str = "gpu", number: int = 0) -> str:
    """Say why PyTorch cannot compute on a device, or nothing."""
    if kind == "cpu":
        return "PyTorch has one CPU" if number else ""
    if kind == "mps":
        return "" if torch.backends.mps.is_available() else "PyTorch finds no GPU of Apple's here"
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
    """Tell whether a build with code of these names, as ``sm_86`` or ``compute_90``, runs on such a GPU.

    Machine code runs on the same major version from its minor one on; what is to be compiled, on all newer ones.
    """
    for name in names:
        kind, major, minor = re.fullmatch(r"(\w+)_(\d+)(\d)[a-z]?", name).groups()  # type: ignore[union-attr]
        code = int(major), int(minor)
        if code <= capability and (kind == "compute" or code[0] == capability[0]):
            return True
    return False


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turns PyTorch's errors, which are plain RuntimeErrors, into EngineErrors."""
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        message = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        # Later lines are CUDA's advice to programmers; gloo begins with a place in its code and ends with advice.
        message = re.sub(r"^\[\S+:\d+\] |\. This is typically caused by .*", "", message)
        raise engine_error("PyTorch", message) from error
