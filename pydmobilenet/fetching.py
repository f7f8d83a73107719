"""Files on this machine and from the network: their places, their digests, and downloads that are verified."""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from . import files
from .errors import BadFileError, InvalidValueError, MissingFileError, UnusableError

TIMEOUT = (3.0, 15.0)  # seconds to connect, and between two signs of life
CHUNK = 1 << 16
LARGEST = 1 << 28  # bytes of a file whose size is not published: the largest archive has 170 MB
MEMORY = 600.0  # seconds for which a host that could not be reached is not asked again
_unreachable: dict[str, tuple[float, str]] = {}
# What the text of an error has, and what went wrong then; the first one counts.
SIGNS = {
    "SOCKS support": "SOCKS needs another package: pip install pysocks",
    "failed: 407": "it wants a name and a password, as http://NAME:PASSWORD@HOST:PORT",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is refused; $REQUESTS_CA_BUNDLE names a file of trusted ones",
    "invalid path": "no file of certificates: see $REQUESTS_CA_BUNDLE and $CURL_CA_BUNDLE",
    "NO_CERTIFICATE_OR_CRL_FOUND": "no certificates in the file of $REQUESTS_CA_BUNDLE or $CURL_CA_BUNDLE",
    "WRONG_VERSION_NUMBER": "it does not speak HTTPS, perhaps HTTP",
    "resolve": "the host's name could not be resolved",
    "refused": "the connection was refused",
    "imed out": "no answer in time",
    "imeout": "no answer in time",
    "IncompleteRead": "the connection broke off",
    "Connection aborted": "the connection broke off",
    "unreachable": "the network cannot be reached",
    "Invalid": "not a valid address",
    "MissingSchema": "not a valid address",
    "LocationParseError": "not a valid address",
}


@dataclass(frozen=True)
class Source:
    """Where a file can be had, and its digest there: ``sha256:…``, ``sha1:…``, ``md5:…`` or ``git:…`` (a git blob).

    Never more than so many `bytes` are taken: of the file's size, where it is published.
    """

    url: str
    digest: str
    bytes: int = LARGEST


class Unavailable(Exception):
    """Why one source did not give the file."""


def digest(path: Path, kind: str) -> str:
    """The digest of a file, written as in `Source`."""
    hasher = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    with readable(path) as file:
        if kind == "git":
            hasher.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return f"{kind}:{hasher.hexdigest()}"


def verify(path: Path, expected: str, size: int | None = None) -> Path:
    """`path`, if it has the expected digest, and so many bytes where that is known; raises BadFileError otherwise."""
    if size is not None and path.stat().st_size != size:
        raise BadFileError(
            f"{path} is not the published file: it has {path.stat().st_size} bytes of {size}; move it away to go on"
        )
    found = digest(path, expected.split(":", 1)[0])
    if found != expected:
        raise BadFileError(f"{path} is not the published file: it has {found}, not {expected}; move it away to go on")
    return path


def first_existing(candidates: Iterable[Path]) -> Path | None:
    """The first of the candidates that is a file, as far as one may look."""
    return next((path for path in candidates if os.path.isfile(path)), None)


def readable(path: Path) -> BinaryIO:
    """An open file; raises UnusableError where it cannot be read."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UnusableError(f"cannot read {path}: {error.strerror}") from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path that a user has given, with ``~`` expanded; raises InvalidValueError where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidValueError(f"unknown directory {str(path)!r}: {error}") from None


def search_path(below: str, root: Path | None = None, bundled: Path | None = None) -> list[Path]:
    """The directories in which files are looked for, in this order, each once.

    `root`, the path given; `below` in ``$PYDMOBILENET_HOME``, if it is set; what is `bundled`; and `below` in MXNet's
    home, ``$MXNET_HOME`` or ``~/.mxnet``.
    """
    home = os.environ.get("PYDMOBILENET_HOME")
    places = [
        *([expanded(root)] if root is not None else []),
        *([expanded(home) / below] if home else []),
        *([bundled] if bundled is not None else []),
        expanded(os.environ.get("MXNET_HOME") or "~/.mxnet") / below,
    ]
    return list(dict.fromkeys(places))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory and hold its lock, so that of several processes one does the work.

    The others wait, and say so. Where there can be no lock, what is written says why, or is put in place whole.
    """
    lock = FileLock(directory / ".download.lock", mode=0o666)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.acquire(lock, timeout=1)
    except Timeout:
        warnings.warn(f"waiting for another process that is at work in {directory}", stacklevel=3)
        lock.acquire()
    except OSError:  # of a file in its place, of a read-only directory, of another user's lock
        pass
    try:
        yield
    finally:
        lock.release()


def fetch(sources: Sequence[Source], target: Path) -> Path:
    """Download `target`, verified, from the first source that has it.

    Raises MissingFileError, naming what each source answered, and UnusableError where `target` cannot be written.
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
    """Write what a source has into a file. Raises Unavailable where it is not the right content."""
    size, head = 0, b""
    for piece in _pieces(source.url, name):
        size, head = size + len(piece), head or piece[:64].lstrip().lower()
        if size > source.bytes:
            raise Unavailable(f"{source.url} has more than the {source.bytes} bytes that {name} can have")
        file.write(piece)
    file.flush()
    found = digest(Path(file.name), source.digest.partition(":")[0])
    if found != source.digest:
        what = "an HTML page" if head.startswith((b"<!doctype", b"<html")) else f"another file ({found})"
        raise Unavailable(f"{source.url} answered with {what}, not with {source.digest}")


def _pieces(url: str, name: str) -> Iterator[bytes]:
    """Yield what a server sends. Raises Unavailable for all that can go wrong on the way."""
    import requests
    from urllib3.exceptions import HTTPError

    from .text import progress_bar

    host = url.split("/")[2] if "://" in url else url
    when, reason = _unreachable.get(host, (-MEMORY, ""))
    if time.monotonic() - when < MEMORY:
        raise Unavailable(reason)
    proxy = ""
    try:
        proxy = _proxy(url)
        # As it is sent: a server that packs it all the same sends another file, and nothing is unpacked.
        with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code != 200:
                raise Unavailable(f"{url}: HTTP status {answer.status_code}")
            length = answer.headers.get("Content-Length", "")
            with progress_bar(int(length) if length.isdecimal() else None, name, "B", unit_scale=True) as bar:
                for piece in answer.raw.stream(CHUNK, decode_content=False):
                    bar.update(len(piece))
                    yield piece
    except (OSError, HTTPError, ValueError) as error:  # those of requests are OSErrors
        reason = f"{host}: {proxy}{_reason(error)}"
        if isinstance(error, (requests.ConnectionError, requests.Timeout)):
            _unreachable[host] = (time.monotonic(), reason)
        raise Unavailable(reason) from None


def _reason(error: Exception) -> str:
    text = f"{type(error).__name__} {error}"
    return next((words for sign, words in SIGNS.items() if sign in text), type(error).__name__)


def _proxy(url: str) -> str:
    """``the proxy …: ``, without its password and with the variable that names it; nothing where there is none."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return ""
    names = [f"{scheme}_proxy" for scheme in (url.partition(":")[0], "all")]
    variables = (name for lower in names for name in (lower, lower.upper()) if os.environ.get(name) == proxy)
    return f"the proxy {re.sub('//.*@', '//', proxy)} ({next(variables, 'of the system')}): "
