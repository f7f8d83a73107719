"""PydMobileNet (Hoang and Jo, 2018, arXiv 1811.07083) in Apache MXNet's Gluon."""

from __future__ import annotations

from . import _runtime

_runtime.prepare()

from .catalog import list_models  # noqa: E402

__version__ = "0.1.0"
__all__ = ["get_dataset", "get_model", "list_models"]


def __getattr__(name: str):
    # MXNet takes more than a second to import: it is left until a network is asked for.
    if name == "get_model":
        from .zoo import get_model

        return get_model
    if name == "get_dataset":
        from .data import get_dataset

        return get_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
