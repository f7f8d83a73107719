"""Files from the network: verified before they are used, placed atomically, resumed, safe for two processes at once.

pooch has the first two of these. It starts anew after a break, takes what a server sends without end, and waits without
end for one that sends byte by byte; so with it all of this module but the digests would still be here.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from . import files
from .errors import BadFileError, InvalidValueError, MissingFileError, UnusableError

TIMEOUT = (3.0, 15.0)  # seconds to connect, and between two signs of life
CHUNK = 1 << 16  # bytes; what has come of the last one is lost where a download breaks off
PATIENCE = 60.0  # seconds for an answer to begin, and for each CHUNK of it: below 1.1 kB/s a transfer is given up
LARGEST = 1 << 28  # bytes of a file whose size is not published: the largest archive has 170 MB
MEMORY = 600.0  # seconds for which a host that could not be reached is not asked again
_unreachable: dict[str, tuple[float, str]] = {}
LOGIN = "it wants a name and a password, as http://NAME:PASSWORD@HOST:PORT"
# What the text of an error has, and what went wrong then; the first one counts.
SIGNS = {
    "SOCKS support": "SOCKS needs another package: pip install pysocks",
    "Tunnel connection failed: 407": LOGIN,
    "Tunnel connection failed": "it answered {detail}",
    "invalid path": "no file of certificates: {bundle}",
    "NO_CERTIFICATE_OR_CRL_FOUND": "no file of certificates: {bundle}",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is refused ({detail}); trusted are those of {bundle}",
    "WRONG_VERSION_NUMBER": "it does not speak HTTPS, perhaps HTTP",
    "resolve": "the host's name could not be resolved",
    "refused": "the connection was refused",
    "imed out": "no answer in time",
    "imeout": "no answer in time",
    "IncompleteRead": "the connection broke off",
    "Connection aborted": "the connection broke off",
    "Connection broken": "the connection broke off",
    "unreachable": "the network cannot be reached",
    "InvalidURL": "not a valid address",
    "InvalidProxyURL": "not a valid address",
    "MissingSchema": "not a valid address",
    "InvalidSchema": "not a valid address",
    "ValueError": "not a valid address",
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
    """Why one source did not give the file. What has arrived of the right file is kept for the next try."""


def digest(path: Path, kind: str) -> str:
    """The digest of a file, written as in `Source`."""
    hasher = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    with readable(path) as file:
        if kind == "git":
            hasher.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return f"{kind}:{hasher.hexdigest()}"


def matches(path: Path, expected: str) -> bool:
    """Whether a file has the expected digest."""
    return digest(path, expected.split(":", 1)[0]) == expected


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
def locked(directory: Path, make: bool = False) -> Iterator[None]:
    """The right to write into a directory: a second process waits until the first is done, and says so.

    To look into it, one waits too, as what is there may be half of it. A directory that is absent (and that `make` does
    not ask to be made) or read-only is nobody's to write, and needs no lock.
    """
    if make:
        with suppress(OSError):  # what is to be written there will say why it cannot be
            directory.mkdir(parents=True, exist_ok=True)
    if not (os.path.isdir(directory) and os.access(directory, os.W_OK)):
        yield
        return
    lock = FileLock(directory.resolve() / ".download.lock", mode=0o666)
    try:
        files.acquire(lock, timeout=1)
    except PermissionError:  # another user's: what is written is verified and put in place whole all the same
        yield
        return
    except Timeout:
        warnings.warn(f"waiting for another process that is at work in {directory}", stacklevel=3)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(sources: Sequence[Source], target: Path) -> Path:
    """Download `target` from the first source that has it, verified; to be called in `locked(target.parent)`.

    What has arrived of the right file is kept beside it for the next try. Raises MissingFileError, naming what each
    source answered, and UnusableError where `target` cannot be written.
    """
    reasons = []
    parts = [_part(source, target) for source in sources]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for source, part in zip(sources, parts):
            try:
                _download(source, part)
            except Unavailable as error:
                size = part.stat().st_size if part.exists() else 0
                kept = f"; {size} bytes have arrived and are kept: run again to go on"
                reasons.append(f"{error}{kept if size else ''}")
                if not size:
                    _remove([part])
                continue
            os.replace(part, target)
            parts.remove(part)
            _remove(parts)
            return target
    except OSError as error:
        _remove(parts)  # a full disk should not stay full
        raise UnusableError(f"cannot write {target}: {error.strerror or error}") from None
    raise MissingFileError("; ".join(reasons))


def _part(source: Source, target: Path) -> Path:
    """What has arrived of a file from a source: a name that the next try finds again."""
    return target.with_name(f"{target.name}.{hashlib.sha256(source.url.encode()).hexdigest()[:8]}.part")


def _remove(parts: Iterable[Path]) -> None:
    for part in parts:
        with suppress(OSError):
            part.unlink()


def _download(source: Source, part: Path) -> None:
    """Bring the whole verified file to `part`, going on from what an earlier try has left there."""
    resumed = part.exists() and part.stat().st_size > 0
    _receive(source, part)
    if resumed and not matches(part, source.digest):  # perhaps the earlier piece was of something else
        part.unlink()
        _receive(source, part)
    if not matches(part, source.digest):
        with open(part, "rb") as file:
            head = file.read(64).lstrip().lower()
        found = digest(part, source.digest.split(":", 1)[0])
        part.unlink()
        kind = "an HTML page" if head.startswith((b"<!doctype", b"<html")) else f"another file ({found})"
        raise Unavailable(f"{source.url} answered with {kind}, not with {source.digest}")


def _receive(source: Source, part: Path) -> None:
    """Append what is missing of a file to `part`. Raises Unavailable where the end is not reached."""
    start = part.stat().st_size if part.exists() else 0
    host = _host(source.url)
    when, reason = _unreachable.get(host, (-MEMORY, ""))
    if time.monotonic() - when < MEMORY:
        raise Unavailable(reason)
    transfer = _Transfer(source.url, start)
    try:
        answer = transfer.next()
    except _Silent as error:
        reason = f"{host}: {error}"
        _unreachable[host] = (time.monotonic(), reason)
        raise Unavailable(reason) from None
    if answer.status_code == 416 and start:  # nothing is left to send: the digest will tell
        return
    if answer.status_code == 407:
        raise Unavailable(f"{host}: {_proxy(source.url)}{LOGIN}")
    if answer.status_code not in (200, 206):
        raise Unavailable(f"{source.url}: HTTP status {answer.status_code}")
    try:
        _store(transfer, answer, source, part, start if answer.status_code == 206 else 0)
    except _Silent as error:
        raise Unavailable(f"{host}: {error}") from None


def _store(transfer: _Transfer, answer, source: Source, part: Path, start: int) -> None:
    from .progress import bar as progress_bar

    stated = answer.headers.get("Content-Length", "")
    length = int(stated) if stated.isdecimal() and len(stated) < 20 else 0
    name, size, piece = part.name.rsplit(".", 2)[0], start, b""
    bar = progress_bar(start + length or None, name, "B", initial=start, unit_scale=True)
    with open(part, "ab" if start else "wb") as file, bar:
        while max(start + length, size + len(piece)) <= source.bytes:
            file.write(piece)
            size += len(piece)
            bar.update(len(piece))
            piece = transfer.next()
            if not piece:
                break
        file.flush()
        os.fsync(file.fileno())
    if max(start + length, size + len(piece)) > source.bytes:
        part.unlink()
        raise Unavailable(f"{source.url} has more than the {source.bytes} bytes that {name} can have")
    if size < start + length:
        raise Unavailable(f"{name} broke off after {size} of {start + length} bytes")


class _Silent(Exception):
    """A host does not answer, or no longer; the text says why."""


class _Transfer:
    """An answer, then its pieces, then an empty one, each from `next`, which waits for no more than `PATIENCE`.

    A thread receives them: what a server sends byte by byte is never late for a socket, but for this.
    """

    def __init__(self, url: str, start: int):
        # Compressed transfer would make lengths and ranges count something other than the file.
        self.headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        self.url = url
        self.arrived: queue.Queue = queue.Queue(maxsize=4)
        threading.Thread(target=self._receive, daemon=True).start()

    def next(self):
        """Raises _Silent where nothing comes, and Unavailable where nothing can come."""
        import requests
        from urllib3.exceptions import HTTPError

        try:
            came = self.arrived.get(timeout=PATIENCE)
        except queue.Empty:
            raise _Silent(f"less than {CHUNK} bytes came in {PATIENCE:g} s: given up") from None
        if not isinstance(came, Exception):
            return came
        lost = (requests.exceptions.ConnectionError, requests.exceptions.Timeout, HTTPError)
        if isinstance(came, lost) and not isinstance(came, ValueError):
            raise _Silent(_reason(came, self.url))
        raise Unavailable(f"{self.url!r}: {_reason(came, self.url)}")  # an address that is none, too many redirections

    def _receive(self) -> None:
        import requests

        with suppress(queue.Full):  # nobody waits any longer
            try:
                with requests.get(self.url, headers=self.headers, stream=True, timeout=TIMEOUT) as answer:
                    self._put(answer)
                    # As it is sent: a server that packs it all the same sends another file, and nothing is unpacked.
                    for piece in answer.raw.stream(CHUNK, decode_content=False):
                        self._put(piece)
                    self._put(b"")
            except queue.Full:
                raise
            except Exception as error:
                self._put(error)

    def _put(self, came: object) -> None:
        self.arrived.put(came, timeout=PATIENCE)


def _host(url: str) -> str:
    return url.split("/")[2] if "://" in url else url


def _reason(error: Exception, url: str) -> str:
    """One short line for what went wrong on the way, with the variable that rules it, if there is one."""
    from requests.exceptions import ProxyError

    text = f"{type(error).__name__} {error}"
    words = next((words for sign, words in SIGNS.items() if sign in text), type(error).__name__)
    detail = re.search(r"(?:Tunnel connection failed|certificate verify failed): (.+?)\.?(?: \(_ssl|['\"]\))", text)
    words = words.format(detail=detail[1] if detail else "no reason given", bundle=_bundle())
    is_proxys = isinstance(error, ProxyError) or "SOCKS" in text or (isinstance(error, ValueError) and _is_address(url))
    return f"{_proxy(url)}{words}" if is_proxys else words


def _is_address(url: str) -> bool:
    try:
        address = urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0  # which may raise
    except ValueError:
        return False


def _bundle() -> str:
    """What says which certificates are trusted, as requests has it."""
    names = (name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name))
    return next((f"{name}={os.environ[name]}" for name in names), "certifi, unless REQUESTS_CA_BUNDLE names a file")


def _proxy(url: str) -> str:
    """``the proxy …: ``, without its password and with the variable that names it; nothing where there is none."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return ""
    names = [f"{scheme}_proxy" for scheme in (url.partition(":")[0], "all")]
    variables = (name for lower in names for name in (lower, lower.upper()) if os.environ.get(name) == proxy)
    return f"the proxy {re.sub('//.*@', '//', proxy)} ({next(variables, 'of the system')}): "
