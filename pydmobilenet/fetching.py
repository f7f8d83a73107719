"""Files from the network: verified before they are used, placed atomically, resumed, safe for two processes at once."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .errors import BadFileError, MissingFileError, UnknownNameError, UnusableError

TIMEOUT = (3.0, 15.0)  # seconds to connect, and between two pieces of an answer
CHUNK = 1 << 16  # bytes; what has come of the last one is lost where a download breaks off
MEMORY = 600.0  # seconds for which a host that could not be reached is not asked again
_unreachable: dict[str, tuple[float, str]] = {}


@dataclass(frozen=True)
class Source:
    """Where a file can be had, and its digest there: ``sha256:…``, ``sha1:…``, ``md5:…`` or ``git:…`` (a git blob)."""

    url: str
    digest: str


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


def expanded(path: str | Path) -> Path:
    """A path that a user has given, with ``~`` expanded; raises UnknownNameError where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UnknownNameError(f"unknown directory {str(path)!r}: {error}") from None


def mxnet_home() -> Path:
    """MXNet's own directory for models and data: ``$MXNET_HOME``, by default ``~/.mxnet``."""
    return expanded(os.environ.get("MXNET_HOME") or "~/.mxnet")


def project_home() -> Path | None:
    """``$PYDMOBILENET_HOME``, if it is set."""
    home = os.environ.get("PYDMOBILENET_HOME")
    return expanded(home) if home else None


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
        lock.acquire(timeout=1)
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

    Raises MissingFileError, naming what each source answered, and UnusableError where `target` cannot be written.
    """
    reasons = []
    for source in sources:
        part = target.with_name(f"{target.name}.{hashlib.sha256(source.url.encode()).hexdigest()[:8]}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _download(source, part)
            part.replace(target)
            return target
        except Unavailable as error:
            reasons.append(str(error))
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)  # a full disk should not stay full
            raise UnusableError(f"cannot write {target}: {error.strerror or error}") from None
    raise MissingFileError("; ".join(reasons))


def _download(source: Source, part: Path) -> None:
    """Bring the whole verified file to `part`, going on from what an earlier try has left there."""
    resumed = part.exists() and part.stat().st_size > 0
    _receive(source.url, part)
    if not matches(part, source.digest) and resumed:  # perhaps the earlier piece was of something else
        part.unlink()
        _receive(source.url, part)
    if not matches(part, source.digest):
        head = part.read_bytes()[:64].lstrip().lower()
        found = digest(part, source.digest.split(":", 1)[0])
        part.unlink()
        kind = "an HTML page" if head.startswith((b"<!doctype", b"<html")) else f"another file ({found})"
        raise Unavailable(f"{source.url} answered with {kind}, not with {source.digest}")


def _receive(url: str, part: Path) -> None:
    """Append what is missing of `url` to `part`. Raises Unavailable where the end is not reached."""
    import requests

    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    # Compressed transfer would make lengths and ranges count something other than the file.
    headers["Accept-Encoding"] = "identity"
    host = url.split("/")[2] if "://" in url else url
    when, reason = _unreachable.get(host, (-MEMORY, ""))
    if time.monotonic() - when < MEMORY:
        raise Unavailable(reason)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing is left to send: the digest will tell
                return
            if answer.status_code not in (200, 206):
                raise Unavailable(f"{url}: HTTP status {answer.status_code}")
            _store(answer, part, start if answer.status_code == 206 else 0)
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        reason = f"{host}: {_reason(error)}"
        _unreachable[host] = (time.monotonic(), reason)
        raise Unavailable(reason) from None
    except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: an address that is none
        raise Unavailable(f"{url!r}: {_reason(error)}") from None


def _store(answer, part: Path, start: int) -> None:
    from tqdm import tqdm

    stated = answer.headers.get("Content-Length", "")
    length = int(stated) if stated.isdigit() else 0
    name = part.name.rsplit(".", 2)[0]
    # disable=None: a bar on a terminal, nothing in a pipe
    bar = tqdm(
        desc=name, total=start + length or None, initial=start, unit="B", unit_scale=True, disable=None, leave=False
    )
    with open(part, "ab" if start else "wb") as file, bar:
        for piece in answer.iter_content(CHUNK):
            file.write(piece)
            bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
    if length and part.stat().st_size < start + length:
        raise Unavailable(f"{name} broke off after {part.stat().st_size} of {start + length} bytes")


def _reason(error: Exception) -> str:
    """One short line for what went wrong on the way."""
    text = f"{type(error).__name__} {error}"
    for sign, words in {
        "resolve": "the host's name could not be resolved",
        "refused": "the connection was refused",
        "imed out": "no answer in time",
        "imeout": "no answer in time",
        "IncompleteRead": "the connection broke off; what has arrived is kept, run again to go on",
        "Connection aborted": "the connection broke off",
        "unreachable": "the network cannot be reached",
        "InvalidURL": "not a valid address",
        "MissingSchema": "not a valid address",
        "InvalidSchema": "not a valid address",
        "ValueError": "not a valid address",
    }.items():
        if sign in text:
            return words
    return type(error).__name__
