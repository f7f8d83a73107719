"""Engine interface and selection."""

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
from .catalog import parse_name
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
PYRAMIDS = ("conv2d", "triton")  # how PyTorch's training computes them
ONLY_PYTORCH = {  # of what training may be asked for
    "compiled": "--compile",
    "triton": "--pyramid triton",
    "distilled": "distillation (--teacher)",
    "averaged": "moving average (--ema)",
    "qat": "quantisation-aware training (--qat)",
}
DEVICE_MODULES = {"gluon": ".gluon.runtime", "pytorch": ".pytorch.devices", "onnxruntime": ".onnx.session"}
Purpose = Literal["inference", "networks", "training"]
Arrays = Mapping[str, np.ndarray]
"""Parameters by their full names."""
Predict = Callable[[np.ndarray], np.ndarray]
"""Normalised images (N, 3, H, W) in float32 to logits (N, outputs)."""


class Engine(Protocol):
    """Computes the logits of networks. Can be pickled for other processes."""

    name: str

    @property
    def batch_size(self) -> int:
        """Images per call, for speed."""

    @property
    def processes(self) -> int:
        """Processes to run side by side."""

    def load(self, network: Network, arrays: Arrays) -> Predict:
        """Return the network with these parameters."""


@dataclass(frozen=True)
class Choice:
    """An engine by name, its devices, and the `reason` if it is not the default or was not named."""

    name: str
    devices: list[Device]
    reason: str = ""
    fused: bool = True
    compiled: bool = False
    pyramid: str = "conv2d"

    def __str__(self) -> str:
        """``on the CPU with PyTorch (no GPU found)``."""
        titles = " and ".join(device.title for device in self.devices)
        compiling = "compiling first, which may take minutes" if self.compiled else ""
        reasons = "; ".join(filter(None, [self.devices[0].reason, self.reason, compiling]))
        return f"on {titles} with {TITLES[self.name]}{reasons and f' ({reasons})'}"

    @cached_property
    def engine(self) -> Engine:
        """The inference engine; it folds networks (`folding.fold`) if `fused`."""
        if self.name == "gluon":
            from .gluon.inference import GluonEngine

            return GluonEngine(self.devices[0], self.fused)
        if self.name == "pytorch":
            from .pytorch.inference import PyTorchEngine

            return PyTorchEngine(self.devices[0], self.fused)
        from .onnx.session import OnnxRuntimeEngine

        return OnnxRuntimeEngine(self.fused)

    def get_model(self, source: Checkpoint, device: Any) -> Any:
        """Build a checkpoint's network."""
        return importlib.import_module(f".{self.name}.network", __package__).make(source, device)

    def make_trainer(self, config: Config, task: Task, teacher: Checkpoint | None = None) -> Trainer:
        """Build a trainer with fresh parameters. Only PyTorch's learns from a `teacher`."""
        if self.name == "gluon":
            from .gluon import trainer

            return trainer.make(config, task, [device.device for device in self.devices])
        from .pytorch import trainer as pytorch

        return pytorch.make(config, task, self.devices[0].device, self.compiled, teacher, self.pyramid)


def choose(
    engine: str = "auto",
    device: str = "auto",
    purpose: Purpose = "inference",
    family: str | None = None,
    dtype: str = "float32",
    fused: bool = True,
    compiled: bool = False,
    pyramid: str = "conv2d",
    **asked: bool,
) -> Choice:
    """Choose an engine for inference, for networks of one `family`, or for their training.

    ``auto`` takes Gluon, the reference, if MXNet can do it; else PyTorch for a GPU, networks and training, and ONNX
    Runtime for inference. Training with Gluon takes several devices: ``gpu:0,1``. What else is `asked` of training is
    one of `ONLY_PYTORCH`. Raises InvalidValueError for an unknown engine, device or `pyramid` (`PYRAMIDS`),
    UnusableError for an unavailable one.
    """
    engines = check_name(engine, purpose)
    if pyramid not in PYRAMIDS:
        raise unknown("pyramid", pyramid, PYRAMIDS)
    wanted = devices.parse(device)
    asked = {"compiled": compiled, "triton": pyramid == "triton", **asked}
    lack = "" if purpose == "inference" else _gluon_lacks(purpose, family, dtype, asked)
    name, reason = (engine, "") if engine != "auto" else _best(wanted, purpose, lack)
    if problem := obstacle(name):
        nearest = next((f"; nearest: {other}" for other in engines[::-1] if other != name and not obstacle(other)), "")
        raise UnusableError(f"engine {name!r}: {problem}{nearest}")
    if name == "gluon" and lack:
        raise UnusableError(f"engine 'gluon' {lack}; nearest: pytorch")
    return Choice(name, _devices(name, device, purpose), reason, fused, compiled, pyramid)


def get_model(source: Checkpoint, engine: str = "auto", device: Any = None) -> Any:
    """Build a checkpoint's network with an engine, on a device of its own or by name. Raises as `choose`."""
    return choose(engine, "cpu", "networks", parse_name(source.model).family).get_model(source, device)


def check_name(engine: str, purpose: Purpose) -> tuple[str, ...]:
    """Return the engines for a purpose. Raises InvalidValueError if `engine` is not among them."""
    engines = ENGINES if purpose == "inference" else TRAINERS
    if engine not in ("auto", *engines):
        raise unknown("engine" if purpose == "inference" else f"engine for {purpose}", engine, ("auto", *engines))
    return engines


def _gluon_lacks(purpose: Purpose, family: str | None, dtype: str, asked: Mapping[str, bool]) -> str:
    """Name the first thing that only PyTorch can do, or nothing."""
    if family not in (None, *gluon.FAMILIES):
        return f"has no network of family {family!r}"
    if dtype == "bfloat16":
        return "has no bfloat16 (allowed: float32, on a GPU float16)"
    if wanted := [ONLY_PYTORCH[name] for name, value in asked.items() if value]:
        return f"has no {wanted[0]}"
    return "does not support torchrun" if purpose == "training" and processes.launched() else ""


def _best(wanted: devices.Wanted, purpose: Purpose, lack: str) -> tuple[str, str]:
    """Return the best engine for a device, and the reason unless MXNet is simply not installed."""
    if lack:
        if no_pytorch := obstacle("pytorch"):
            raise UnusableError(f"Gluon {lack}, and {no_pytorch}")
        return "pytorch", f"Gluon {lack}"
    if _only_pytorch_uses_gpu(wanted):
        return "pytorch", ""
    no_gluon = obstacle("gluon")
    if not no_gluon:
        return "gluon", ""
    reason = "" if no_gluon == runtime.NO_MXNET else no_gluon
    if purpose == "inference":
        return "onnxruntime", reason
    if no_pytorch := obstacle("pytorch"):
        what = "training needs" if purpose == "training" else "networks need"
        raise UnusableError(f"{what} MXNet or PyTorch: {no_gluon}; {no_pytorch}")
    return "pytorch", reason


def _only_pytorch_uses_gpu(wanted: devices.Wanted) -> bool:
    """Return whether only PyTorch can use the requested GPU. Imports PyTorch only if there is one."""
    if wanted.kind == "mps":
        return True
    gpu = wanted.kind != "cpu" and (machine.compute_capabilities() or sys.platform == "darwin")
    if not gpu or importlib.util.find_spec("torch") is None:
        return False
    return not _uses_gpu("gluon", wanted) and _uses_gpu("pytorch", wanted)


def _uses_gpu(engine: str, wanted: devices.Wanted) -> bool:
    if obstacle(engine):
        return False
    module = _device_module(engine)
    return any(not module.device_obstacle(*candidate) for candidate in wanted.candidates(module.gpus()))


def _devices(engine: str, device: str, purpose: Purpose) -> list[Device]:
    """Choose an engine's devices. Raises InvalidValueError and UnusableError."""
    module = _device_module(engine)
    if purpose != "training":
        return [module.choose(device)]
    return module.choose_several(device) if engine == "gluon" else [module.choose_for_rank(device)]


def obstacle(engine: str) -> str:
    """Import an engine; say why it cannot be used here, or nothing."""
    if engine == "gluon":
        return runtime.obstacle()
    package, extra = ("torch", "pydmobilenet[torch]") if engine == "pytorch" else ("onnxruntime", "onnxruntime")
    if importlib.util.find_spec(package) is None:
        return f"{TITLES[engine]} is not installed: pip install '{extra}'"
    try:
        _device_module(engine)
    except Exception as error:  # its shared libraries may be missing, or not fit together
        return runtime.import_failure(TITLES[engine], error)
    return ""


def litert(module: str) -> Any:
    """Import a module of ``tflite/``. Raises UnusableError without LiteRT."""
    try:
        return importlib.import_module(f".tflite.{module}", __package__)
    except Exception as error:  # its shared libraries may be missing, or not fit together
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise UnusableError("LiteRT is not installed: pip install 'pydmobilenet[tflite]'") from None
        raise UnusableError(runtime.import_failure("LiteRT", error)) from error


def _device_module(engine: str) -> Any:
    return importlib.import_module(DEVICE_MODULES[engine], __package__)
