"""PydMobileNet (Hoang and Jo, 2018, arXiv 1811.07083): networks, training, validation. Imports no engine."""

from __future__ import annotations

import os
import sys
from types import TracebackType

if sys.version_info < (3, 9):  # noqa: UP036  that is what it is for
    raise ImportError(f"Python {sys.version.split()[0]} is too old for pydmobilenet (allowed: 3.9 and newer)")


def _is_command() -> bool:
    """Whether this process is ``pydmobilenet`` or ``python -m pydmobilenet``, as far as it has come."""
    program = sys.argv[0] if sys.argv else ""
    return program.startswith(("-m", os.path.dirname(__file__))) or os.path.basename(program) == "pydmobilenet"


def _excepthook(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """One line for an interruption of the command while the package is imported; later, `cli` has it."""
    if kind is KeyboardInterrupt and _is_command():
        print("pydmobilenet: interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


if _is_command():
    sys.excepthook = _excepthook

from .gluon import runtime  # noqa: E402

runtime.prepare()  # which imports no engine

from .catalog import list_models  # noqa: E402
from .errors import nearest  # noqa: E402

__version__ = "0.4.0"
__all__ = ["export", "get_dataset", "get_model", "list_models", "predict", "train", "validate"]


def __getattr__(name: str):
    if name in __all__:  # imported when they are asked for: the package itself is there at once
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
