"""Names as people see them, and as files can hold them.

A file name is any bytes but ``/`` and the null: line breaks, a terminal's control sequences, or letters of an encoding
other than UTF-8, which Python keeps as lone surrogates (PEP 383) that no stream can write.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def printable(text: object) -> str:
    r"""A text on one line, with what cannot be shown escaped as in a Python string: ``\n``, ``\x1b``, ``\u202e``.

    >>> print(printable("a\nb"))
    a\nb
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def encodable(text: str) -> str:
    r"""A text that UTF-8 can hold: itself, but for the bytes of a name that is no UTF-8, which stand as in JSON:
    ``\udce9``.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def progress_bar(
    total: int | None,
    description: str,
    unit: str,
    shown: bool | None = None,
    initial: int = 0,
    unit_scale: bool = False,
) -> tqdm:
    """A progress bar, which goes when it is done; `shown` or not, by default on a terminal alone. Where there is no
    standard error, as under ``pythonw``, there is none. With `unit_scale`, numbers have prefixes: ``1.2MB``.
    """
    from tqdm import tqdm

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
