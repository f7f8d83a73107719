"""PyTorch's devices and errors."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .. import machine
from ..devices import Device, parse, select
from ..errors import InvalidValueError, UnusableError, UserError, engine_error
from ..processes import launched


def choose(name: str | Device = "auto") -> Device:
    """Choose a ``torch.device`` by name.

    Raises InvalidValueError for an unknown name, and UnusableError for a device that PyTorch cannot use.
    """
    if isinstance(name, Device):
        return name
    wanted = parse(name)
    if (several := len(wanted.numbers)) > 1:
        nearest = f"{wanted.kind}:{wanted.numbers[0]}"
        how = f"several GPUs: torchrun --nproc-per-node {several} train.py ..."
        raise InvalidValueError(f"device {name!r}: {how}; nearest: {nearest}")
    (device,) = select(wanted, "PyTorch", gpus(), device_obstacle, _device)
    if wanted.kind == "auto" and device.device.type == "cpu" and torch.xpu.is_available():
        warnings.warn("Intel's GPUs (xpu) are not supported; computing on the CPU", stacklevel=3)
    return device


def choose_for_rank(name: str = "auto") -> Device:
    """Choose a device for training. Under torchrun, each process of a machine takes its own GPU."""
    wanted = parse(name)
    if not launched() or wanted.kind in ("cpu", "mps"):
        if wanted.kind == "mps" and launched() and int(os.environ["WORLD_SIZE"]) > 1:
            raise UnusableError(f"device {name!r}: torchrun's processes need one GPU each; nearest: --device cpu")
        return choose(name)
    if wanted.numbers:
        raise UnusableError(f"device {name!r}: torchrun's processes need one each (allowed: cpu, gpu; nearest: gpu)")
    if wanted.kind == "auto" and not gpus():
        return choose("cpu")
    size = int(os.environ["LOCAL_WORLD_SIZE"])
    if obstacle := device_obstacle("gpu", size - 1):  # checked by all, so that all end
        raise UnusableError(f"{size} processes of torchrun on this machine: {obstacle}; nearest: --device cpu")
    return choose(f"gpu:{os.environ['LOCAL_RANK']}")


def _device(kind: str, number: int) -> torch.device:
    return torch.device("cuda", number) if kind == "gpu" else torch.device(kind)


def gpus() -> int:
    """Count PyTorch's GPUs, supported by this build or not."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_obstacle(kind: str = "gpu", number: int = 0) -> str:
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
        major, minor = capability
        return f"GPU {number} has compute capability {major}.{minor}; this build of PyTorch supports {', '.join(names)}"
    return ""


def has_code(capability: tuple[int, int], names: list[str]) -> bool:
    """Return whether a build for ``sm_86`` or ``compute_90`` runs on a GPU.

    Machine code (``sm``) runs on the same major version from its minor version on, PTX (``compute``) on all newer ones.
    """
    for name in names:
        kind, major, minor = re.fullmatch(r"(\w+)_(\d+)(\d)[a-z]?", name).groups()  # type: ignore[union-attr]
        code = int(major), int(minor)
        if code <= capability and (kind == "compute" or code[0] == capability[0]):
            return True
    return False


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn PyTorch's errors, plain RuntimeErrors, into EngineErrors."""
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        message = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        # Later lines are CUDA's advice to programmers; gloo's begin with a source line and end with advice.
        message = re.sub(r"^\[\S+:\d+\] |\. This is typically caused by .*", "", message)
        raise engine_error("PyTorch", message) from error
