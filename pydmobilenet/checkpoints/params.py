"""MXNet's parameter files, read and written with NumPy.

``mx.nd.load`` trusts the sizes that it reads: a single damaged byte in a header made it ask for tens of gigabytes. Here
no array is made that the file does not hold. The format, little-endian, as `NDArray::Save` in MXNet 1.x writes it:
the list's magic number and a reserved one; the number of arrays, then each array; the number of names, then each name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import files
from ..errors import BadFileError, MissingFileError

SUFFIX = ".params"
LIST_MAGIC = 0x112
ARRAY_MAGIC = 0xF993FAC9
DENSE = 0  # the storage type
CPU = 1  # the device type that an array is loaded to
TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")  # by MXNet's number for them


def sidecar(path: Path) -> Path:
    """Return the file beside parameters that records their network: the format has no place for metadata."""
    return path.with_suffix(".json")


def recognised(path: Path) -> bool:
    """Return whether a file begins as this format does; not where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(8) == LIST_MAGIC.to_bytes(8, "little")
    except OSError:
        return False


class _Reader:
    def __init__(self, content: bytes):
        self.content = memoryview(content)
        self.position = 0

    def take(self, size: int) -> memoryview:
        piece = self.content[self.position : self.position + size]
        if size < 0 or len(piece) < size:
            raise ValueError("it ends too early")
        self.position += size
        return piece

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def array(self) -> np.ndarray:
        magic, storage, dimensions = self.numbers("IiI")
        if magic != ARRAY_MAGIC or storage != DENSE or dimensions > 32:
            raise ValueError("it holds something other than dense arrays")
        shape = self.numbers(f"{dimensions}q")
        _device, _number, kind = self.numbers("iii")
        if not 0 <= kind < len(TYPES) or min(shape, default=0) < 0:
            raise ValueError("an array has no valid type or shape")
        dtype, size = np.dtype(TYPES[kind]), 1
        for length in shape:  # in Python's integers, which do not overflow
            size *= length
        return np.frombuffer(self.take(size * dtype.itemsize), dtype).reshape(shape)

    def name(self) -> str:
        (length,) = self.numbers("Q")
        return bytes(self.take(length)).decode()


def read(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file that ``mx.nd.save`` or ``net.save_parameters`` has written.

    Raises MissingFileError, and BadFileError for what is no such file, is damaged, or holds a number that is not
    finite.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(8)
            # Of a device or another kind of file, however large, no more is read than this.
            reader = _Reader(beginning + (file.read() if beginning == LIST_MAGIC.to_bytes(8, "little") else b""))
    except OSError as error:
        raise MissingFileError(f"no such parameter file: {path} ({error.strerror})") from None
    try:
        (magic,) = reader.numbers("Q")
        if magic != LIST_MAGIC:
            raise ValueError("it does not begin as one")
        _reserved, count = reader.numbers("QQ")
        if count > len(reader.content):
            raise ValueError("it ends too early")
        arrays = [reader.array() for _ in range(count)]
        (names,) = reader.numbers("Q")
        if names != count or not count:
            raise ValueError(f"it has {names} names for {count} arrays")
        named = dict(zip([reader.name() for _ in range(names)], arrays))
        if len(named) != count or reader.position != len(reader.content):
            raise ValueError("it has a name twice, or more behind its end")
    except ValueError as error:  # a name that is no UTF-8 raises a kind of it too
        raise BadFileError(f"{path} is no MXNet parameter file, or a damaged one: {error}") from None
    check_finite(path, named)
    return named


def check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises BadFileError where an array of a file holds a number that is not finite."""
    for name, array in arrays.items():
        if not is_finite(array):
            raise BadFileError(f"{path} holds numbers that are not finite: in {name[:100]!r}")


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, in single precision too."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as ``net.load_parameters`` and ``mx.nd.load`` read them. Raises UnusableError."""
    files.write(Path(path), dump(arrays))


def dump(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of the file that `write` writes."""
    pieces = [struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays))]
    for array in arrays.values():
        kind = TYPES.index(array.dtype.newbyteorder("<").str.replace("|", ""))
        pieces.append(struct.pack(f"<IiI{array.ndim}q", ARRAY_MAGIC, DENSE, array.ndim, *array.shape))
        pieces.append(struct.pack("<iii", CPU, 0, kind))
        pieces.append(np.ascontiguousarray(array, TYPES[kind]).tobytes())
    pieces.append(struct.pack("<Q", len(arrays)))
    for name in arrays:
        pieces.append(struct.pack("<Q", len(name.encode())) + name.encode())
    return b"".join(pieces)
