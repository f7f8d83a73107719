"""Safetensors files: named arrays behind a header in JSON, with metadata, as PyTorch, timm and Hugging Face have them.

Read by the package of that name, which makes no array that the file does not hold. That package writes metadata in an
order that differs from process to process, so files are written here: the same network is the same file, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from .. import files
from ..errors import BadFileError
from ..text import encodable
from .params import check_finite, read_file

SUFFIX = ".safetensors"
FILE = f"model{SUFFIX}"  # of a directory in Hugging Face's layout
LARGEST_HEADER = 100_000_000  # bytes, as the format has it


class Content(NamedTuple):
    """Arrays by name, and what the file says about them."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def recognised(head: bytes) -> bool:
    """Return whether a file that begins so may be of this format: a header's length, and its brace."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_HEADER


def read(path: Path) -> Content:
    """Read the arrays and the metadata of a file.

    Raises MissingFileError, and BadFileError for a damaged file, one of another kind, and numbers that are not finite.
    Metadata with a ``sha256`` that is not the `digest` of the arrays are damaged too.
    """
    content = read_file(path, recognised)
    try:
        if not recognised(content):
            raise ValueError("it does not begin as one")
        arrays = safetensors.numpy.load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
        if not all(array.dtype.kind in "fiu" for array in arrays.values()):
            raise ValueError("it holds something other than whole and real numbers")
        if "sha256" in metadata and metadata["sha256"] != digest(arrays):
            raise ValueError("its arrays do not have the SHA-256 that it tells")
    except KeyError as error:  # a type that NumPy does not have, as bfloat16
        raise BadFileError(f"{path} holds numbers of a type that cannot be read: {error}") from None
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())[:300]
        raise BadFileError(f"{path} is no safetensors file, or a damaged one: {why}") from None
    check_finite(path, arrays)
    return Content(arrays, metadata)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of all names and numbers, in the order of the names."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        hasher.update(name.encode())
        hasher.update(arrays[name].tobytes())
    return hasher.hexdigest()


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays in float32, whole or not at all. Raises UnusableError."""
    files.write(Path(path), dump(arrays, metadata))


def dump(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of the file that `write` writes. Its metadata have besides the `digest`, and the ``format`` that
    says to other libraries whose names and layouts the arrays have: PyTorch's.
    """
    arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in sorted(arrays.items())}
    texts = {name: encodable(value) for name, value in (metadata or {}).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **texts, "sha256": digest(arrays)}}
    position = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [position, position + array.nbytes]}
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays.values())])
