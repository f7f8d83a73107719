"""Search paths, digests and verified downloads."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from . import files
from .errors import BadFileError, InvalidValueError, MissingFileError, UnusableError

TIMEOUT = (3.0, 15.0)  # seconds to connect, and between two bytes
CHUNK = 1 << 16
LARGEST = 1 << 28  # bytes of a file of unpublished size: the largest archive has 170 MB
UNREACHABLE_SECONDS = 600.0  # before the next try
_unreachable: dict[str, tuple[float, str]] = {}  # by host


@dataclass(frozen=True)
class Source:
    """A URL, and the digest of its file: ``sha256:…``, ``sha1:…``, ``md5:…`` or ``git:…`` (a git blob).

    A download ends at `bytes`.
    """

    url: str
    digest: str
    bytes: int = LARGEST


class Unavailable(Exception):
    """A source failed."""


def digest(path: Path, kind: str) -> str:
    """Return the digest of a file, written as in `Source`."""
    hasher = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    with readable(path) as file:
        if kind == "git":
            hasher.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return f"{kind}:{hasher.hexdigest()}"


def verify(path: Path, expected: str, size: int | None = None) -> Path:
    """Return `path`; raise BadFileError if its digest, or its size in bytes, is not the expected one."""
    if size is not None and path.stat().st_size != size:
        actual, expected = f"{path.stat().st_size} bytes", f"{size}"
    else:
        actual = digest(path, expected.partition(":")[0])
    if actual != expected:
        raise BadFileError(f"{path} is not the published file: it has {actual}, not {expected}; move it away to go on")
    return path


def readable(path: Path) -> BinaryIO:
    """Open a file to read; raise UnusableError if that fails."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UnusableError(f"cannot read {path}: {error.strerror}") from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a user's path with ``~`` expanded; raise InvalidValueError if there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidValueError(f"unknown directory {str(path)!r}: {error}") from None


def search_path(below: str, root: Path | None = None, bundled: Path | None = None) -> list[Path]:
    """List the directories to search: `root`, `below` in ``$PYDMOBILENET_HOME``, `bundled`, `below` in MXNet's home.

    MXNet's home is ``$MXNET_HOME`` or ``~/.mxnet``.
    """
    home = os.environ.get("PYDMOBILENET_HOME")
    paths = [
        *([expanded(root)] if root is not None else []),
        *([expanded(home) / below] if home else []),
        *([bundled] if bundled is not None else []),
        expanded(os.environ.get("MXNET_HOME") or "~/.mxnet") / below,
    ]
    return list(dict.fromkeys(paths))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory and hold its lock. Other processes wait, with a warning."""
    lock = FileLock(directory / ".download.lock", mode=0o666)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.acquire(lock, timeout=1)
    except Timeout:
        warnings.warn(f"waiting for another process in {directory}", stacklevel=3)
        lock.acquire()
    except OSError:  # a read-only directory, or another user's lock: without it, a file is only fetched twice
        pass
    try:
        yield
    finally:
        lock.release()


def fetch(sources: Sequence[Source], target: Path) -> Path:
    """Download `target`, verified, from the first source that has it.

    Raises MissingFileError with each source's reason, and UnusableError if `target` cannot be written.
    """
    reasons = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableError(f"cannot write {target}: {error.strerror}") from None
    for source in sources:
        try:
            with files.writing(target) as file:
                _download(source, file, target.name)
            return target
        except Unavailable as error:
            reasons.append(str(error))
    raise MissingFileError("; ".join(reasons))


def _download(source: Source, file: BinaryIO, name: str) -> None:
    """Download a source into a file. Raises Unavailable."""
    size = 0
    for chunk in _chunks(source.url, name):
        size += len(chunk)
        if size > source.bytes:
            raise Unavailable(f"{source.url} has more than the {source.bytes} bytes of {name}")
        file.write(chunk)
    file.flush()
    actual = digest(Path(file.name), source.digest.partition(":")[0])
    if actual != source.digest:
        raise Unavailable(f"{source.url} sent another file ({actual}), not {source.digest}")


def _chunks(url: str, name: str) -> Iterator[bytes]:
    """Yield a server's response. Raises Unavailable for any failure on the way."""
    import requests
    from urllib3.exceptions import HTTPError

    from .text import progress_bar

    host = url.split("/")[2] if "://" in url else url
    when, reason = _unreachable.get(host, (-UNREACHABLE_SECONDS, ""))
    if time.monotonic() - when < UNREACHABLE_SECONDS:
        raise Unavailable(reason)
    proxy, outer = "", sys.exc_info()[1]
    try:
        proxy = _proxy(url)
        # Not unpacked: some servers label a .tar.gz as a packed .tar.
        with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as response:
            if response.status_code != 200:
                raise Unavailable(f"{url}: HTTP status {response.status_code}")
            length = response.headers.get("Content-Length", "")
            with progress_bar(int(length) if length.isdecimal() else None, name, "B", unit_scale=True) as bar:
                for chunk in response.raw.stream(CHUNK, decode_content=False):
                    bar.update(len(chunk))
                    yield chunk
    except (OSError, HTTPError, ValueError) as error:  # those of requests are OSErrors
        cause = _cause(error, outer)
        if proxy:  # quoted may be parts of its password
            cause = re.sub("'.*?'", "it", cause)
        reason = f"{host}: {proxy}{cause}"
        if isinstance(error, (requests.ConnectionError, requests.Timeout)):
            _unreachable[host] = (time.monotonic(), reason)
        raise Unavailable(reason) from None


def _cause(error: BaseException, outer: BaseException | None) -> str:
    """Return the first cause of an error in its own words: those around it repeat the URL and the pool.

    `outer` is the error that the caller was handling before.
    """
    while (cause := error.__cause__ or error.__context__) and cause is not outer:
        error = cause
    return _without_password(" ".join(str(error).split()) or type(error).__name__)


def _proxy(url: str) -> str:
    """Return ``the proxy …: `` without its password; nothing if there is none."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    return f"the proxy {_without_password(proxy)}: " if proxy else ""


def _without_password(text: str) -> str:
    return re.sub("(//|'|^(?!.*//)).*@", r"\1", text)
