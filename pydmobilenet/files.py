"""Atomic files and directories, output streams, locks, and the package's resources."""

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

STDOUT = Path("/dev/stdout")  # a name that works on every system
STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTORS = ("/dev/fd", "/proc/self/fd")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # some NFS and FUSE
# The recipes and the bundled checkpoints: beside the package in a checkout, inside it in an installed wheel.
PACKAGE = Path(__file__).resolve().parent
RESOURCES = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS, PRETRAINED = RESOURCES / "configs", RESOURCES / "pretrained"


def write(path: Path, content: str | bytes) -> None:
    """Write a file, as `writing` does."""
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several files; rename them, in their order, once all are written."""
    with ExitStack() as stack:
        for path, content in reversed(list(contents.items())):  # an ExitStack closes the last one first
            file = stack.enter_context(writing(path))
            file.write(content.encode() if isinstance(content, str) else content)
            _sync(file)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file beside `path`, renamed to it at the end of the block.

    On any error, an earlier file stays. Symlinks are followed, the mode is kept. A stream is written to at once. Raises
    UnusableError.
    """
    check(path)
    number = stream(path)
    if number is not None:
        for buffered in filter(None, (sys.stdout, sys.stderr)):
            buffered.flush()  # earlier lines come first
        with _naming(path), open(number, "wb", closefd=False) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    tmp = _beside(target)
    try:
        with _naming(path):
            with open(tmp, "xb") as file:
                if target.exists():
                    shutil.copymode(target, tmp)
                    with suppress(OSError, AttributeError):  # root keeps the owner; Windows has none
                        os.chown(tmp, target.stat().st_uid, target.stat().st_gid)
                yield file
                _sync(file)
            os.replace(tmp, target)
    finally:
        with suppress(OSError):
            tmp.unlink()


def _beside(target: Path) -> Path:
    """Return a unique name for a temporary file, short enough for any file system."""
    return target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.part")


def _sync(file: BinaryIO) -> None:
    file.flush()
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a stream may be a pipe
        os.fsync(file.fileno())


def stream(path: Path) -> int | None:
    """Return the descriptor of a path such as ``/dev/stdout`` or ``/dev/fd/3``, else None.

    `os.path.realpath` would follow the redirection of a descriptor.
    """
    directory, _, name = path.as_posix().rpartition("/")
    if directory in DESCRIPTORS and name.isdecimal():
        return int(name)
    return STREAMS.get(path.as_posix())


def check(path: Path) -> None:
    """Raise UnusableError if a file cannot be written: not a file, read-only, or no such directory."""
    try:
        if (number := stream(path)) is not None:
            os.write(number, b"")  # fails for a closed or read-only one
            return
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        parent = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(parent):
            raise UnusableError(f"cannot write {path}: no such directory: {parent}") from None
        return
    except (OSError, ValueError) as error:  # ValueError: an invalid name
        raise UnusableError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UnusableError(f"cannot write {path}: it is {kind} (allowed: a file)")
    if not (mode & 0o222 and os.access(path, os.W_OK)):  # root may write any
        raise UnusableError(f"cannot write {path}: it is read-only")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory, renamed to `path` at the end of the block.

    Of several at once, the first wins. Raises UnusableError if `path` exists by then or cannot be made.
    """
    tmp = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp.mkdir()
        yield tmp
        os.rename(tmp, path)  # replaces only an empty directory
    except UserError:
        raise
    except OSError as error:
        raise UnusableError(f"cannot make the directory {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def check_new_directory(path: Path) -> None:
    """Raise UnusableError if `new_directory` would fail; tries it with a temporary one."""
    target = path.absolute()
    parent = next(folder for folder in target.parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=parent) as trial:
            (Path(trial) / target.relative_to(parent)).mkdir(parents=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise UnusableError(f"cannot make the directory {path}: {getattr(error, 'strerror', None) or error}") from None


def acquire(lock: FileLock, timeout: float) -> None:
    """Acquire a lock; warn if the file system has no locks. Raises as `FileLock.acquire`."""
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
    except (UserError, BrokenPipeError):  # BrokenPipeError: a reader such as head has ended
        raise
    except OSError as error:
        raise UnusableError(f"cannot write {path}: {error.strerror or error}") from None
