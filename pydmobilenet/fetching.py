"""Files from the network: verified before they are used, placed atomically, resumed, safe for two processes at once."""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from .errors import BadFileError, MissingFileError, UnusableError

TIMEOUT = (5.0, 15.0)  # seconds to connect, and between two pieces of an answer
CHUNK = 1 << 16  # bytes; what has come of the last one is lost where a download breaks off
MEMORY = 60.0  # seconds for which a host that could not be reached is not asked again
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
    with open(path, "rb") as file:
        if kind == "git":
            hasher.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return f"{kind}:{hasher.hexdigest()}"


def matches(path: Path, expected: str) -> bool:
    """Whether a file has the expected digest."""
    return digest(path, expected.split(":", 1)[0]) == expected


def verify(path: Path, expected: str) -> Path:
    """`path`, if it has the expected digest; raises BadFileError otherwise."""
    found = digest(path, expected.split(":", 1)[0])
    if found != expected:
        raise BadFileError(f"{path} is not the published file: it has {found}, not {expected}; move it away to go on")
    return path


def first_existing(candidates: Iterable[Path]) -> Path | None:
    """The first of the candidates that is a file."""
    return next((path for path in candidates if path.is_file()), None)


def mxnet_home() -> Path:
    """MXNet's own directory for models and data: ``$MXNET_HOME``, by default ``~/.mxnet``."""
    return Path(os.environ.get("MXNET_HOME") or Path.home() / ".mxnet").expanduser()


def project_home() -> Path | None:
    """``$PYDMOBILENET_HOME``, if it is set."""
    home = os.environ.get("PYDMOBILENET_HOME")
    return Path(home).expanduser() if home else None


def locked(directory: Path) -> FileLock:
    """The right to download into a directory, for a ``with``: a second process waits until the first is done.

    The lock is a file of this user's among the temporary ones: the directory itself may be read-only, or not exist.
    """
    key = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"pydmobilenet-{getpass.getuser()}-{key}.lock")


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

    host = urlsplit(url).netloc
    when, reason = _unreachable.get(host, (-MEMORY, ""))
    if time.monotonic() - when < MEMORY:
        raise Unavailable(reason)
    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    # Compressed transfer would make lengths and ranges count something other than the file.
    headers["Accept-Encoding"] = "identity"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing is left to send: the digest will tell
                return
            if answer.status_code not in (200, 206):
                raise Unavailable(f"{url}: HTTP status {answer.status_code}")
            _store(answer, part, start if answer.status_code == 206 else 0)
    except requests.exceptions.RequestException as error:
        reason = f"{host}: {_reason(error)}"
        if isinstance(error, (requests.exceptions.ConnectionError, requests.exceptions.Timeout)):
            _unreachable[host] = (time.monotonic(), reason)
        raise Unavailable(reason) from None


def _store(answer, part: Path, start: int) -> None:
    from tqdm import tqdm

    length = int(answer.headers.get("Content-Length", 0))
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
    }.items():
        if sign in text:
            return words
    return type(error).__name__
