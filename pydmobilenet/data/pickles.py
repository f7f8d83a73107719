"""A reader for pickled batches that admits arrays, strings, numbers, lists and dicts, and nothing else.

A pickle is a program: the ordinary reader runs whatever it names. Nor is it enough to admit NumPy's own classes, which
can be told to take arbitrary bytes for pointers. So this reader admits the few names that a pickled array consists of,
and gives each a meaning of its own that can do nothing but check and hold bytes.
"""

from __future__ import annotations

import pickle
from typing import BinaryIO

import numpy as np

from ..errors import BadFileError

CODES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "b1")


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Type:
    """``numpy.dtype``: a number's type by its code, little-endian."""

    def __init__(self, code: object, *_):
        if _text(code) not in CODES:
            raise pickle.UnpicklingError(f"it holds values of type {_text(code)!r}, which is no plain number")
        self.code = f"<{_text(code)}"

    def __setstate__(self, state: tuple):
        if _text(state[1]) == ">":
            raise pickle.UnpicklingError("it holds big-endian numbers")


class _Array:
    """``numpy.ndarray``: its state is (version, shape, type, whether in Fortran's order, bytes)."""

    values: np.ndarray | None = None

    def __setstate__(self, state: tuple):
        _version, shape, kind, fortran, content = state
        self.fill(content.encode("latin1") if isinstance(content, str) else content, kind, shape, "CF"[bool(fortran)])

    def fill(self, content: bytes, kind: _Type, shape: tuple, order: str):
        self.values = np.frombuffer(content, kind.code).reshape(shape, order=order)


def _make_type(code: object, *rest: object) -> _Type:
    return _Type(code)


def _make_array(*_: object) -> _Array:
    return _Array()


def _make_filled_array(content: bytes, kind: _Type, shape: tuple, order: str) -> _Array:
    """An array in pickle protocol 5."""
    array = _Array()
    array.fill(content, kind, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in old pickle protocols: ``_codecs.encode(text, 'latin1')``."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


ADMITTED = {("numpy", "ndarray"): "numpy.ndarray", ("numpy", "dtype"): _make_type, ("_codecs", "encode"): _encode}
for _module in ("numpy.core", "numpy._core"):  # the second as NumPy 2 writes it
    ADMITTED[f"{_module}.multiarray", "_reconstruct"] = _make_array
    ADMITTED[f"{_module}.numeric", "_frombuffer"] = _make_filled_array


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no data file needs")
        return ADMITTED[module, name]


def load(file: BinaryIO, path: object) -> dict:
    """The dict that a pickled batch holds, its keys as strings. `path` is named in errors.

    Raises BadFileError for anything else, before anything that the file names is run.
    """
    try:
        # Python 2's strings, in the official CIFAR files, are bytes.
        batch = _Reader(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise BadFileError(f"{path} is no pickled batch of images: {error}") from None
    if not isinstance(batch, dict):
        raise BadFileError(f"{path} is no pickled batch of images: it holds a {type(batch).__name__}, not a dict")
    return {_text(key): value.values if isinstance(value, _Array) else value for key, value in batch.items()}
