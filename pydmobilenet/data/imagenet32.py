"""ImageNet32 (Chrabaszcz, Loshchilov and Hutter, 2017, arXiv 1707.08819): ImageNet's images at 32x32 pixels.

Both official forms are read: the pickled batches and the ``.npz`` ones. They are 3.9 GB of pixels, so they are
converted once into plain arrays on disk, which open at once and are mapped into memory rather than read.

The arrays of a split are three files: ``imagenet32-<split>-images.u8`` (N, 3, 32, 32), ``…-labels.i16`` (N,) and
``….json``, which says how far a conversion has come. The arrays are valid only once it says ``complete``.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import fetching, files
from ..errors import BadFileError, MissingFileError, UnusableError
from . import archives, pickles
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Raw, Task

CLASSES = tuple(
    line
    for line in Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
PIXELS = 3 * 32 * 32
OFFICIAL_IMAGES = {"train": 1_281_167, "test": 50_000}  # no hash of the files is published: their number has to do
FILES = {"train": tuple(f"train_data_batch_{number}" for number in range(1, 11)), "test": ("val_data",)}
FOLDERS = ("", "imagenet32", "Imagenet32_train", "Imagenet32_val", "Imagenet32_train_npz", "Imagenet32_val_npz")
ROWS = 8192  # images written at a time
COUNTED = ("images", "crc32", "labels_crc32")  # what is recorded of each official file, besides its identity

TASK = Task("imagenet32", "ImageNet32", CLASSES, len(CLASSES), IMAGENET_MEAN, IMAGENET_STD, sized=True)


@dataclass(frozen=True)
class Arrays:
    """The files of a converted split in a directory."""

    directory: Path
    split: str

    def path(self, ending: str) -> Path:
        return self.directory / f"imagenet32-{self.split}{ending}"

    @property
    def images(self) -> Path:
        return self.path("-images.u8")

    @property
    def labels(self) -> Path:
        return self.path("-labels.i16")

    def state(self) -> dict:
        """What the conversion has recorded; an empty one where there was none, or its record is damaged."""
        try:
            state = json.loads(self.path(".json").read_text(encoding="utf-8"))
            sources = [{key: source[key] for key in ("name", "size", "mtime", *COUNTED)} for source in state["sources"]]
            return {"complete": state["complete"] is True and bool(sources), "sources": sources}
        except (OSError, ValueError, TypeError, KeyError):
            return {"complete": False, "sources": []}

    def record(self, state: dict) -> None:
        files.write(self.path(".json"), json.dumps(state, indent=1))

    def open(self) -> Raw:
        """The split, its images mapped into memory. Raises BadFileError where the files are not what was recorded."""
        number = sum(source["images"] for source in self.state()["sources"])
        if not self.holds(number, exactly=True):
            raise BadFileError(
                f"{self.images} or {self.labels.name} is not of the size that its conversion has recorded; "
                f"delete {self.path('.json')} to convert again"
            )
        try:
            images = np.memmap(self.images, np.uint8, "r", shape=(number, 3, 32, 32))
            labels = np.fromfile(self.labels, "<i2").astype(np.int64)
        except OSError as error:
            raise UnusableError(f"cannot read {self.directory}: {error.strerror}") from None
        return Raw(images, labels, number == OFFICIAL_IMAGES[self.split], source=str(self.directory))

    def holds(self, number: int, exactly: bool = False) -> bool:
        """Whether both files have room for so many images, and with `exactly` for no more."""
        for path, size in ((self.images, number * PIXELS), (self.labels, number * 2)):
            found = path.stat().st_size if os.path.isfile(path) else 0
            if found < size or (exactly and found != size):
                return False
        return True


def read(split: str, root: Path | None = None) -> Raw:
    """A split of ImageNet32, from `root`, ``$PYDMOBILENET_HOME`` or MXNet's home; ``test`` is the validation set.

    It is converted if it has not been: beside the official files or, where that is read-only, in the home directory.
    Raises MissingFileError where there are no files, BadFileError for damaged ones, UnusableError for a full disk.
    """
    home, places = fetching.search_path("datasets/imagenet32")[0], fetching.search_path("datasets/imagenet32", root)
    for place in places:
        raw = _read_from(place, split, home)
        if raw is None:
            continue
        if not raw.official and place != root:
            raise BadFileError(
                f"{raw.source} has {len(raw.labels)} images, not the {OFFICIAL_IMAGES[split]} of ImageNet32; other "
                "data is used only from a directory that you name"
            )
        return raw
    files = f"{FILES[split][0]} to {FILES[split][-1]}" if split == "train" else FILES[split][0]
    raise MissingFileError(
        f"the {split} images of ImageNet32 are not in {', '.join(map(str, places))}; they have no free address: get "
        f"'Downsampled ImageNet, 32x32' at https://image-net.org/download-images and put {files} (pickles, or .npz) "
        f"into {places[0]}"
    )


def _read_from(place: Path, split: str, home: Path) -> Raw | None:
    for directory in (place / folder for folder in FOLDERS):
        beside = Arrays(directory, split)
        try:
            sources = find_sources(directory, split)
        except BadFileError:
            if not beside.state()["complete"]:
                raise
            sources = []  # once they are converted, the official files may go
        if not sources:
            if beside.state()["complete"]:
                return beside.open()
            continue
        # What is converted at home is of one directory alone: others have files of the same names.
        key = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        target = beside if os.access(directory, os.W_OK) else Arrays(home / f"converted-{key}", split)
        for arrays in (beside, target):
            if arrays.state()["complete"] and _known(sources, arrays.state()["sources"]):
                return arrays.open()
        return convert(sources, target).open()
    return None


def _known(sources: list[Path], recorded: list[dict]) -> bool:
    return [_identity(path) for path in sources] == [
        {key: one[key] for key in ("name", "size", "mtime")} for one in recorded
    ]


def _identity(source: Path) -> dict:
    """What tells one official file from another, without reading it."""
    status = source.stat()
    return {"name": source.name, "size": status.st_size, "mtime": status.st_mtime_ns}


def find_sources(directory: Path, split: str) -> list[Path]:
    """The official files of a split in a directory, in either form; raises BadFileError where some are missing."""
    incomplete = ""
    for ending in ("", ".npz"):
        paths = [directory / f"{name}{ending}" for name in FILES[split]]
        missing = [path.name for path in paths if not os.path.isfile(path)]
        if not missing:
            return paths
        if len(missing) < len(paths):
            incomplete = f"{directory} lacks {', '.join(missing)} of ImageNet32's {split} files"
    if incomplete:
        raise BadFileError(incomplete)
    return []


def convert(sources: list[Path], arrays: Arrays) -> Arrays:
    """Convert the official files of a split; goes on where an interrupted conversion has left off.

    What was written is read again and compared before it counts. Raises BadFileError and UnusableError.
    """
    try:
        with fetching.locked(arrays.directory):
            state = arrays.state()
            done = state["sources"]
            if not _known(sources[: len(done)], done) or not arrays.holds(sum(one["images"] for one in done)):
                done = []  # it was of other files, or has lost some of what was written
            elif state["complete"] and len(done) == len(sources):  # another process was faster
                return arrays
            if state["complete"]:  # before the first byte of it is written over
                arrays.record({"complete": False, "sources": done})
            for source in sources[len(done) :]:
                done.append(_append(source, arrays, sum(one["images"] for one in done)))
                arrays.record({"complete": False, "sources": done})
            _verify(arrays, done)
            arrays.record({"complete": True, "sources": done})
    except OSError as error:
        if isinstance(error, UnusableError):
            raise
        raise UnusableError(f"cannot write to {arrays.directory}: {error.strerror or error}") from None
    return arrays


def _append(source: Path, arrays: Arrays, before: int) -> dict:
    """Write one official file's images and labels behind the `before` images that are there already."""
    from ..progress import bar as progress_bar

    identity = _identity(source)
    pixels, labels = load(source)
    checksum = 0
    for path in (arrays.images, arrays.labels):
        path.touch()
    with open(arrays.images, "r+b") as images, open(arrays.labels, "r+b") as numbers:
        images.truncate(before * PIXELS)  # what an interruption has left half-written
        numbers.truncate(before * 2)
        images.seek(before * PIXELS)
        numbers.seek(before * 2)
        with progress_bar(len(pixels), f"converting {source.name}", "images") as bar:
            for start in range(0, len(pixels), ROWS):
                rows = np.ascontiguousarray(pixels[start : start + ROWS]).data
                checksum = zlib.crc32(rows, checksum)
                images.write(rows)
                bar.update(len(rows))
        classes = (labels - 1).astype("<i2").tobytes()
        numbers.write(classes)
        for file in (images, numbers):
            file.flush()
            os.fsync(file.fileno())
    return {**identity, "images": len(pixels), "crc32": checksum, "labels_crc32": zlib.crc32(classes)}


def _verify(arrays: Arrays, done: list[dict]) -> None:
    with open(arrays.images, "rb") as images, open(arrays.labels, "rb") as labels:
        for one in done:
            checksum, left = 0, one["images"] * PIXELS
            while left and (piece := images.read(min(left, ROWS * PIXELS))):
                checksum, left = zlib.crc32(piece, checksum), left - len(piece)
            if left or [checksum, zlib.crc32(labels.read(one["images"] * 2))] != [one["crc32"], one["labels_crc32"]]:
                arrays.path(".json").unlink()
                raise BadFileError(f"{arrays.images} is not what was written to it; run again to convert again")


def load(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """One official file: pixels (n, 3072) uint8, the red, green and blue planes, and labels (n,) from 1 to 1000.

    Raises BadFileError for anything else.
    """
    try:
        with fetching.readable(source) as file:
            npz = source.suffix == ".npz"
            batch = archives.read_npz(file, ("data", "labels")) if npz else pickles.load(file)
        pixels, labels = batch["data"], batch["labels"]
    except (KeyError, ValueError) as error:
        raise BadFileError(f"{source} is no batch of ImageNet32: {error}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise BadFileError(
            f"{source} is no batch of ImageNet32: data {pixels.dtype} {pixels.shape}, labels {labels.shape}"
        )
    if pixels.shape[1] != PIXELS:
        side = (pixels.shape[1] / 3) ** 0.5
        raise BadFileError(f"{source} has images of {side:g}x{side:g} pixels (allowed: 32x32)")
    if len(pixels) != len(labels) or not len(labels):
        raise BadFileError(f"{source} has {len(pixels)} images and {len(labels)} labels")
    if labels.min() < 1 or labels.max() > TASK.outputs:
        counted = ": they seem to be counted from 0" if labels.min() == 0 and labels.max() < TASK.outputs else ""
        raise BadFileError(
            f"{source} has labels from {labels.min()} to {labels.max()} (allowed: 1 to {TASK.outputs}){counted}"
        )
    return pixels, labels
