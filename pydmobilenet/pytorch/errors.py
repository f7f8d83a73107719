"""What PyTorch throws, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError, engine_error


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turns PyTorch's errors, which are plain RuntimeErrors, into EngineErrors."""
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        message = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise engine_error("PyTorch", message) from error  # later lines are CUDA's advice to programmers
