"""A reader for pickled batches that admits arrays, strings, numbers, lists and dicts, and nothing else.

A pickle is a program: the ordinary reader runs whatever it names. Nor is it enough to admit NumPy's own classes, which
can be told to take arbitrary bytes for pointers. So this reader admits the few names that a pickled array consists of,
and gives each a meaning of its own that can do nothing but check and hold bytes.

A pickle of a few bytes can also ask for any amount of memory, and build what is exponentially larger than itself once
it is looked at. So nothing is read that the file does not hold, the instructions are counted, and what they build is
flat: a dict of arrays, plain values and lists of plain values. Official files of a known hash are read in the same way.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Literal

import numpy as np

from ..errors import BadFileError

CODES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "b1")
READS = 1 << 21  # of the file, one to three an instruction: CIFAR-100's training images take 450,000
PLAIN = (int, float, str, bytes, type(None))  # and bool, which is an int


def _text(value: object) -> str:
    if not isinstance(value, (str, bytes)):
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} where a name should be")
    return value.decode("latin1") if isinstance(value, bytes) else value


def _short(value: object) -> str:
    """The beginning of a foreign text, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:100]}…"


class _Bounded:
    """A file, of which no more is read than there is, and not for ever."""

    def __init__(self, file: BinaryIO):
        self.file, self.reads, start = file, 0, file.tell()
        self.left = file.seek(0, os.SEEK_END) - start
        file.seek(start)

    def read(self, size: int) -> bytes:
        self._count()
        if not 0 <= size <= self.left:
            raise EOFError("it ends too early")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        self._count()
        line = self.file.readline()
        self.left -= len(line)
        return line

    def _count(self) -> None:
        self.reads += 1
        if self.reads > READS:
            raise pickle.UnpicklingError("it has more instructions than images need")


class _Type:
    """``numpy.dtype``: a number's type by its code, little-endian."""

    def __init__(self, code: object, *_):
        if _text(code) not in CODES:
            raise pickle.UnpicklingError(f"it holds values of type {_short(_text(code))!r}, which is no plain number")
        self.code = f"<{_text(code)}"

    def __setstate__(self, state: tuple):
        if _text(state[1]) == ">":
            raise pickle.UnpicklingError("it holds big-endian numbers")


class _Array:
    """``numpy.ndarray``: its state is (version, shape, type, whether in Fortran's order, bytes)."""

    values: np.ndarray | None = None

    def __setstate__(self, state: tuple):
        _version, shape, kind, fortran, content = state
        self.fill(content, kind, shape, "F" if fortran else "C")

    def fill(self, content: bytes, kind: _Type, shape: tuple, order: Literal["C", "F"]):
        self.values = np.frombuffer(content, kind.code).reshape(shape, order=order)


def _make_type(code: object, *rest: object) -> _Type:
    return _Type(code)


def _make_array(*_: object) -> _Array:
    return _Array()


def _make_filled_array(content: bytes, kind: _Type, shape: tuple, order: Literal["C", "F"]) -> _Array:
    """An array in pickle protocol 5."""
    array = _Array()
    array.fill(content, kind, shape, order)
    return array


ADMITTED = {("numpy", "ndarray"): "numpy.ndarray", ("numpy", "dtype"): _make_type}
for _module in ("numpy.core", "numpy._core"):  # the second as NumPy 2 writes it
    ADMITTED[f"{_module}.multiarray", "_reconstruct"] = _make_array
    ADMITTED[f"{_module}.numeric", "_frombuffer"] = _make_filled_array


# The instructions that make numbers and strings, and remember and recall them, are the standard library's.
PLAIN_INSTRUCTIONS = {
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG),
    *(pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING),
    *(pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST),
    *(pickle.EMPTY_DICT, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET),
    *(pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL),
}


class _Reader(pickle._Unpickler):
    """The standard library's reader in Python: unlike the one in C, its instructions can be taken away and changed."""

    # What it has, and its type stubs lack.
    read: Callable[[int], bytes]
    append: Callable[[object], None]
    pop_mark: Callable[[], list]
    stack: list[Any]

    def __init__(self, file: BinaryIO):
        bounded = _Bounded(file)
        self.unencoded = bounded.left  # characters: each of them may become a byte once
        super().__init__(bounded, encoding="bytes")  # Python 2's strings, in the official CIFAR files, are bytes

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it calls {_short(f'{module}.{name}')}, which no data file needs")
        return ADMITTED[module, name]

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        """What Python 3 writes for bytes in old pickle protocols: ``_codecs.encode(text, 'latin1')``."""
        self.unencoded -= len(text)
        if encoding != "latin1" or self.unencoded < 0:
            raise pickle.UnpicklingError(f"encoding {_short(encoding)!r} of more than it holds, or of another kind")
        return text.encode("latin1")

    def load_frame(self):
        self.read(8)  # how much belongs together: of interest to one who reads from a network

    def load_bytearray8(self):
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_reduce(self):
        arguments = self.stack.pop()
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls something with what are no arguments")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self):
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, (_Array, _Type)):
            raise pickle.UnpicklingError("it changes what it may not change")
        if isinstance(made, _Array) and isinstance(state[4], str):
            state = (*state[:4], self.encode(state[4]))
        made.__setstate__(state)

    def pop(self, number: int) -> list:
        items = self.stack[-number:]
        del self.stack[-number:]
        return items

    def push_tuple(self, items: list):
        """Arguments and states: of plain values, types, and shapes."""
        for item in items:
            if not isinstance(item, (*PLAIN, _Type)) and not (isinstance(item, tuple) and _plain(item)):
                raise pickle.UnpicklingError("it has tuples that no data file needs")
        self.append(tuple(items))

    def extend(self, items: list):
        if not isinstance(self.stack[-1], list) or not _plain(items):
            raise pickle.UnpicklingError("it has lists of something other than plain values")
        self.stack[-1].extend(items)

    def fill(self, items: list):
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, (str, bytes)) for key in items[::2]):
            raise pickle.UnpicklingError("it has a dict whose keys are no strings")
        if not all(isinstance(value, (*PLAIN, list, _Array)) for value in items[1::2]):
            raise pickle.UnpicklingError("it has a dict of something other than arrays, lists and plain values")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    def load_list(self):
        items = self.pop_mark()
        self.append([])
        self.extend(items)

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self.fill(items)

    OWN_INSTRUCTIONS = {  # noqa: RUF012
        pickle.FRAME: load_frame,
        pickle.BYTEARRAY8: load_bytearray8,
        pickle.REDUCE: load_reduce,
        pickle.BUILD: load_build,
        pickle.TUPLE1: lambda self: self.push_tuple(self.pop(1)),
        pickle.TUPLE2: lambda self: self.push_tuple(self.pop(2)),
        pickle.TUPLE3: lambda self: self.push_tuple(self.pop(3)),
        pickle.TUPLE: lambda self: self.push_tuple(self.pop_mark()),
        pickle.LIST: load_list,
        pickle.APPEND: lambda self: self.extend(self.pop(1)),
        pickle.APPENDS: lambda self: self.extend(self.pop_mark()),
        pickle.DICT: load_dict,
        pickle.SETITEM: lambda self: self.fill(self.pop(2)),
        pickle.SETITEMS: lambda self: self.fill(self.pop_mark()),
    }
    dispatch = {  # noqa: RUF012
        code: method for code, method in pickle._Unpickler.dispatch.items() if bytes([code]) in PLAIN_INSTRUCTIONS
    }
    dispatch.update((code[0], method) for code, method in OWN_INSTRUCTIONS.items())


def _plain(values: Iterable[object]) -> bool:
    return all(isinstance(value, PLAIN) for value in values)


def load(file: BinaryIO, path: object) -> dict[str, np.ndarray]:
    """The arrays, and the lists of whole numbers as arrays, of the dict that a pickled batch holds. `path` is named in
    errors.

    Raises BadFileError for anything else, before anything that the file names is run.
    """
    try:
        batch = _Reader(file).load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError(f"it holds a {type(batch).__name__}, not a dict")
        arrays = {}
        for key, value in batch.items():
            if isinstance(value, _Array) and value.values is not None:
                arrays[_text(key)] = value.values
            elif isinstance(value, list) and all(isinstance(number, int) for number in value):
                arrays[_text(key)] = np.array(value)
        return arrays
    except Exception as error:  # a damaged pickle raises nearly anything
        raise BadFileError(f"{path} is no pickled batch of images: {_short(error)}") from None
