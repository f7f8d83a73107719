"""MXNet's parameter files, read and written with NumPy: ``mx.nd.load`` allocates whatever a damaged header says.

The format of `NDArray::Save` in MXNet 1.x, little-endian: the list's magic number and a reserved one; the number of
arrays, then each array; the number of names, then each name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
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
HEAD = 9  # bytes that tell the format of a file


def sidecar(path: Path) -> Path:
    """Return the file beside parameters that records their network: the format has no place for metadata."""
    return path.with_suffix(".json")


def recognised(head: bytes) -> bool:
    """Return whether a file that begins so may be of this format."""
    return head.startswith(LIST_MAGIC.to_bytes(8, "little"))


def read_file(path: Path, recognised: Callable[[bytes], bool] = lambda head: False) -> bytes:
    """Read a whole file, or the first bytes of a device or anything else they are not `recognised` of.

    Raises MissingFileError.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            return head + file.read() if recognised(head) else head
    except OSError as error:
        raise MissingFileError(f"no such parameter file or run: {path} ({error.strerror})") from None


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the named arrays of a file that ``mx.nd.save`` or ``net.save_parameters`` has written.

    Raises MissingFileError, and BadFileError for a damaged file, one of another kind, and numbers that are not finite.
    """
    try:
        arrays = _parse(read_file(path, recognised))
    except ValueError as error:  # a name that is no UTF-8 raises a kind of it too
        raise BadFileError(f"{path} is no MXNet parameter file, or a damaged one: {error}") from None
    check_finite(path, arrays)
    return arrays


def _parse(content: bytes) -> dict[str, np.ndarray]:
    if not recognised(content):
        raise ValueError("it does not begin as one")
    left = memoryview(content)

    def take(size: int) -> memoryview:
        nonlocal left
        if size > len(left):
            raise ValueError("it ends too early")
        piece, left = left[:size], left[size:]
        return piece

    def numbers(form: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", take(struct.calcsize(f"<{form}")))

    def array() -> np.ndarray:
        magic, storage, dimensions = numbers("IiI")
        if (magic, storage) != (ARRAY_MAGIC, DENSE):
            raise ValueError("it holds something other than dense arrays")
        shape = numbers(f"{dimensions}q")
        _device, _number, kind = numbers("iii")
        if not 0 <= kind < len(TYPES) or min(shape, default=0) < 0:
            raise ValueError("an array has no valid type or shape")
        dtype = np.dtype(TYPES[kind])
        return np.frombuffer(take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)

    _magic, _reserved, count = numbers("QQQ")
    arrays = [array() for _ in range(count)]  # the file ends before a count that is too high
    names = [bytes(take(*numbers("Q"))).decode() for _ in range(*numbers("Q"))]
    if len(set(names)) != count or len(names) != count or left:
        raise ValueError(f"it has {len(set(names))} names for {count} arrays, or more behind its end")
    return dict(zip(names, arrays))


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
