"""Archives, arrays and pickles of others, read into memory: nothing is unpacked to disk, and nothing runs code."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Collection
from typing import BinaryIO

import numpy as np


def read_tar(file: BinaryIO, names: Collection[str], largest: int) -> dict[str, bytes]:
    """Read the named files of a ``.tar.gz``, in any of its directories.

    Raises ValueError if it is damaged or unpacks to more than `largest` bytes.
    """
    try:
        content = gzip.GzipFile(fileobj=file).read(largest + 1)  # to its end: the checksum is there
        if len(content) > largest:
            raise ValueError(f"it unpacks to more than {largest} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = {member.name.rpartition("/")[2]: member for member in archive if member.isfile()}
            files = {name: archive.extractfile(members[name]) for name in names if name in members}
            return {name: file.read() for name, file in files.items() if file}
    except (OSError, EOFError, zlib.error, tarfile.TarError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_npz(file: BinaryIO, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a ``.npz``, or the named ones. Raises ValueError if it is damaged or holds objects."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names or archive.files}
    except Exception as error:  # a damaged zip file raises a dozen kinds
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("it holds other files than arrays")
    return arrays


def read_pickle(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read the arrays, and the lists of whole numbers as arrays, of a pickled dict. Runs nothing.

    Raises ValueError for anything else.
    """
    try:
        batch = _Reader(file, encoding="bytes").load()  # the official CIFAR files have Python 2's strings: bytes
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
        raise ValueError(" ".join(str(error).split())[:100] or type(error).__name__) from None


class _Type:
    """Stand in for ``numpy.dtype``; plain numbers only."""

    def __init__(self, code: str | bytes):
        self.dtype = np.dtype(_text(code))
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"it holds values of type {_text(code)!r}, no plain number")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))  # type: ignore[arg-type]  # NumPy raises for others


class _Array:
    """Stand in for ``numpy.ndarray``; its state is (version, shape, type, Fortran order, bytes)."""

    values: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _version, shape, kind, fortran, content = state
        self.values = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if fortran else "C")


class _Reader(pickle.Unpickler):
    """Replace NumPy's names by classes that only hold numbers; refuse all other names.

    A pickle is a program, and NumPy's own functions can be made to read arbitrary memory.
    """

    def find_class(self, module: str, name: str) -> object:
        # New functions for each lookup: a pickle may set attributes on them.
        def encode(text: str, encoding: str) -> bytes:
            """``_codecs.encode(text, 'latin1')``: bytes, as Python 3 writes them in old protocols."""
            if encoding != "latin1":
                raise pickle.UnpicklingError(f"it is encoded as {encoding!r}, not latin1")
            return text.encode("latin1")

        def array(content: bytes, kind: _Type, shape: tuple, order: str) -> _Array:
            array = _Array()
            array.__setstate__((1, shape, kind, order == "F", content))
            return array

        allowed = {("numpy", "ndarray"): "", ("numpy", "dtype"): lambda code, *_: _Type(code)}
        allowed["_codecs", "encode"] = encode
        for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
            allowed[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
            allowed[f"{core}.numeric", "_frombuffer"] = array
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it calls {module}.{name}; only arrays are allowed")
        return allowed[module, name]


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value
