"""Files that are put in place whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UnusableError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of `path` once all of it is on the disk.

    Whatever goes wrong before, an earlier file stays as it was. Raises UnusableError where it cannot be written.
    """
    part = _part(path)
    try:
        with _naming(path):
            yield part
            _sync(part)
            _put_in_place(part, path)
    finally:
        _remove(part)


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file, as `replacing` does."""
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several whole files. Once all of them are on the disk they are put in place, in their order.

    Whatever goes wrong before, all earlier files stay as they were. Raises UnusableError where one cannot be written.
    """
    try:
        for path, content in contents.items():
            with _naming(path):
                _part(path).write_bytes(content.encode() if isinstance(content, str) else content)
                _sync(_part(path))
        for path in contents:
            with _naming(path):
                _put_in_place(_part(path), path)
    finally:
        for path in contents:
            _remove(_part(path))


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnusableError(f"cannot write {path}: {error.strerror or error}") from None


def _sync(part: Path) -> None:
    with open(part, "rb") as file:
        os.fsync(file.fileno())


def _put_in_place(part: Path, path: Path) -> None:
    os.replace(part, path)
    with suppress(OSError):  # the new name itself has to come to the disk, where the system can do that
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(part: Path) -> None:
    with suppress(OSError):
        part.unlink(missing_ok=True)
