"""What the command lines share: a user's mistake is one line on standard error and exit code 2, never a traceback."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable

from .errors import UserError


def run(main: Callable[[], int]) -> None:
    """Run a command and exit with the code that it returns; 2 for a user's mistake, 130 for an interruption."""
    program = os.path.basename(sys.argv[0]).replace("__main__.py", __package__)
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {message}\n"
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} (allowed: a whole number from 1)")
    return value


def device_name(text: str) -> str:
    """A device's name; a number is a GPU's and -1 the CPU, as in the authors' runner."""
    if text == "-1":
        return "cpu"
    return f"gpu:{text}" if text.isdigit() else text
