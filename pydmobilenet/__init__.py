"""PydMobileNet (Hoang and Jo, 2018, arXiv 1811.07083): networks, training, validation. Imports no engine."""

from __future__ import annotations

import os
import sys


def _excepthook(kind: type, error: BaseException, trace: object) -> None:
    """One line for an interruption of ``python -m pydmobilenet…`` while it still imports; later, `cli.run` has it."""
    if kind is KeyboardInterrupt and sys.argv[0].startswith(("-m", os.path.dirname(__file__))):
        print("pydmobilenet: interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # as long as `python -m` imports the package that it is to run
    sys.excepthook = _excepthook

from .gluon import runtime  # noqa: E402

runtime.prepare()

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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
