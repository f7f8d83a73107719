"""Archives of arrays and files, read into memory: nothing is unpacked to the disk, and no pickle in them is opened."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from typing import BinaryIO

import numpy as np


def read_tar(file: BinaryIO, names: Collection[str], largest: int) -> dict[str, bytes]:
    """Return the named files of a ``.tar.gz``, in whatever directory they stand in it.

    Raises ValueError where it is damaged or unpacks to more than `largest` bytes.
    """
    try:
        content = gzip.GzipFile(fileobj=file).read(largest + 1)  # to its end, where the checksum is
        if len(content) > largest:
            raise ValueError(f"it unpacks to more than {largest} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = {member.name.rpartition("/")[2]: member for member in archive if member.isfile()}
            found = {name: archive.extractfile(members[name]) for name in names if name in members}
            return {name: file.read() for name, file in found.items() if file}
    except (OSError, EOFError, zlib.error, tarfile.TarError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_npz(file: BinaryIO, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays in a ``.npz``, or the named ones. Raises ValueError where it is damaged or holds objects."""
    try:
        with zipfile.ZipFile(file) as archive:
            chosen = [name for name in archive.namelist() if names is None or name.removesuffix(".npy") in names]
            # Each is read to its end, where the checksum is compared. `np.load` stops where the array ends.
            contents = {name.removesuffix(".npy"): archive.read(name) for name in chosen}
        return {name: np.lib.format.read_array(io.BytesIO(content)) for name, content in contents.items()}
    except Exception as error:  # a damaged zip file raises a dozen kinds
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
