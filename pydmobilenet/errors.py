"""Mistakes that a user can mend: one line that names the value, what is allowed and the nearest valid choice.

The scripts print a `UserError` on one line and exit with code 2; everything else is a fault of the program.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend; the text says how."""

    exit_code = 2


class UnknownNameError(UserError, ValueError):
    """A name or value that is none of the allowed ones."""


class BadFileError(UserError, ValueError):
    """A file that is not what it has to be; it is never used and never overwritten."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that is neither on this machine nor to be had from the network."""


class UnusableError(UserError, OSError):
    """A device, directory or package that this machine does not offer."""


def unknown(kind: str, value: object, choices: Iterable[str], allowed: str = "") -> UnknownNameError:
    """The error for a `value` that is none of `choices`; `allowed` describes them where a list would be too long."""
    choices = [str(choice) for choice in choices]
    return UnknownNameError(
        f"unknown {kind} {str(value)!r}{nearest(value, choices)} (allowed: {allowed or ', '.join(choices)})"
    )


def nearest(value: object, choices: Iterable[str]) -> str:
    """``; nearest: …`` with up to three of the choices that are like a value, or nothing."""
    near = difflib.get_close_matches(str(value).lower(), list(choices), n=3, cutoff=0.4)
    return f"; nearest: {', '.join(near)}" if near else ""
