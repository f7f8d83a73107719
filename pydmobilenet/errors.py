"""Mistakes that a user can mend: one line that names the value, what is allowed and the nearest valid choice.

The scripts print a `UserError` on one line and exit with code 2; everything else is a fault of the program.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

# The packages that engines come in, and how people call them.
ENGINES = {"mxnet": "MXNet", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "onnx": "ONNX"}
# What other projects call an option, an argument, a key or a function, and what it is called here.
SYNONYMS = {
    "arch": "model",
    "batch": "batch_size",
    "checkpoint": "weights",
    "classes": "dataset",  # which tells them
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
    """A mistake that the user can mend; the text says how."""

    exit_code = 2


class InvalidValueError(UserError, ValueError):
    """A name or value that is none of the allowed ones."""


class BadFileError(UserError, ValueError):
    """A file that is not what it has to be; it is never used and never overwritten."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that is neither on this machine nor to be had from the network."""


class UnusableError(UserError, OSError):
    """A device, directory or package that this machine does not offer."""


class EngineError(UserError, RuntimeError):
    """What an engine has thrown, in words: a kernel that cannot be made, no memory."""

    exit_code = 1


def of_engine(error: BaseException) -> EngineError | None:
    """What an engine or the memory's end has thrown as an `EngineError`, None for anything else.

    An engine's own errors are told by the package that their class comes from, so that none has to be imported.
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
    """What an engine has thrown, `words`, with what to do."""
    advice = ""
    if "memory" in words.lower():
        advice = " (a smaller batch needs less)"
    elif "CUDA" in words:
        advice = " (--device cpu may help)"
    elif any(sign in words for sign in ("by peer", "Broken pipe", "remote process")):
        advice = " (another process of this training has ended)"
    elif engine == ENGINES["mxnet"]:  # a kernel that its oneDNN lacks
        advice = " (DNNL_MAX_CPU_ISA=AVX2 or SSE41 may help)"
    return EngineError(f"{engine} has failed: {words[:300]}{advice}")


def engine_words(error: BaseException) -> str:
    """What an engine's error says, on one line: the last one, as a trace of the engine's own code may come before."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("MXNetError: ")[:300] if lines else type(error).__name__


def unknown(kind: str, value: object, choices: Iterable[object], allowed: str = "") -> InvalidValueError:
    """The error for a `value` that is none of `choices`; `allowed` describes them where a list would be too long."""
    names = [str(choice) for choice in choices]
    return InvalidValueError(
        f"unknown {kind} {str(value)!r}{nearest(value, names)} (allowed: {allowed or ', '.join(names)})"
    )


def nearest(value: object, choices: Iterable[str]) -> str:
    """``; nearest: …`` with the choice that a value is a synonym of, or up to three that are like it, or nothing."""
    spelt = {_plain(choice): choice for choice in choices}
    word = _plain(str(value))
    meant = SYNONYMS.get(word, word)
    meant = meant if meant in spelt else SYNONYMS.get(meant, meant)
    if meant in spelt:
        return f"; nearest: {spelt[meant]}"
    near = difflib.get_close_matches(word, spelt, n=3, cutoff=0.4)
    return f"; nearest: {', '.join(spelt[choice] for choice in near)}" if near else ""


def _plain(word: str) -> str:
    """A name without what differs between an option, an argument and a key."""
    return word.lstrip("-").replace("-", "_").lower()


def hinted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose error for an unknown argument names the nearest one."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        for name in named:
            if name not in known:
                raise TypeError(f"{function.__name__} has no argument {name!r}{nearest(name, known)}")
        return function(*arguments, **named)

    return call
