"""The engines beside each other: what each of them does, and which one is taken."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from . import machine, processes
from .errors import UnusableError, unknown
from .gluon import runtime
from .network import Network

ENGINES = ("gluon", "pytorch", "onnxruntime")
TRAINERS = ("gluon", "pytorch")
Arrays = Mapping[str, np.ndarray]
"""Parameters by their full names."""
Predict = Callable[[np.ndarray], np.ndarray]
"""Normalised images (N, 3, H, W) in float32 to logits (N, outputs)."""


class Engine(Protocol):
    """What computes the answers of networks. It can be pickled, so that other processes can do the same."""

    name: str
    device: str
    """In words, with the reason for the choice."""

    @property
    def batch_size(self) -> int:
        """How many images a call are fastest."""
        ...

    @property
    def processes(self) -> int:
        """How many processes may work at once."""
        ...

    def load(self, network: Network, arrays: Arrays) -> Predict:
        """The network with these parameters."""
        ...


class Choice(NamedTuple):
    """An engine, and in words why it was chosen."""

    engine: Engine
    why: str


def choose(engine: str = "auto", device: str = "auto", fused: bool = True) -> Choice:
    """The engine of a name, on a device.

    ``auto`` is Gluon, the reference, where MXNet can be used on that device; PyTorch where it alone can use the GPU;
    else ONNX Runtime. Engines fold the networks (`folding.fold`) unless `fused` says otherwise. Raises
    InvalidValueError for an unknown engine or device, UnusableError for one that this machine does not have.
    """
    if engine not in ("auto", *ENGINES):
        raise unknown("engine", engine, ("auto", *ENGINES))
    name, why = (engine, "as asked for") if engine != "auto" else _best(device)
    return Choice(_MAKE[name](device, fused), f"{_TITLES[name]}, {why}")


def _best(device: str) -> tuple[str, str]:
    """The engine for a device, and why."""
    no_gluon = obstacle("gluon")
    if device == "mps":
        return "pytorch", "which alone can use Apple's GPU"
    if _needs_pytorch(device, no_gluon):
        return "pytorch", "which alone can use the GPU"
    return ("onnxruntime", f"as {no_gluon}") if no_gluon else ("gluon", "the reference")


def _needs_pytorch(device: str, no_gluon: str) -> bool:
    """Whether a device, if it is or may be a GPU, is one that PyTorch can use and MXNet, with its obstacle, cannot.

    PyTorch is imported, which takes seconds, where there is such a GPU alone.
    """
    match = re.fullmatch(r"auto|(?:gpu|cuda)(?::(\d+))?", device)
    gpus = range(len(machine.compute_capabilities()))
    if match is None or not (gpus or sys.platform == "darwin") or importlib.util.find_spec("torch") is None:
        return False
    if not no_gluon:
        from .gluon import devices as gluon

        wanted = gpus if device == "auto" else [int(match[1] or 0)]
        if not all(gluon.gpu_obstacle(number) for number in wanted):
            return False
    if obstacle("pytorch"):
        return False
    from .pytorch import devices as pytorch

    try:
        return pytorch.choose(device).device.type != "cpu"
    except UnusableError:
        return False


def choose_framework(engine: str = "auto") -> str:
    """The engine whose networks a user handles: ``gluon`` or ``pytorch``. ``auto`` is Gluon where MXNet can be used.

    Raises InvalidValueError for another name, UnusableError for an engine that this machine does not have.
    """
    if engine not in ("auto", *TRAINERS):
        raise unknown("engine of networks", engine, ("auto", *TRAINERS))
    reasons = []
    for name in TRAINERS if engine == "auto" else [engine]:
        reason = obstacle(name)
        if not reason:
            return name
        reasons.append(reason)
    raise UnusableError("; ".join(reasons))


class TrainerChoice(NamedTuple):
    """What makes a trainer of a configuration for a task, on which device, and in words why."""

    make_trainer: Callable
    device: str
    why: str


def choose_trainer(
    engine: str = "auto", device: str = "auto", dtype: str = "float32", compiled: bool = False
) -> TrainerChoice:
    """The engine that trains, on a device; Gluon also on several of a kind: ``gpu:0,1``.

    ``auto`` is Gluon where MXNet can be used on that device, and PyTorch where it alone can use the GPU or compute in
    the `dtype`, where MXNet is not installed, and in a process that ``torchrun`` has started. `compiled` has PyTorch
    compile the network.

    Raises InvalidValueError for an engine that does not train, UnusableError for one that this machine does not have,
    and as `choose` does for the device.
    """
    if engine not in ("auto", *TRAINERS):
        raise unknown("engine for training", engine, ("auto", *TRAINERS))
    name, why = (engine, "as asked for") if engine != "auto" else _best_trainer(device, dtype)
    make, where = (_gluon_trainer if name == "gluon" else _pytorch_trainer)(device, dtype, compiled)
    return TrainerChoice(make, where, f"{_TITLES[name]}, {why}")


def _best_trainer(device: str, dtype: str) -> tuple[str, str]:
    """The engine that trains on a device, and why."""
    if processes.launched():
        return "pytorch", "as torchrun has started this process"
    no_gluon = obstacle("gluon")
    if dtype == "bfloat16":
        return "pytorch", f"which alone computes in {dtype}"
    if device == "mps" or _needs_pytorch(device, no_gluon):
        return "pytorch", "which alone can use the GPU"
    if not no_gluon:
        return "gluon", "the reference"
    if no_pytorch := obstacle("pytorch"):
        raise UnusableError(f"training needs MXNet or PyTorch: {no_gluon}; {no_pytorch}")
    return "pytorch", f"as {no_gluon}"


def _gluon_trainer(device: str, dtype: str, compiled: bool) -> tuple[Callable, str]:
    _check("gluon", nearest="pytorch")
    if processes.launched():
        raise UnusableError("engine 'gluon' does not know torchrun, which has started this process; nearest: pytorch")
    if dtype == "bfloat16":
        raise UnusableError("engine 'gluon' has no bfloat16 (allowed: float32, on a GPU float16); nearest: pytorch")
    if compiled:
        raise UnusableError("engine 'gluon' compiles its networks anyway: --compile is of engine pytorch")
    from .gluon import devices, trainer

    chosen = devices.choose_several(device)
    make = partial(trainer.make, contexts=[each.context for each in chosen])
    return make, "; ".join(each.why for each in chosen)


def _pytorch_trainer(device: str, dtype: str, compiled: bool) -> tuple[Callable, str]:
    _check("pytorch", nearest="" if obstacle("gluon") else "gluon")
    from .pytorch import distributed, trainer

    chosen = distributed.choose_device(device)
    return partial(trainer.make, device=chosen.device, compiled=compiled), chosen.why


def obstacle(engine: str) -> str:
    """Why ``gluon`` or ``pytorch`` cannot be used here, in words; an empty string where it can. Imports it."""
    return runtime.obstacle() if engine == "gluon" else pytorch_obstacle()


def _check(engine: str, nearest: str) -> None:
    """Raises UnusableError where ``gluon`` or ``pytorch`` cannot be used, with the `nearest` engine if there is one."""
    if reason := obstacle(engine):
        raise UnusableError(f"engine {engine!r}: {reason}" + (f"; nearest: {nearest}" if nearest else ""))


def pytorch_obstacle() -> str:
    """Why PyTorch cannot be used here, in words; an empty string where it can. Imports it."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'pydmobilenet[torch]'"
    try:
        from .pytorch import devices  # noqa: F401
    except Exception as error:  # its shared libraries may be missing, or not fit together
        return f"PyTorch cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return ""


def check_onnxruntime() -> None:
    """Raises UnusableError where ONNX or ONNX Runtime cannot be imported."""
    try:
        from .onnx import session  # noqa: F401
    except ImportError as error:
        raise UnusableError(f"ONNX Runtime cannot be imported ({error}): pip install onnx onnxruntime") from error


def _gluon(device: str, fused: bool) -> Engine:
    _check("gluon", nearest="onnxruntime")
    from .gluon.inference import GluonEngine

    return GluonEngine(device, fused)


def _pytorch(device: str, fused: bool) -> Engine:
    _check("pytorch", nearest="onnxruntime")
    from .pytorch.inference import PyTorchEngine

    return PyTorchEngine(device, fused)


def _onnxruntime(device: str, fused: bool) -> Engine:
    check_onnxruntime()
    from .onnx.session import OnnxRuntimeEngine

    return OnnxRuntimeEngine(device, fused)


_MAKE: dict[str, Callable[[str, bool], Engine]] = {
    "gluon": _gluon,
    "pytorch": _pytorch,
    "onnxruntime": _onnxruntime,
}
_TITLES = {"gluon": "Gluon", "pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}
