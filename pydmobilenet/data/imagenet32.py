"""ImageNet32 (Chrabaszcz, Loshchilov and Hutter, 2017, arXiv 1707.08819): ImageNet's images at 32x32 pixels.

Both official forms are read: the pickled batches and the ``.npz`` ones. They are 3.9 GB of pixels, so they are
converted once into plain arrays on disk, which open at once and are mapped into memory rather than read.

The arrays of a split are ``imagenet32-<split>-images.u8`` (N, 3, 32, 32) and ``…-labels.i16`` (N,). They are valid only
with ``….json``, which is written last and says which official files they were made of.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import fetching, files
from ..errors import BadFileError, MissingFileError, UnusableError
from ..text import progress_bar
from . import archives
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

TASK = Task("imagenet32", "ImageNet32", CLASSES, len(CLASSES), IMAGENET_MEAN, IMAGENET_STD, sized=True)


class Arrays(NamedTuple):
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

    def sources(self) -> list[dict]:
        """Return what is recorded of the official files; nothing where there is no record of a whole conversion."""
        try:
            record = json.loads(self.path(".json").read_text(encoding="utf-8"))
            keys = ("name", "size", "mtime", "images")
            return [{key: one[key] for key in keys} for one in record["sources"]] if record["complete"] is True else []
        except (OSError, ValueError, TypeError, KeyError):
            return []

    def are_of(self, sources: list[Path]) -> bool:
        """Whether these official files are the ones that were converted."""
        recorded = [{**one, "images": None} for one in self.sources()]
        return recorded == [{**_identity(path), "images": None} for path in sources]

    def open(self) -> Raw:
        """Return the split, its images mapped into memory. Raises BadFileError for files of another size than
        recorded.
        """
        number = sum(source["images"] for source in self.sources())
        sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in (self.images, self.labels)]
        if sizes != [number * PIXELS, number * 2]:
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
            if not beside.sources():
                raise
            sources = []
        if not sources:
            if beside.sources():  # once they are converted, the official files may go
                return beside.open()
            continue
        # What is converted at home is of one directory alone: others have files of the same names.
        key = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        target = beside if os.access(directory, os.W_OK) else Arrays(home / f"converted-{key}", split)
        for arrays in (beside, target):
            if arrays.are_of(sources):
                return arrays.open()
        convert(sources, target)
        return target.open()
    return None


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


def convert(sources: list[Path], arrays: Arrays) -> None:
    """Convert the official files of a split. Raises BadFileError, and UnusableError for a full disk."""
    with fetching.locked(arrays.directory):
        if arrays.are_of(sources):  # another process was faster
            return
        with suppress(OSError):  # what it says is true no longer
            arrays.path(".json").unlink()
        record = []
        progress = progress_bar(len(sources), f"converting ImageNet32, {arrays.split}", "files")
        with files.writing(arrays.images) as images, files.writing(arrays.labels) as labels, progress as bar:
            for source in sources:
                identity = _identity(source)
                pixels, numbers = load(source)
                images.write(np.ascontiguousarray(pixels).data)
                labels.write((numbers - 1).astype("<i2").tobytes())
                record.append({**identity, "images": len(pixels)})
                bar.update()
        files.write(arrays.path(".json"), json.dumps({"complete": True, "sources": record}, indent=1))


def load(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """One official file: pixels (n, 3072) uint8, the red, green and blue planes, and labels (n,) from 1 to 1000.

    Raises BadFileError for anything else.
    """
    try:
        with fetching.readable(source) as file:
            npz = source.suffix == ".npz"
            batch = archives.read_npz(file, ("data", "labels")) if npz else archives.read_pickle(file)
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
