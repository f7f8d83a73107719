"""Files of named arrays: MXNet's ``.params``, and ``.safetensors`` with metadata. Neither runs code."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ..errors import BadFileError, MissingFileError
from ..text import encodable

PARAMS, SAFETENSORS = ".params", ".safetensors"
EXPORTED = ONNX, TFLITE = ".onnx", ".tflite"  # suffixes of networks for other programs, which hold no weights to load
MODEL_FILE = f"model{SAFETENSORS}"  # of a directory in Hugging Face's layout
LIST_MAGIC, ARRAY_MAGIC = 0x112, 0xF993FAC9
DENSE = 0  # the storage type
CPU = 1  # the device type to load to
TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")  # by MXNet's number for them
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, by its format


def is_params(head: bytes) -> bool:
    """Tell whether a file with these first bytes may be MXNet's."""
    return head.startswith(LIST_MAGIC.to_bytes(8, "little"))


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file with these first bytes may be a safetensors file: a header's length, and its brace."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def read_head(path: Path) -> bytes:
    """Read the first bytes of a file, enough to tell its format. Raises MissingFileError."""
    try:
        with open(path, "rb") as file:
            return file.read(9)
    except OSError as error:
        raise MissingFileError(f"no such parameter file or run: {path} ({error.strerror})") from None


def read_params(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by ``mx.nd.save`` or ``net.save_parameters``.

    Raises MissingFileError; BadFileError for a damaged file and numbers that are not finite.
    """
    try:
        arrays = _parse_params(path.read_bytes() if is_params(read_head(path)) else b"")
    except ValueError as error:  # UnicodeDecodeError too
        raise BadFileError(f"{path} is no MXNet parameter file, or a damaged one: {error}") from None
    check_finite(path, arrays)
    return arrays


def _parse_params(content: bytes) -> dict[str, np.ndarray]:
    """Parse the format of `NDArray::Save` in MXNet 1.x, little-endian: magic number, arrays, names.

    ``mx.nd.load`` is not used, as it allocates whatever a damaged header says.
    """
    if not is_params(content):
        raise ValueError("wrong first bytes")
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        position += size
        if position > len(content):
            raise ValueError("it ends too early")
        return content[position - size : position]

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
    names = [take(*numbers("Q")).decode() for _ in range(*numbers("Q"))]
    if len(set(names)) != count or len(names) != count or position < len(content):
        raise ValueError(f"it has {len(set(names))} names for {count} arrays, or more behind its end")
    return dict(zip(names, arrays))


def dump_params(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a file for ``net.load_parameters`` and ``mx.nd.load``."""
    parts = [struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays))]
    for array in arrays.values():
        kind = TYPES.index(array.dtype.newbyteorder("<").str.replace("|", ""))
        parts.append(struct.pack(f"<IiI{array.ndim}q", ARRAY_MAGIC, DENSE, array.ndim, *array.shape))
        parts.append(struct.pack("<iii", CPU, 0, kind))
        parts.append(np.ascontiguousarray(array, TYPES[kind]).tobytes())
    parts.append(struct.pack("<Q", len(arrays)))
    for name in arrays:
        parts.append(struct.pack("<Q", len(name.encode())) + name.encode())
    return b"".join(parts)


def sidecar(path: Path) -> Path:
    """Return the file beside a ``.params`` file with its metadata, as the format has no room for them."""
    return path.with_suffix(".json")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file.

    Raises MissingFileError; BadFileError for a damaged file, numbers that are not finite, and arrays without the
    ``sha256`` of the metadata.
    """
    try:
        if not is_safetensors(read_head(path)):
            raise ValueError("wrong first bytes")
        content = path.read_bytes()
        arrays = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if not all(array.dtype.kind in "fiu" for array in arrays.values()):
            raise ValueError("it holds something other than whole and real numbers")
        if (header.get("__metadata__") or {}).get("sha256", digest := _digest(arrays)) != digest:
            raise ValueError("its arrays do not have the SHA-256 of its metadata")
    except KeyError as error:  # NumPy has no bfloat16
        raise BadFileError(f"{path} holds numbers of a type that cannot be read: {error}") from None
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise _damaged(path, error) from None
    check_finite(path, arrays)
    return arrays


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, and none of its arrays. Raises BadFileError for a damaged header."""
    try:
        with safetensors.safe_open(path, "np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> BadFileError:
    return BadFileError(f"{path} is no safetensors file, or a damaged one: {' '.join(str(error).split())[:300]}")


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of all names and numbers, in the order of the names."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        hasher.update(name.encode())
        hasher.update(arrays[name].tobytes())
    return hasher.hexdigest()


def dump_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file, in float32. The metadata get a ``sha256`` and PyTorch's ``format``.

    `safetensors.numpy.save` is not used: it orders metadata at random, so the same network would be another file.
    """
    arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in sorted(arrays.items())}
    texts = {name: encodable(value) for name, value in (metadata or {}).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **texts, "sha256": _digest(arrays)}}
    start = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays.values())])


def check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise BadFileError for an array of a file with a number that is not finite."""
    for name, array in arrays.items():
        if not is_finite(array):
            raise BadFileError(f"{path} holds numbers that are not finite: in {name[:100]!r}")


def is_finite(array: np.ndarray) -> bool:
    """Tell whether all numbers are finite, in single precision too."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())
