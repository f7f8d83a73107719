"""What an engine does, and which one is taken."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from . import devices, gluon, machine, processes
from .devices import Device
from .errors import UnusableError, unknown
from .gluon import runtime
from .network import Network

if TYPE_CHECKING:
    from .checkpoints import Checkpoint
    from .data import Task
    from .training.config import Config
    from .training.trainer import Trainer

TITLES = {"gluon": "Gluon", "pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}
ENGINES = tuple(TITLES)
TRAINERS = ("gluon", "pytorch")
Purpose = Literal["answers", "networks", "training"]
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

    @property
    def processes(self) -> int:
        """How many processes may work at once."""

    def load(self, network: Network, arrays: Arrays) -> Predict:
        """Return the network with these parameters."""


@dataclass(frozen=True)
class Choice:
    """An engine by its `name`, the devices that it takes, and in words `why` it was chosen."""

    name: str
    devices: list[Device]
    why: str
    fused: bool = True
    compiled: bool = False

    @property
    def device(self) -> str:
        """The devices in words, with the reason for the choice."""
        return "; ".join(each.why for each in self.devices)

    @cached_property
    def engine(self) -> Engine:
        """What answers; networks are folded (`folding.fold`) if `fused`."""
        if self.name == "gluon":
            from .gluon.inference import GluonEngine

            return GluonEngine(self.devices[0], self.fused)
        if self.name == "pytorch":
            from .pytorch.inference import PyTorchEngine

            return PyTorchEngine(self.devices[0], self.fused)
        from .onnx.session import OnnxRuntimeEngine

        return OnnxRuntimeEngine(self.devices[0], self.fused)

    def get_model(self, source: Checkpoint, device: Any) -> Any:
        """Make the network that a user asks for."""
        return importlib.import_module(f".{self.name}.network", __package__).make(source, device)

    def make_trainer(self, config: Config, task: Task) -> Trainer:
        """Make a trainer with fresh parameters."""
        if self.name == "gluon":
            from .gluon import trainer

            return trainer.make(config, task, [each.device for each in self.devices])
        from .pytorch import trainer as pytorch

        return pytorch.make(config, task, self.devices[0].device, self.compiled)


def choose(
    engine: str = "auto",
    device: str = "auto",
    purpose: Purpose = "answers",
    family: str | None = None,
    dtype: str = "float32",
    fused: bool = True,
    compiled: bool = False,
) -> Choice:
    """Choose an engine for answers, for networks of one `family` that a user handles, or for their training.

    ``auto`` is Gluon, the reference, where MXNet can be used on that device and does what is asked for; PyTorch where
    it alone can; else, for answers, ONNX Runtime. Training with Gluon takes several devices too: ``gpu:0,1``. `fused`
    is for answers, `dtype` and `compiled` are for training. Raises InvalidValueError for an unknown engine or device,
    UnusableError for one that this machine does not have, or that cannot do it.
    """
    engines = check_name(engine, purpose)
    wanted = devices.parse(device)
    lack = "" if purpose == "answers" else _gluon_lacks(purpose, family, dtype, compiled)
    name, why = (engine, "as asked for") if engine != "auto" else _best(wanted, purpose, lack)
    if reason := obstacle(name):
        nearest = next((f"; nearest: {other}" for other in engines[::-1] if other != name and not obstacle(other)), "")
        raise UnusableError(f"engine {name!r}: {reason}{nearest}")
    if name == "gluon" and lack:
        raise UnusableError(f"engine 'gluon' {lack}; nearest: pytorch")
    return Choice(name, _devices(name, device, purpose), f"{TITLES[name]}, {why}", fused, compiled)


def check_name(engine: str, purpose: Purpose) -> tuple[str, ...]:
    """Return the engines for a purpose. Raises InvalidValueError for the name of another one."""
    engines = ENGINES if purpose == "answers" else TRAINERS
    if engine not in ("auto", *engines):
        raise unknown("engine" if purpose == "answers" else f"engine for {purpose}", engine, ("auto", *engines))
    return engines


def _gluon_lacks(purpose: Purpose, family: str | None, dtype: str, compiled: bool) -> str:
    """Say what Gluon, unlike PyTorch, cannot do, as the end of a sentence; or nothing."""
    if family not in (None, *gluon.FAMILIES):
        return f"has no network of family {family!r}"
    if dtype == "bfloat16":
        return "has no bfloat16 (allowed: float32, on a GPU float16)"
    if compiled:
        return "has no --compile"
    return "does not support torchrun" if purpose == "training" and processes.launched() else ""


def _best(wanted: devices.Wanted, purpose: Purpose, lack: str) -> tuple[str, str]:
    """Return the engine for a device, and why."""
    if lack:
        if no_pytorch := obstacle("pytorch"):
            raise UnusableError(f"Gluon {lack}, and {no_pytorch}")
        return "pytorch", f"as Gluon {lack}"
    if _pytorch_alone(wanted):
        return "pytorch", "which alone can use the GPU"
    no_gluon = obstacle("gluon")
    if not no_gluon:
        return "gluon", "the reference"
    if purpose == "answers":
        return "onnxruntime", f"as {no_gluon}"
    if no_pytorch := obstacle("pytorch"):
        what = "training needs" if purpose == "training" else "networks need"
        raise UnusableError(f"{what} MXNet or PyTorch: {no_gluon}; {no_pytorch}")
    return "pytorch", f"as {no_gluon}"


def _pytorch_alone(wanted: devices.Wanted) -> bool:
    """Tell whether PyTorch can use a GPU that is wanted, and MXNet cannot. Only where there is one, import PyTorch."""
    if wanted.kind == "mps":
        return True
    gpu = wanted.kind != "cpu" and (machine.compute_capabilities() or sys.platform == "darwin")
    if not gpu or importlib.util.find_spec("torch") is None:
        return False
    return not _uses_gpu("gluon", wanted) and _uses_gpu("pytorch", wanted)


def _uses_gpu(engine: str, wanted: devices.Wanted) -> bool:
    if obstacle(engine):
        return False
    own = _module(engine)
    return any(not own.obstacle(*each) for each in wanted.candidates(own.gpus()))


def _devices(engine: str, device: str, purpose: Purpose) -> list[Device]:
    """Choose the devices of an engine. Raises InvalidValueError and UnusableError."""
    if purpose != "training":
        return [_module(engine).choose(device)]
    if engine == "gluon":
        return _module(engine).choose_several(device)
    from .pytorch.distributed import choose_device

    return [choose_device(device)]


def obstacle(engine: str) -> str:
    """Say why an engine cannot be used here, or nothing. Imports it."""
    if engine == "gluon":
        return runtime.obstacle()
    package, extra = ("torch", "pydmobilenet[torch]") if engine == "pytorch" else ("onnxruntime", "onnxruntime")
    if importlib.util.find_spec(package) is None:
        return f"{TITLES[engine]} is not installed: pip install '{extra}'"
    try:
        _module(engine)
    except Exception as error:  # its shared libraries may be missing, or not fit together
        return runtime.not_imported(TITLES[engine], error)
    return ""


def _module(engine: str) -> Any:
    """Import the module of an engine that chooses its devices."""
    return importlib.import_module(".onnx.session" if engine == "onnxruntime" else f".{engine}.devices", __package__)
