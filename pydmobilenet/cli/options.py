"""Options of several commands, and the errors of all: a user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from .. import checkpoints, fetching, files, processes
from ..errors import EngineError, UserError, nearest, of_engine, unknown
from ..gluon import runtime
from ..machine import available_processors
from ..text import printable

RANK0_GRACE = 5  # seconds: torchrun's first process reports a mistake of all; another one only if it is alone with it
WEIGHTS_FILES = "a .params, .safetensors or .pth file, a directory in Hugging Face's layout"
NETWORK = ("--model", "--dataset", "--weights", "--image-size", "--weights-dir")  # arguments of `checkpoints.find`


class Parser(argparse.ArgumentParser):
    """A parser with errors of one line; for an unknown command or option they name the nearest one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, extras = super().parse_known_args(args, namespace)
        if extras:
            near = nearest(extras[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(extras)}{near}")
        return values, extras

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise unknown(action.dest, value, action.choices)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def exit_with(main: Callable[[], int], program: str) -> NoReturn:
    """Run a command and exit with its code; for an error with 2 for a user's mistake, 1 for an engine's failure, 130
    for an interruption, 141 for a closed pipe.

    Escapes characters beyond a terminal's encoding.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {printable(message)}\n"
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of a pipe has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        failure = of_engine(error) or error
        if not isinstance(failure, (UserError, OSError, ImportError)):
            raise
        if isinstance(failure, UserError):
            code = failure.exit_code
        else:  # a full disk behind standard output; a library that is not installed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 2
        if processes.local_rank() > 0 and not isinstance(failure, EngineError):
            time.sleep(RANK0_GRACE)
        print(f"{program}: error: {printable(failure)}", file=sys.stderr)
    sys.exit(code)


def use_all_processors() -> None:
    """Let engines use all processors and instructions, in a process without training."""
    runtime.use_all_instructions()
    # PyTorch reads it at its import, and ignores a control group's quota.
    os.environ.setdefault("OMP_NUM_THREADS", str(available_processors()))


def terminal_width() -> int | None:
    """Return the columns of the terminal behind standard output; None if it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def positive(text: str, least: int = 1) -> int:
    """Parse a whole number from `least`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} (allowed: a whole number from {least})")
    return value


natural = partial(positive, least=0)


def directory(text: str) -> Path:
    """Parse the path of an existing directory."""
    path = _path(text)
    if not path.is_dir():
        hint = f" (a file: give its directory, {path.parent})" if path.exists() else ""
        raise argparse.ArgumentTypeError(f"no such directory: {path}{hint}")
    return path


def output_file(text: str) -> Path:
    """Parse the path of a file to write; ``-`` is standard output."""
    return files.STDOUT if text == "-" else _path(text)


def status_stream(output: Path) -> TextIO:
    """Return the stream for messages about `output`: standard error if that is standard output itself."""
    return sys.stdout if files.stream(output) in (None, 2) else sys.stderr


def _path(text: str) -> Path:
    try:
        return fetching.expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


OPTIONS: dict[str, dict[str, Any]] = {
    "--data-dir": {"type": directory, "metavar": "DIR", "help": "read data from DIR, or download it there"},
    "--dataset": {"metavar": "NAME", "help": "cifar10 (default), digits, ...; of a run, its own"},
    "--device": {"default": "auto", "help": "auto (default), cpu, mps, gpu, gpu:N or N; for Gluon's training gpu:0,1"},
    "--engine": {
        "default": "auto",
        "metavar": "NAME",
        "help": "gluon, pytorch, onnxruntime, or auto (default): Gluon if MXNet is installed and can use the device",
    },
    "--image-size": {
        "type": positive,
        "metavar": "N",
        "help": "resize images to N x N pixels (default: the size of the training images)",
    },
    "--model": {"metavar": "NAME", "help": "as pyd-concat-56-0.5; of a run, its own"},
    "--no-cache": {
        "dest": "cache",
        "action": "store_false",
        "help": "decode all pictures again, and keep none for the next run",
    },
    "--skip-bad": {"action": "store_true", "help": "skip unreadable images"},
    "--weights": {
        "default": checkpoints.PUBLISHED,
        "metavar": "PATH",
        "help": f"a run, {WEIGHTS_FILES}, or published (default): the authors' weights, or the bundled ones",
    },
    "--weights-dir": {
        "type": directory,
        "metavar": "DIR",
        "help": "read published weights from DIR, or download them there",
    },
}
SHORT = {"--dataset": ["-d"], "--device": ["-g"], "--model": ["-m"]}


def add(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options of several commands."""
    for name in names:
        parser.add_argument(*SHORT.get(name, []), name, **OPTIONS[name])


def add_pattern(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `catalog.select`."""
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="as 'pyd-concat-*' (default: all)")
    text = "data sets of the tables (default: all)"
    parser.add_argument("-d", "--dataset", nargs="+", default=["*"], metavar="NAME", help=text)
