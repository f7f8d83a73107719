"""Files and directories that are put in place whole or not at all, and streams, which are written to at once."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from .errors import UnusableError, UserError

STDOUT = Path("/dev/stdout")  # on every system
STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTORS = ("/dev/fd", "/proc/self/fd")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of some NFS and FUSE
# The recipes and the bundled checkpoints: beside the package in a checkout, inside it in an installed wheel.
PACKAGE = Path(__file__).resolve().parent
RESOURCES = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS, PRETRAINED = RESOURCES / "configs", RESOURCES / "pretrained"


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file, as `writing` does."""
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several whole files. Once all of them are on the disk they are put in place, in their order."""
    with ExitStack() as stack:
        for path, content in reversed(list(contents.items())):  # the last one that is begun is put in place first
            file = stack.enter_context(writing(path))
            file.write(content.encode() if isinstance(content, str) else content)
            _sync(file)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which is put in place once the block has ended.

    Whatever is raised in the block, an earlier file stays as it was. A link stays too, and the file that it leads to is
    replaced; the new one has its mode. A stream is written to at once. Raises UnusableError where a file cannot be
    written.
    """
    check(path)
    number = stream(path)
    if number is not None:
        for buffered in filter(None, (sys.stdout, sys.stderr)):
            buffered.flush()  # what was printed before comes before
        with _naming(path), open(number, "wb", closefd=False) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    part, old = _beside(target), target.stat() if target.exists() else None
    mode = stat.S_IMODE(old.st_mode) if old else 0o666
    try:
        with _naming(path):
            with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                if old:
                    with suppress(OSError, AttributeError):  # not everybody may, and Windows has none
                        os.chown(part, old.st_uid, old.st_gid)
                    os.chmod(part, mode)  # of which the process's mask may have taken away some
                yield file
                _sync(file)
            os.replace(part, target)
            _sync_directory(target.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def _beside(target: Path) -> Path:
    """Return a name for what is not finished: nobody else's, and not too long."""
    return target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.part")


def _sync(file: BinaryIO) -> None:
    file.flush()
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a stream may be a pipe
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Have a new name itself come to the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def stream(path: Path) -> int | None:
    """Return the number of the open descriptor that a path names, as ``/dev/stdout`` and ``/dev/fd/3``, else None.

    ``os.path.realpath`` would lead to the file that a descriptor is redirected to.
    """
    directory, _, name = path.as_posix().rpartition("/")
    if directory in DESCRIPTORS and name.isdecimal():
        return int(name)
    return STREAMS.get(path.as_posix())


def check(path: Path) -> None:
    """Raise UnusableError where a file cannot be put: onto what is none, onto a read-only one, or into no directory."""
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
    except (OSError, ValueError) as error:  # ValueError: a name that can be none
        raise UnusableError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UnusableError(f"cannot write {path}: it is {kind} (allowed: a file)")
    if not (mode & 0o222 and os.access(path, os.W_OK)):  # of root, the latter is true of any
        raise UnusableError(f"cannot write {path}: it is read-only")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill, which is at `path` once the block has ended.

    Of several at once the first wins. Raises UnusableError where something else is at `path` by then, or it cannot be
    made; nothing is left behind then.
    """
    part = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        os.rename(part, path)  # which replaces nothing but an empty directory
    except UserError:
        raise
    except OSError as error:
        raise UnusableError(f"cannot make the directory {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_new_directory(path: Path) -> None:
    """Raise UnusableError where `new_directory` could not make a directory, as a trial of its names tells."""
    target = path.absolute()
    parent = next(each for each in target.parents if os.path.lexists(each))
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=parent) as trial:
            (Path(trial) / target.relative_to(parent)).mkdir(parents=True)
    except OSError as error:
        raise UnusableError(f"cannot make the directory {path}: {error.strerror or error}") from None


def acquire(lock: FileLock, timeout: float) -> None:
    """Acquire a lock; where the file system has none, warn and go on without it. Raises as `FileLock.acquire`."""
    try:
        lock.acquire(timeout)
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        directory = os.path.dirname(lock.lock_file)
        warnings.warn(f"the file system of {directory} has no locks: let no other process write there", stacklevel=2)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, BrokenPipeError):  # the latter: the reader of a stream has gone
        raise
    except OSError as error:
        raise UnusableError(f"cannot write {path}: {error.strerror or error}") from None
