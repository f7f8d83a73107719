"""Files and directories that are put in place whole or not at all.

What is not finished yet has a name of its own beside its target, and a lock that lasts as long as its writer lives. The
system ends the lock with the process, however that ends. So what carries no lock was left behind, and whoever writes
into the directory next removes it. (The number of a process would not tell: numbers are used again, and two containers
that share a directory do not see each other's.) Where a file system has no locks, nothing is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock

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
STDOUT = Path("/dev/stdout")  # on every system
STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTORS = ("/dev/fd", "/proc/self/fd", "/proc/thread-self/fd")
MAX_LINKS = 40  # as many as Linux follows
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of some NFS and FUSE; of ENOSYS filelock knows


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file, as `write_together` does."""
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several whole files. Once all of them are on the disk they are put in place, in their order.

    Whatever goes wrong before, all earlier files stay as they were. A link stays, and the file that it leads to is
    replaced; the new one has its mode. A stream is written to at once. Raises UnusableError where a file cannot be
    written.
    """
    with ExitStack() as stack:
        begun = []
        for path, content in contents.items():
            new = _begin(path, stack)
            with _naming(path):
                with open(new.descriptor, "wb", closefd=False) as file:
                    file.write(content.encode() if isinstance(content, str) else content)
                new.sync()
            begun.append((path, new))
        for path, new in begun:
            with _naming(path):
                new.place()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which is put in place once the block has ended, as `write_together` does.

    Whatever is raised in the block, nothing is written but to a stream. Raises UnusableError where the file cannot be.
    """
    with ExitStack() as stack:
        new = _begin(path, stack)
        file = stack.enter_context(open(new.descriptor, "wb", closefd=False))
        yield file
        with _naming(path):
            file.flush()
            new.sync()
            new.place()


class _New(NamedTuple):
    """What is about to be written: a `part` and the `target` that it will replace, or neither for a stream."""

    descriptor: int
    part: Path | None = None
    target: Path | None = None

    def sync(self) -> None:
        if self.part:
            os.fsync(self.descriptor)

    def place(self) -> None:
        if self.part and self.target:
            place(self.part, self.target)


def _begin(path: Path, stack: ExitStack) -> _New:
    check(path)
    with _naming(path):
        number = stream(path)
        if number is not None:
            for buffered in filter(None, (sys.stdout, sys.stderr)):
                buffered.flush()  # what was printed before comes before
            return _New(number)
        target = Path(os.path.realpath(path))  # a link stays
        part, descriptor = stack.enter_context(_part(target))
        _copy_mode(target, descriptor if os.chmod in os.supports_fd else part)
        return _New(descriptor, part, target)


def _copy_mode(target: Path, part: Path | int) -> None:
    """Give a part the mode of the file that it will replace and its group and owner, as far as the system allows."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return
    mode = old.st_mode & 0o777
    if hasattr(os, "chown"):
        for owner in ((-1, old.st_gid), (old.st_uid, -1)):
            with suppress(OSError):
                os.chown(part, *owner)
        if os.stat(part).st_gid != old.st_gid:
            mode &= ~stat.S_IRWXG  # another group shall not read what this one could
    with suppress(OSError):  # of a file system without modes
        os.chmod(part, mode)


def stream(path: Path) -> int | None:
    """The number of the open descriptor that a path names, as ``/dev/stdout`` and ``/dev/fd/3`` do, else None.

    ``os.path.realpath`` would lead to the file that a descriptor is redirected to.
    """
    for _ in range(MAX_LINKS):
        if path.as_posix() in STREAMS:
            return STREAMS[path.as_posix()]
        directory = os.path.realpath(path.parent)
        if path.name.isdecimal() and directory in map(os.path.realpath, DESCRIPTORS):
            return int(path.name)
        if directory.startswith("/proc/"):  # another process's descriptors too
            raise UnusableError(f"cannot write {path}: {directory} holds no files")
        if not os.path.islink(path):
            return None
        path = Path(directory, os.readlink(path))
    return None


def check(path: Path) -> None:
    """Raises UnusableError where a file cannot be put: onto what is none, onto a read-only one, or into a directory
    that is not there.
    """
    try:
        if (number := stream(path)) is not None:
            os.write(number, b"")  # fails where it is closed, or open for reading alone
            return
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        parent = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(parent):
            raise UnusableError(f"cannot write {path}: no such directory: {parent}") from None
        return
    except UnusableError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that can be none
        raise UnusableError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    kind = next((name for holds, name in KINDS.items() if holds(mode)), None)
    if kind:
        raise UnusableError(f"cannot write {path}: it is {kind} (allowed: a file)")
    if not (mode & 0o222 and os.access(path, os.W_OK)):  # of root, the latter is true of any
        raise UnusableError(f"cannot write {path}: it is read-only")


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
            continue
        mode = 0o600 if target.exists() else 0o666  # what replaces a file has its mode later
        if _locked(descriptor := os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), part):
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


def acquire(lock: FileLock, timeout: float) -> None:
    """Acquire a lock; where the file system has none, warn and go on without it. Raises as `FileLock.acquire`."""
    try:
        lock.acquire(timeout)
        return
    except NotImplementedError:
        pass
    except OSError:  # of earlier filelocks even a Timeout
        if _has_locks(lock.lock_file):
            raise
    directory = os.path.dirname(lock.lock_file)
    warnings.warn(f"the file system of {directory} has no locks: let no other process write there", stacklevel=2)


def _has_locks(path: str) -> bool:
    try:
        with open(path, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # the reader of a stream has gone
        raise
    except (OSError, ValueError) as error:
        raise UnusableError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
