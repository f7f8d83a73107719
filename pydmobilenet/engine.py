"""The engines beside each other: what each of them does, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from .errors import UnusableError, unknown
from .gluon import runtime
from .network import Network

ENGINES = ("gluon", "onnxruntime")
Arrays = Mapping[str, np.ndarray]
"""Parameters by their full names."""
Predict = Callable[[np.ndarray], np.ndarray]
"""Normalised images (N, 3, 32, 32) in float32 to logits (N, outputs)."""


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
    """The engine of a name, on a device. ``auto`` is Gluon, the reference, where MXNet can be used, else ONNX Runtime.

    Engines fold the networks (`folding.fold`) unless `fused` says otherwise. Raises InvalidValueError for an unknown
    engine or device, UnusableError for one that this machine does not have.
    """
    if engine not in ("auto", *ENGINES):
        raise unknown("engine", engine, ("auto", *ENGINES))
    obstacle = runtime.obstacle() if engine != "onnxruntime" else ""
    if engine == "gluon" and obstacle:
        raise UnusableError(f"engine 'gluon': {obstacle}; nearest: onnxruntime")
    if engine == "onnxruntime" or obstacle:
        made = _onnxruntime(device, fused)
        return Choice(made, f"ONNX Runtime, {'as ' + obstacle if obstacle else 'as asked for'}")
    from .gluon.inference import GluonEngine

    return Choice(GluonEngine(device, fused), f"Gluon, {'as asked for' if engine == 'gluon' else 'the reference'}")


class TrainerChoice(NamedTuple):
    """What makes a trainer of a configuration for a task, on which device, and in words why."""

    make_trainer: Callable
    device: str
    why: str


def choose_trainer(device: str = "auto") -> TrainerChoice:
    """The engine that trains, on a device or several of a kind: ``gpu:0,1``.

    Raises UnusableError where MXNet cannot be used, and as `choose` does for the device.
    """
    if runtime.obstacle():
        raise UnusableError(f"training needs MXNet: {runtime.obstacle()}")
    from .gluon import devices, trainer

    chosen = devices.choose_several(device)
    make = partial(trainer.make, contexts=[each.context for each in chosen])
    return TrainerChoice(make, "; ".join(each.why for each in chosen), "Gluon, the only one that trains")


def _onnxruntime(device: str, fused: bool) -> Engine:
    check_onnxruntime()
    from .onnx.session import OnnxRuntimeEngine

    return OnnxRuntimeEngine(device, fused)


def check_onnxruntime() -> None:
    """Raises UnusableError where ONNX or ONNX Runtime cannot be imported."""
    try:
        from .onnx import session  # noqa: F401
    except ImportError as error:
        raise UnusableError(f"ONNX Runtime cannot be imported ({error}): pip install onnx onnxruntime") from error
