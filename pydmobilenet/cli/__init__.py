"""The command line: ``pydmobilenet COMMAND``, one file per command.

Each of these has a docstring, of which the first paragraph is its help and the rest its epilog; `add_options(parser)`;
and `run`, which takes the values of the options and returns the exit code. ``run_validation.py`` is ``pydmobilenet
validate``, and ``train.py`` is ``pydmobilenet train``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

COMMANDS = ("validate", "train", "predict", "export", "list", "info", "fetch", "convert", "show")


def main(command: str = "") -> None:
    """Run the command line of this process, or that of one `command` alone, and exit with its code."""
    _open_missing_streams()
    program = os.path.basename(sys.argv[0]) if command else "pydmobilenet"
    try:
        from .options import exit_with
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    exit_with(lambda: _run(command, program), program)


def _open_missing_streams() -> None:
    """Lead a standard stream that is closed (``2>&-``) nowhere: else the next file that is opened gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115  for the process's life


def _run(command: str, program: str) -> int:
    from .. import __version__
    from .options import Parser

    if command:
        parser = Parser(prog=program)
        _describe(parser, command)
    else:
        parser = Parser(prog=program, description="PydMobileNet: check the published table, train, classify, export.")
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name in COMMANDS:
            _describe(commands.add_parser(name, help=_help(name)), name)
    text = argparse.SUPPRESS if command else "print the version"  # a script's help has to fit one screen
    parser.add_argument("--version", action="version", version=f"pydmobilenet {__version__}", help=text)
    arguments = vars(parser.parse_args())
    arguments.pop("command", None)
    return arguments.pop("run")(**arguments)


def _describe(parser, name: str) -> None:
    """Give a parser the options of a command, and `run`, which runs it."""
    module = importlib.import_module(f"{__name__}.{name}")
    parser.description, _, parser.epilog = (module.__doc__ or "").partition("\n\n")
    module.add_options(parser)
    parser.set_defaults(run=module.run)


def _help(name: str) -> str:
    """What a command does, for the list of all: the first sentence of its description."""
    text = importlib.import_module(f"{__name__}.{name}").__doc__ or name
    first = text.partition(".")[0]
    return first[0].lower() + first[1:]
