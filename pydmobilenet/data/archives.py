"""Archives of arrays and files, read with suspicion: what they unpack to is counted, never believed.

The standard library's `tarfile` calls itself for each header that describes another one, and NumPy makes an array of
whatever size its header names. Here a chain of headers is a loop, and nothing is made that has not arrived.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from typing import BinaryIO

import numpy as np

LARGEST_NAME = 1 << 16  # bytes of a header that holds a name
LARGEST_HEADER = 4096  # bytes of the header of an array
CHUNK = 1 << 20
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, pipes
BETWEEN = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)  # headers between that of a long name and its file


class _Unpacked:
    """What a gzip file unpacks to, up to so many bytes in all."""

    def __init__(self, file: BinaryIO, largest: int):
        self.file, self.left, self.largest = gzip.GzipFile(fileobj=file), largest, largest

    def take(self, size: int) -> bytes:
        """So many bytes; raises ValueError where there are fewer."""
        if not 0 <= size <= self.left:
            raise ValueError(f"it unpacks to more than {self.largest} bytes")
        self.left -= size
        content = self.file.read(size)
        if len(content) < size:
            raise ValueError("it ends too early")
        return content

    def end(self) -> None:
        """Go to the end, as the checksum stands behind it."""
        while piece := self.file.read(CHUNK):
            self.left -= len(piece)
            if self.left < 0:
                raise ValueError(f"it unpacks to more than {self.largest} bytes")


def read_tar(file: BinaryIO, names: Collection[str], largest: int) -> dict[str, bytes]:
    """The named files of a ``.tar.gz``, in whatever directory they stand in it.

    Raises ValueError where it is damaged, up to its last byte, or unpacks to more than `largest` bytes in all.
    """
    unpacked, found, long_name = _Unpacked(file, largest), {}, ""
    try:
        while any(block := unpacked.take(tarfile.BLOCKSIZE)):
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            size = 0 if member.type in WITHOUT_CONTENT else member.size
            content = unpacked.take(size)
            unpacked.take(-size % tarfile.BLOCKSIZE)
            if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
                long_name = _long_name(member.type, content[:LARGEST_NAME]) or long_name
            elif member.type not in BETWEEN:
                name, long_name = (long_name or member.name).rsplit("/", 1)[-1], ""
                if name in names and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    found[name] = content
        unpacked.end()
    except (OSError, EOFError, zlib.error, tarfile.HeaderError) as error:
        raise ValueError(str(error)) from None
    return found


def _long_name(kind: bytes, header: bytes) -> str:
    """A name of over 100 bytes, of which a header of its own precedes the file's; empty where it holds none."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return header.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    for record in header.split(b"\n"):  # each 'LENGTH KEY=VALUE'
        key, _, value = record.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return ""


def read_npz(file: BinaryIO, largest: int, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of numbers in a ``.npz``, or the named ones.

    Raises ValueError where it is damaged, holds anything else, or unpacks to more than `largest` bytes in all.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if names is None or member.filename[:-4] in names]
            if sum(member.file_size for member in members) > largest:
                raise ValueError(f"it unpacks to more than {largest} bytes")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("it has a name twice")
            return {member.filename[:-4]: _read_array(archive, member) for member in members}
    except ValueError:
        raise
    except Exception as error:  # a damaged zip file raises a dozen kinds
        raise ValueError(f"{type(error).__name__}: {error}"[:200]) from None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if not member.filename.endswith(".npy") or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it holds something other than arrays")
    with archive.open(member) as file:
        beginning = file.read(10)
        version, length_bytes = (beginning[6:7], 2) if beginning[6:7] == b"\1" else (b"\2", 4)
        beginning += file.read(length_bytes - 2)
        length = int.from_bytes(beginning[8:], "little")
        if not beginning.startswith(b"\x93NUMPY" + version) or length > LARGEST_HEADER:
            raise ValueError("it holds something other than arrays")
        header = io.BytesIO(beginning[8:] + file.read(length))
        read = np.lib.format.read_array_header_1_0 if version == b"\1" else np.lib.format.read_array_header_2_0
        shape, in_columns, dtype = read(header)
        if dtype.kind not in "biuf" or min(shape, default=0) < 0:
            raise ValueError(f"it holds an array of {dtype}, which is no plain number")
        size = dtype.itemsize
        for extent in shape:  # in Python's integers, which do not overflow
            size *= extent
        if size != member.file_size - len(beginning) - length:
            raise ValueError("an array is not of the size that its shape asks for")
        content = bytearray()
        while piece := file.read(CHUNK):  # to its end, where the checksum is compared
            content += piece
        if len(content) != size:
            raise ValueError("it ends too early")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if in_columns else "C")
