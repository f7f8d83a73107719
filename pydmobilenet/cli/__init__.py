"""The command line ``pydmobilenet COMMAND``. ``train.py`` and ``run_validation.py`` run one command each."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable


def main(command: str = "") -> None:
    """Run this process's command line, or that of one `command`, and exit with its code."""
    _open_closed_streams()
    program = os.path.basename(sys.argv[0]) if command else "pydmobilenet"
    from .options import exit_with  # after the streams are open: imports open files

    exit_with(lambda: _run(command, program), program)


def _open_closed_streams() -> None:
    """Open a null device for each closed standard stream (``2>&-``), or the next opened file gets its descriptor."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115  for the process's life
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _run(command: str, program: str) -> int:
    from .. import __version__
    from .commands import COMMANDS
    from .options import Parser

    parser = Parser(prog=program, description="PydMobileNet: check the published table, train, classify, export.")
    if command:
        _add_command(parser, *COMMANDS[command])
    else:
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name, (add_options, run) in COMMANDS.items():
            first_sentence = (run.__doc__ or name).partition(".")[0]
            subparser = commands.add_parser(name, help=first_sentence[0].lower() + first_sentence[1:])
            _add_command(subparser, add_options, run)
    text = argparse.SUPPRESS if command else "print the version"  # a script's help must fit one screen
    parser.add_argument("--version", action="version", version=f"pydmobilenet {__version__}", help=text)
    arguments = vars(parser.parse_args())
    arguments.pop("command", None)
    return arguments.pop("run")(**arguments)


def _add_command(
    parser: argparse.ArgumentParser, add_options: Callable[[argparse.ArgumentParser], None], run: Callable[..., int]
) -> None:
    """Make `parser` that of a command: the docstring of `run` becomes its help and epilog."""
    parser.description, _, parser.epilog = (run.__doc__ or "").partition("\n\n")
    add_options(parser)
    parser.set_defaults(run=run)
