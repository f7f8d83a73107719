"""What PyTorch throws, in words."""

from __future__ import annotations

import re
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
        # Later lines are CUDA's advice to programmers; gloo begins with a place in its code and ends with advice.
        message = re.sub(r"^\[\S+:\d+\] |\. This is typically caused by .*", "", message)
        raise engine_error("PyTorch", message) from error
