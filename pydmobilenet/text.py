"""Text for terminals and files, and progress bars.

A file name is any bytes but ``/`` and null: line breaks, control sequences, or bytes of another encoding, as lone
surrogates (PEP 383).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def printable(text: object) -> str:
    r"""Return a text on one line, unprintable characters escaped as in Python: ``\n``, ``\x1b``, ``\u202e``.

    >>> print(printable("a\nb"))
    a\nb
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte outside of UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def encodable(text: str) -> str:
    r"""Return a text that UTF-8 can encode: lone surrogates escaped as in JSON, ``\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode()


def progress_bar(
    total: int | None,
    description: str,
    unit: str,
    shown: bool | None = None,
    initial: int = 0,
    unit_scale: bool = False,
) -> tqdm:
    """Return a progress bar; `shown` by default on a terminal. With `unit_scale`, numbers have prefixes: ``1.2MB``."""
    from tqdm import tqdm

    # Under pythonw, there is no standard error.
    disable = True if sys.stderr is None else None if shown is None else not shown
    return tqdm(
        total=total,
        desc=printable(description),
        unit=unit if unit_scale else f" {unit}",
        unit_scale=unit_scale,
        initial=initial,
        disable=disable,
        leave=False,
    )
