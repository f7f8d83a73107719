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
            stems = {name.removesuffix(".npy"): name for name in archive.namelist()}
            return {stem: _array(archive, name) for stem, name in stems.items() if names is None or stem in names}
    except Exception as error:  # a damaged zip file raises a dozen kinds
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        array = np.lib.format.read_array(file)
        if file.read(1):  # at the end, the checksum has been compared
            raise ValueError(f"{name} goes on behind its array")
    return array
