"""Keep the decoded pictures of a folder for the next run, in the user's cache directory.

One file a folder, image size and way of decoding, in NumPy's .npz format: each of its arrays has a CRC-32. It is read
into memory, not mapped: the check needs every byte, and the splits copy the pixels anyway. A file's pixels are used
again if its path, size and times are the same, else if its content is.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs

from .. import files
from ..errors import BadFileError, InvalidValueError
from ..text import progress_bar
from . import images
from .dataset import Task, content_hash

VARIABLE = "PYDMOBILENET_CACHE"
DEFAULT = "10 GB"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
VERSION = "1"  # of the files here; that of their pixels is in `images`
SETTLED = 2 * 10**9  # nanoseconds: FAT's times are so coarse, and a younger file might change without another time
UNSETTLED = (-1, -1, -1)  # the stamp of such a file
CHUNK = 64  # pictures
SAVE_EVERY = 60  # seconds: a kill loses no more
WRITING = 10  # times longer than a file takes to be written, at least, between two savings
ABANDONED = 24 * 3600  # seconds: the temporary file of a killed process


@dataclass
class Pictures:
    """Pictures of files: their paths in the folder, stamps (n, 3), content hashes, transparency, pixels (n, 3, H, W).

    A stamp is size, time of the last change, and of the file's last move. Files not read have an empty hash.
    """

    names: np.ndarray
    stamps: np.ndarray
    hashes: np.ndarray
    transparent: np.ndarray
    pixels: np.ndarray

    @staticmethod
    def empty(names: Sequence[str], task: Task) -> Pictures:
        n = len(names)
        stamps, hashes, transparent = np.full((n, 3), UNSETTLED, np.int64), np.zeros(n, "S16"), np.zeros(n, bool)
        pixels = np.empty((n, *task.image), np.uint8)
        return Pictures(np.array(names, object), stamps, hashes, transparent, pixels)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Pictures:
        return Pictures(*(array[rows] for array in vars(self).values()))

    def put(self, row: int, stamp: tuple[int, int, int], picture: images.Picture) -> None:
        self.stamps[row], self.transparent[row], self.pixels[row] = stamp, picture.transparent, picture.pixels
        self.hashes[row] = picture.hash.encode()

    def same_files(self, other: Pictures) -> bool:
        mine, others = ((each.names, each.stamps, each.hashes) for each in (self, other))
        return all(map(np.array_equal, mine, others))


def read(
    paths: Sequence[Path],
    names: Sequence[str],
    task: Task,
    decode: Callable[[bytes, str], images.Picture],
    file: Path | None = None,
    skip_bad: bool = False,
    title: str = "",
    shown: bool | None = None,
) -> tuple[Pictures, list[BadFileError]]:
    """Read files by `decode` (within `images.read_all`), or from the cache's `file`; return pictures and errors.

    Writes the file anew if something has changed, also if an error or an interruption ends it. Raises BadFileError for
    the first unreadable file, unless `skip_bad`.
    """
    found = file and _stamp(file)
    kept = (file and _load(file, task)) or Pictures.empty((), task)
    result = Pictures.empty(names, task)
    to_read = np.flatnonzero(~_reuse(kept, paths, result))
    by_hash = {content: row for row, content in enumerate(kept.hashes.tolist())} if len(to_read) else {}
    errors: list[BadFileError] = []

    def read_one(row: int) -> images.Picture:
        latest, stamp = time.time_ns() - SETTLED, _stamp(paths[row])
        content = images.content(paths[row])
        digest = content_hash(content)
        known = by_hash.get(digest.encode())
        if known is None:
            picture = decode(content, str(paths[row]))._replace(hash=digest)
        else:
            picture = images.Picture(kept.pixels[known], (0, 0), bool(kept.transparent[known]), digest)
        result.put(row, stamp if stamp and max(stamp[1:]) < latest else UNSETTLED, picture)
        return picture

    next_save, complete = time.monotonic() + SAVE_EVERY, False
    try:
        with progress_bar(len(to_read), title, "images", shown if len(to_read) else False) as bar:
            for start in range(0, len(to_read), CHUNK):
                for picture in images.read_all(to_read[start : start + CHUNK].tolist(), read_one, bar.update):
                    if isinstance(picture, BadFileError):
                        errors.append(picture)
                        if not skip_bad:
                            raise picture
                if file and time.monotonic() > next_save and _stamp(file) == found:
                    begun = time.monotonic()
                    file = _keep(file, result, kept, complete)
                    found = file and _stamp(file)
                    next_save = time.monotonic() + max(SAVE_EVERY, WRITING * (time.monotonic() - begun))
        complete = True
    finally:
        if file and (complete or _stamp(file) == found):  # another process may have written more than a part
            _keep(file, result, kept, complete)
    return result, errors


def _reuse(kept: Pictures, paths: Sequence[Path], result: Pictures) -> np.ndarray:
    """Take the pictures of unchanged files from those that were kept; return which ones (n,)."""
    known = {name: row for row, name in enumerate(kept.names.tolist())}
    source = np.array([known.get(name, -1) for name in result.names.tolist()], int)
    for row in np.flatnonzero(source >= 0).tolist():
        if _stamp(paths[row]) != tuple(kept.stamps[source[row]].tolist()):
            source[row] = -1
    reused = source >= 0
    result.stamps[reused] = kept.stamps[source[reused]]
    result.hashes[reused] = kept.hashes[source[reused]]
    result.transparent[reused] = kept.transparent[source[reused]]
    if np.array_equal(source, np.arange(len(kept))):
        result.pixels = kept.pixels
        return reused
    for row in np.flatnonzero(reused).tolist():  # one by one, without a copy of all
        result.pixels[row] = kept.pixels[source[row]]
    return reused


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return a file's stamp, or None if it has none.

    Except on Windows, `st_ctime` tells of a file that replaced another one and kept its own time, as by ``cp -p``.
    """
    try:
        values = os.stat(path)
    except OSError:
        return None
    return values.st_size, values.st_mtime_ns, values.st_ctime_ns


def _keep(file: Path, result: Pictures, kept: Pictures, complete: bool) -> Path | None:
    """Write the pictures read so far, unless they are those in the file, or before all are read fewer.

    Return the file, or None with a warning if it cannot be written.
    """
    is_read = result.hashes != b""
    if not is_read.any() or (not complete and is_read.sum() <= len(kept)):
        return file
    try:
        result = result if is_read.all() else result.take(is_read)
        if result.same_files(kept):
            with suppress(OSError):
                os.utime(file)  # the files used last stay
            return file
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the pictures may be private
        names = np.frombuffer(b"\0".join(map(os.fsencode, result.names)), np.uint8)
        with files.writing(file) as stream:
            np.savez(stream, **{**vars(result), "names": names})
        _evict(file)
    except (OSError, MemoryError) as error:
        warnings.warn(f"decoded pictures are not kept for the next run: {error}", stacklevel=2)
        return None
    return file


def _load(file: Path, task: Task) -> Pictures | None:
    """Read the file of a folder; None if there is none, or if anything is wrong with it."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            values = Pictures(**arrays)
        names = [os.fsdecode(name) for name in values.names.tobytes().split(b"\0")]
        values = replace(values, names=np.array(names, object))
        expected = Pictures.empty(names, task)
    except Exception:  # of a damaged archive, any kind
        return None
    same = all(
        (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        for found, wanted in zip(vars(values).values(), vars(expected).values())
    )
    return values if same else None


def location(folder: Path, number: int, task: Task) -> Path | None:
    """Return the path of the file for so many pictures of a folder.

    None if ``PYDMOBILENET_CACHE`` turns it off or, with a warning, if it is too small.
    """
    key = [VERSION, os.path.realpath(folder), str(task.image_size), task.decoding, images.version()]
    file = directory() / f"{hashlib.sha256(os.fsencode(chr(0).join(key))).hexdigest()[:24]}.npz"
    most, needed = limit(), number * int(np.prod(task.image))
    if most:
        _evict(file)  # the limit may be lower than it was
    if needed > most:
        if most:
            text = f"{needed / 1e9:,.1f} GB of decoded pictures are not kept for the next run: more than {VARIABLE}"
            warnings.warn(text, stacklevel=2)
        return None
    return file


def directory() -> Path:
    """Return the directory of the cache."""
    return Path(platformdirs.user_cache_dir("pydmobilenet", appauthor=False)) / "pictures"


def limit() -> int:
    """Return the most bytes of the cache, of ``PYDMOBILENET_CACHE``. Raises InvalidValueError."""
    text = os.environ.get(VARIABLE, "").strip() or DEFAULT
    size = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?) *([KMGT]?)B?", text.upper())
    if not size:
        raise InvalidValueError(f"{VARIABLE} is {text!r} (allowed: a size, as '{DEFAULT}' or '500 MB'; 0 for none)")
    return int(float(size[1]) * UNITS[size[2]])


def _evict(file: Path) -> None:
    """Remove the files used longest ago until the rest fits, never `file`, and what killed processes left."""
    entries: list[tuple[os.stat_result, Path]] = []
    for path in file.parent.glob("*"):  # nothing if there is no directory
        with suppress(OSError):  # another process has just removed it
            entries.append((path.stat(), path))
    entries.sort(key=lambda entry: entry[0].st_mtime)
    total, most = sum(values.st_size for values, _ in entries), limit()
    for values, path in entries:
        abandoned = path.suffix == ".part" and time.time() - values.st_mtime > ABANDONED
        if path != file and (abandoned or (total > most and path.suffix == ".npz")):
            with suppress(OSError):  # Windows keeps an open file
                path.unlink()
                total -= values.st_size
