"""Errors on one line: the value, what is allowed, and the nearest valid choice.

The commands print a `UserError` and exit with code 2; any other exception is a bug.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# The engines' packages and their names.
ENGINES = {"mxnet": "MXNet", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "onnx": "ONNX"}
# Names of options, arguments, keys and functions in other projects, and here.
SYNONYMS = {
    "arch": "model",
    "batch": "batch_size",
    "checkpoint": "weights",
    "classes": "dataset",
    "create_model": "get_model",
    "ctx": "device",
    "data": "data_dir",
    "data_path": "data_dir",
    "evaluate": "validate",
    "gpu": "device",
    "gpus": "device",
    "load_model": "get_model",
    "lr": "learning_rate",
    "num_classes": "classes",
    "num_epochs": "epochs",
    "out": "output",
    "output_dir": "output",
    "params": "weights",
    "root": "weights_dir",
    "wd": "weight_decay",
}


class UserError(Exception):
    """A user's mistake; the message says how to correct it."""

    exit_code = 2


class InvalidValueError(UserError, ValueError):
    """An invalid name or value."""


class BadFileError(UserError, ValueError):
    """A file with invalid content; never used, never overwritten."""


class MissingFileError(UserError, FileNotFoundError):
    """A file found neither on this machine nor on the network."""


class UnusableError(UserError, OSError):
    """A device, directory or package that is not available here."""


class EngineError(UserError, RuntimeError):
    """A failure inside an engine: an unsupported kernel, no memory."""

    exit_code = 1


class StopTraining(Exception):
    """Raised by ``on_epoch``, it ends a run in good order."""


class Interrupted(KeyboardInterrupt):
    """A signal has ended training. The run is saved in `directory`; `exit_code` is 128 plus the signal's number."""

    def __init__(self, directory: Path, exit_code: int):
        super().__init__(f"the run is saved: continue it with resume={str(directory)!r}")
        self.directory, self.exit_code = directory, exit_code


def of_engine(error: BaseException) -> EngineError | None:
    """Return an engine's exception, or a MemoryError, as an `EngineError`; None for any other.

    The package of its class tells the engine, so none has to be imported.
    """
    if isinstance(error, EngineError):
        return error
    if isinstance(error, MemoryError):
        return EngineError(f"no memory is left ({engine_words(error) or 'MemoryError'}): a smaller batch needs less")
    package = type(error).__module__.partition(".")[0]
    if package not in ENGINES:
        return None
    return engine_error(ENGINES[package], engine_words(error))


def engine_error(engine: str, words: str) -> EngineError:
    """Return an engine's error, with advice."""
    advice = ""
    if "memory" in words.lower():
        advice = " (a smaller batch needs less)"
    elif "CUDA" in words:
        advice = " (--device cpu may help)"
    elif any(sign in words for sign in ("by peer", "Broken pipe", "remote process")):
        advice = " (another process of this training has ended)"
    elif engine == ENGINES["mxnet"]:  # its oneDNN may lack a kernel
        advice = " (DNNL_MAX_CPU_ISA=AVX2 or SSE41 may help)"
    return EngineError(f"{engine} has failed: {words[:300]}{advice}")


def engine_words(error: BaseException) -> str:
    """Return the last line of an engine's error; a stack trace may precede it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("MXNetError: ")[:300] if lines else type(error).__name__


def unknown(kind: str, value: object, choices: Iterable[object], allowed: str = "") -> InvalidValueError:
    """Return the error for a `value` outside of `choices`; `allowed` describes a long list."""
    names = [str(choice) for choice in choices]
    return InvalidValueError(
        f"unknown {kind} {str(value)!r}{nearest(value, names)} (allowed: {allowed or ', '.join(names)})"
    )


def nearest(value: object, choices: Iterable[str]) -> str:
    """Return ``; nearest: …`` with the synonym of a value, or up to three similar choices, or nothing."""
    spelt = {_plain(choice): choice for choice in choices}
    word = _plain(str(value))
    meant = SYNONYMS.get(word, word)
    meant = meant if meant in spelt else SYNONYMS.get(meant, meant)
    if meant in spelt:
        return f"; nearest: {spelt[meant]}"
    near = difflib.get_close_matches(word, spelt, n=3, cutoff=0.4)
    return f"; nearest: {', '.join(spelt[choice] for choice in near)}" if near else ""


def _plain(word: str) -> str:
    """Return a name without the differences between an option, an argument and a key."""
    return word.lstrip("-").replace("-", "_").lower()


def hinted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function: its error for an unknown argument names the nearest one."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        for name in named:
            if name not in known:
                raise TypeError(f"{function.__name__} has no argument {name!r}{nearest(name, known)}")
        return function(*arguments, **named)

    return call
