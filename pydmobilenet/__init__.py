"""PydMobileNet (Hoang and Jo, 2018, arXiv 1811.07083): networks, training, validation. Imports no engine."""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):  # noqa: UP036
    raise ImportError(f"Python {sys.version.split()[0]} is too old for pydmobilenet (allowed: 3.9 and newer)")

from .gluon import runtime

runtime.prepare()  # imports no engine

from .catalog import list_models  # noqa: E402
from .errors import StopTraining, nearest  # noqa: E402

__version__ = "0.4.0"
__all__ = [
    "StopTraining",
    "array_dataset",
    "compare",
    "export",
    "get_dataset",
    "get_model",
    "list_models",
    "predict",
    "train",
    "validate",
]


def __getattr__(name: str):
    if name in __all__:  # imported on use: the package itself is there at once
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
