"""The engines beside each other: what each of them does, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from .errors import UnusableError, unknown
from .network import Network

ENGINES = ("gluon", "onnxruntime")
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

    def load(self, network: Network, arrays: Mapping[str, np.ndarray]) -> Predict:
        """The network with these parameters, by their full names."""
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
    from .gluon import runtime

    obstacle = runtime.obstacle() if engine != "onnxruntime" else ""
    if engine == "gluon" and obstacle:
        raise UnusableError(f"engine 'gluon': {obstacle}; nearest: onnxruntime")
    if engine == "onnxruntime" or obstacle:
        made = _onnxruntime(device, fused)
        return Choice(made, f"ONNX Runtime, {'as ' + obstacle if obstacle else 'as asked for'}")
    from .gluon.inference import GluonEngine

    return Choice(GluonEngine(device, fused), f"Gluon, {'as asked for' if engine == 'gluon' else 'the reference'}")


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
