"""Files and directories that are put in place whole or not at all.

What is not finished yet has a name of its own beside its target, and a lock that lasts as long as its writer lives. The
system ends the lock with the process, however that ends. So what carries no lock was left behind, and whoever writes
into the directory next removes it. (The number of a process would not tell: numbers are used again, and two containers
that share a directory do not see each other's.) Where a file system has no locks, nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UnusableError

PART = re.compile(r"\..+\.pydmobilenet-[0-9a-f]{8}\.part", re.DOTALL)
LONGEST = 50  # characters of a target's name in that of its part, which may have 255 bytes
KINDS = {
    stat.S_ISDIR: "a directory",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
}


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file, as `write_together` does."""
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several whole files. Once all of them are on the disk they are put in place, in their order.

    Whatever goes wrong before, all earlier files stay as they were. A link stays, and the file that it leads to is
    replaced. Raises UnusableError where one cannot be written.
    """
    with ExitStack() as stack:
        parts = []
        for path, content in contents.items():
            part, descriptor, target = _begun(path, stack)
            with _naming(path):
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(content.encode() if isinstance(content, str) else content)
                os.fsync(descriptor)
            parts.append((path, part, target))
        for path, part, target in parts:
            with _naming(path):
                place(part, target)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which is put in place once the block has ended, as `write_together` does.

    Whatever is raised in the block, nothing is written. Raises UnusableError where the file cannot be.
    """
    with ExitStack() as stack:
        part, descriptor, target = _begun(path, stack)
        file = stack.enter_context(open(descriptor, "wb", closefd=False))
        yield file
        with _naming(path):
            file.flush()
            os.fsync(descriptor)
            place(part, target)


def _begun(path: Path, stack: ExitStack) -> tuple[Path, int, Path]:
    """The part, with its descriptor, of a file that is about to be written, and where it will be put."""
    check(path)
    with _naming(path):
        target = Path(os.path.realpath(path))  # a link stays
        return (*stack.enter_context(_part(target)), target)


def check(path: Path) -> None:
    """Raises UnusableError where a file cannot be put: onto what is none, or into a directory that is not there."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        parent = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(parent):
            raise UnusableError(f"cannot write {path}: no such directory: {parent}") from None
        return
    except (OSError, ValueError) as error:  # ValueError: a name that can be none
        raise UnusableError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    kind = next((name for holds, name in KINDS.items() if holds(mode)), None)
    if kind:
        raise UnusableError(f"cannot write {path}: it is {kind} (allowed: a file)")


def place(part: Path, target: Path) -> None:
    """Give a finished file its name, in the place of an earlier one. Raises OSError."""
    os.replace(part, target)
    with suppress(OSError):  # the new name itself has to come to the disk, where the system can do that
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill, which is at `path` once the block has ended.

    Of several at once the first wins. Raises UnusableError where something else is at `path` by then, or it cannot be
    made; nothing is left behind then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part(path, directory=True) as (part, _):
            yield part
            os.rename(part, path)  # which replaces nothing but an empty directory
    except OSError as error:
        if isinstance(error, UnusableError):
            raise
        raise UnusableError(f"cannot make the directory {path}: {error.strerror or error}") from None


def check_new_directory(path: Path) -> None:
    """Raises UnusableError where `new_directory` could not make a directory, as far as its names and parents tell."""
    target = path.absolute()
    parent = next(each for each in target.parents if os.path.lexists(each))
    below = target.relative_to(parent)
    try:
        with _part(parent / below.parts[0], directory=True) as (part, _):
            (part / below).mkdir(parents=True)
    except (OSError, ValueError) as error:
        raise UnusableError(f"cannot make the directory {path}: {getattr(error, 'strerror', None) or error}") from None


def sweep(directory: Path) -> None:
    """Remove what writers that are no longer there have left behind in a directory."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in [entry for entry in entries if PART.fullmatch(entry.name)]:
            with suppress(OSError):
                is_directory = entry.is_dir(follow_symlinks=False)
                descriptor = os.open(entry.path, (os.O_RDONLY if is_directory else os.O_RDWR) | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(entry.path, is_directory)
                finally:
                    os.close(descriptor)


@contextmanager
def _part(target: Path, directory: bool = False) -> Iterator[tuple[Path, int]]:
    """Yield a new file or directory beside a target, locked, and its descriptor; if it is not placed, it is removed."""
    sweep(target.parent)
    part, descriptor = _locked_part(target, directory)
    try:
        yield part, descriptor
    finally:
        _remove(part, directory)
        os.close(descriptor)


def _locked_part(target: Path, directory: bool) -> tuple[Path, int]:
    while True:  # whoever sweeps may be faster than the lock: then there has to be another
        part = target.with_name(f".{target.name[:LONGEST]}.pydmobilenet-{secrets.token_hex(4)}.part")
        if directory:
            part.mkdir()
            with suppress(FileNotFoundError):
                if _locked(descriptor := os.open(part, os.O_RDONLY), part):
                    return part, descriptor
        elif _locked(descriptor := os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), part):
            return part, descriptor


def _locked(descriptor: int, part: Path) -> bool:
    """Lock what has just been made, where that can be done; whether it is still there. If not, it is closed."""
    with suppress(OSError):  # of a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.stat(part), os.fstat(descriptor)):
            return True
    os.close(descriptor)
    return False


def _remove(part: str | Path, directory: bool) -> None:
    if directory:
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(part)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UnusableError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
