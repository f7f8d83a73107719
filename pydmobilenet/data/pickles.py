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


# The instructions that make numbers, strings, tuples and lists, remember and recall them, and call what is admitted.
# Those for dicts and for an object's state are defined below.
PLAIN_INSTRUCTIONS = {
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG),
    *(pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING),
    *(pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.EMPTY_TUPLE, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET),
    *(pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE),
}


class _Reader(pickle._Unpickler):
    """The standard library's reader in Python: unlike the one in C, its instructions can be taken away and changed."""

    dispatch = {  # noqa: RUF012
        code: method for code, method in pickle._Unpickler.dispatch.items() if bytes([code]) in PLAIN_INSTRUCTIONS
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no data file needs")
        return ADMITTED[module, name]

    def load_build(self):
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Type)):
            raise pickle.UnpicklingError("it changes what it may not change")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(self.stack[-1], [key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self):
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self._fill(self.stack[-1], items)

    dispatch[pickle.DICT[0]] = load_dict

    @staticmethod
    def _fill(target: dict, items: list):
        """Only plain keys: the hash of deeply nested ones overflows the stack of the process."""
        if not isinstance(target, dict) or not all(isinstance(key, (str, bytes, int)) for key in items[::2]):
            raise pickle.UnpicklingError("it has a dict whose keys are no strings")
        target.update(zip(items[::2], items[1::2]))


def load(file: BinaryIO, path: object) -> dict:
    """The dict that a pickled batch holds, its keys as strings. `path` is named in errors.

    Raises BadFileError for anything else, before anything that the file names is run.
    """
    try:
        # Python 2's strings, in the official CIFAR files, are bytes.
        batch = _Reader(file, encoding="bytes").load()
        if isinstance(batch, dict):
            return {_text(key): value.values if isinstance(value, _Array) else value for key, value in batch.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise BadFileError(f"{path} is no pickled batch of images: {error}") from None
    raise BadFileError(f"{path} is no pickled batch of images: it holds a {type(batch).__name__}, not a dict")
