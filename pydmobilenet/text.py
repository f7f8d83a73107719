"""Names as people see them, and as files can hold them.

A file name is any bytes but ``/`` and the null: line breaks, a terminal's control sequences, or letters of an encoding
other than UTF-8, which Python keeps as lone surrogates (PEP 383) that no stream can write.
"""

from __future__ import annotations


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
