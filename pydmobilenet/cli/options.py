"""What the command lines share: a user's mistake is one line on standard error and exit code 2, never a traceback."""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from .. import checkpoints, fetching, files, processes
from ..errors import EngineError, UserError, nearest, of_engine, unknown
from ..gluon import runtime
from ..machine import available_processors
from ..text import printable

# Seconds. All processes that torchrun has started on a machine meet a mistake. The first one tells of it, whereupon
# torchrun ends the others; one that has met it alone tells of it after this time.
FIRST_SPEAKS = 5
WEIGHTS_FILES = "a .params, .safetensors or .pth file, a directory in Hugging Face's layout"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the project: one line, with the nearest choice for an unknown one."""

    def parse_args(  # type: ignore[override]  # argparse's takes a namespace of any class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's, but for an unknown option the error names the nearest of those that the command has."""
        found, unknown_ones = self.parse_known_args(args, namespace)
        if unknown_ones:
            parser = self.commands().get(str(getattr(found, "command", "")), self)
            near = nearest(unknown_ones[0].partition("=")[0], parser._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown_ones)}{near}")
        return found

    def error(self, message: str) -> NoReturn:
        unknown_command = re.search(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if unknown_command:
            choices = [choice.strip("'\" ") for choice in unknown_command[2].split(",")]
            message = str(unknown("command", unknown_command[1], choices))
        raise UserError(message)

    def commands(self) -> dict[str, Parser]:
        """The parsers of the commands by name; none where there are no commands."""
        actions = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return next((action.choices for action in actions), {})


def exit_with(main: Callable[[], int], program: str) -> NoReturn:
    """Run a command and exit with the code that it returns; for an error its own, which is 2 for a user's mistake and 1
    for what an engine throws; 130 for an interruption, 141 for a pipe that was closed.

    What a terminal's encoding lacks is written as an escape; `text.printable` is for what no terminal should get.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {printable(message)}\n"
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        if processes.local_rank() > 0 and not isinstance(error, EngineError):
            time.sleep(FIRST_SPEAKS)
        print(f"{program}: error: {printable(error)}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (OSError, ImportError) as error:  # a full disk behind standard output; a library that is not installed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{program}: error: {printable(error)}", file=sys.stderr)
        code = 2
    except Exception as error:
        failure = of_engine(error)
        if failure is None:
            raise
        print(f"{program}: error: {printable(failure)}", file=sys.stderr)
        code = failure.exit_code
    sys.exit(code)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", metavar="NAME", help="cifar10 (default), digits, ...; of a run, its own")


def add_device(parser: argparse.ArgumentParser) -> None:
    text = "auto (default), cpu, gpu, gpu:N, mps; or N for GPU N"
    parser.add_argument("-g", "--device", default="auto", help=text)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=directory, metavar="DIR", help="where the data is, or is to be put")


def add_skip_bad(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip-bad", action="store_true", help="pass over images that cannot be read")


def add_weights_dir(parser: argparse.ArgumentParser) -> None:
    text = "where published weights are, or are to be put"
    parser.add_argument("--weights-dir", type=directory, metavar="DIR", help=text)


def add_engine(parser: argparse.ArgumentParser) -> None:
    text = "gluon, pytorch, onnxruntime, or auto (default): Gluon where MXNet is installed and can use the device"
    parser.add_argument("--engine", default="auto", metavar="NAME", help=text)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Options that name one network and its weights: the arguments of `checkpoints.find`."""
    parser.add_argument("-m", "--model", metavar="NAME", help="as pyd-concat-56-0.5; of a run, its own")
    add_dataset(parser)
    text = f"a run, {WEIGHTS_FILES}, or published (default): the authors' weights, or the bundled ones"
    parser.add_argument("--weights", default=checkpoints.PUBLISHED, metavar="PATH", help=text)
    text = "pixels, wide and high, that images are resized to (default: those it was trained with)"
    parser.add_argument("--image-size", type=positive, metavar="N", help=text)
    add_weights_dir(parser)


def use_all_processors() -> None:
    """Let engines use all of this machine, in a process that does nothing but answer."""
    runtime.use_all_instructions()
    # PyTorch reads it when it is imported, and does not know of a control group's quota by itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(available_processors()))


def add_pattern(parser: argparse.ArgumentParser) -> None:
    """Options that select rows of the tables, for `catalog.select`."""
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="as 'pyd-concat-*' (default: all)")
    text = "of the tables (default: all)"
    parser.add_argument("-d", "--dataset", nargs="+", default=["*"], metavar="NAME", help=text)


def terminal_width() -> int | None:
    """How many characters a line of the terminal has that standard output goes to; None where it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """An argument that is a whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} (allowed: a whole number from {least})")
    return value


def directory(text: str) -> Path:
    """An argument that is a directory which is there."""
    path = _path(text)
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"no such directory: {path}")
    return path


def output_file(text: str) -> Path:
    """An argument that is a file to write; ``-`` is standard output."""
    return files.STDOUT if text == "-" else _path(text)


def status_stream(output: Path) -> TextIO:
    """Where to tell of an output: not in its midst, where it is a stream."""
    return sys.stdout if files.stream(output) in (None, 2) else sys.stderr


def _path(text: str) -> Path:
    try:
        return fetching.expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
