"""ImageNet32 (Chrabaszcz, Loshchilov and Hutter, 2017, arXiv 1707.08819): ImageNet's images at 32x32 pixels.

The official files, pickles or ``.npz``, hold 3.9 GB of pixels. They are converted once into arrays on disk, mapped into
memory: ``imagenet32-<split>-images.u8`` (N, 3, 32, 32) and ``…-labels.i16`` (N,). A record, ``….json``, is written last
and names the converted files.
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
from .dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, Task

CLASSES = tuple(
    line
    for line in Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
PIXELS = 3 * 32 * 32
OFFICIAL_IMAGES = {"train": 1_281_167, "test": 50_000}  # verified by number, as no hash is published
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
        """Return the records of the converted files; none without a complete conversion."""
        try:
            record = json.loads(self.path(".json").read_text(encoding="utf-8"))
            keys = ("name", "size", "mtime", "images")
            sources = [{key: source[key] for key in keys} for source in record["sources"]]
            return sources if record["complete"] is True else []
        except (OSError, ValueError, TypeError, KeyError):
            return []

    def are_of(self, sources: list[Path]) -> bool:
        """Return True if these official files were converted."""
        recorded = [{**source, "images": None} for source in self.sources()]
        return recorded == [{**_identity(path), "images": None} for path in sources]

    def open(self, task: Task) -> Dataset:
        """Open the split, its images mapped into memory. Raises BadFileError for files of another size."""
        number = sum(source["images"] for source in self.sources())
        sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in (self.images, self.labels)]
        if sizes != [number * PIXELS, number * 2]:
            raise BadFileError(
                f"{self.images} or {self.labels.name} has another size than recorded; delete {self.path('.json')} to "
                "convert again"
            )
        try:
            images = np.memmap(self.images, np.uint8, "r", shape=(number, 3, 32, 32))
            labels = np.fromfile(self.labels, "<i2").astype(np.int64)
        except OSError as error:
            raise UnusableError(f"cannot read {self.directory}: {error.strerror}") from None
        official = number == OFFICIAL_IMAGES[self.split]
        return Dataset(task, self.split, images, labels, official, str(self.directory))


def read(task: Task, split: str, root: Path | None = None) -> Dataset:
    """Read a split from `root`, ``$PYDMOBILENET_HOME`` or MXNet's home; ``test`` is the validation set.

    Raises MissingFileError, BadFileError and UnusableError.
    """
    home, paths = fetching.search_path("datasets/imagenet32")[0], fetching.search_path("datasets/imagenet32", root)
    for path in paths:
        dataset = _read_from(path, task, split, home)
        if dataset is None:
            continue
        if not dataset.official and path != root:
            raise BadFileError(
                f"{dataset.source} has {len(dataset)} images, not the {OFFICIAL_IMAGES[split]} of ImageNet32: pass its "
                "directory to use it"
            )
        return dataset
    names = f"{FILES[split][0]} to {FILES[split][-1]}" if split == "train" else FILES[split][0]
    raise MissingFileError(
        f"the {split} images of ImageNet32 are not in {', '.join(map(str, paths))}; they have no free address: get "
        f"'Downsampled ImageNet, 32x32' at https://image-net.org/download-images and put {names} (pickles, or .npz) "
        f"into {paths[0]}"
    )


def _read_from(root: Path, task: Task, split: str, home: Path) -> Dataset | None:
    for directory in (root / folder for folder in FOLDERS):
        beside = Arrays(directory, split)
        try:
            sources = find_sources(directory, split)
        except BadFileError:
            if not beside.sources():
                raise
            sources = []
        if not sources:
            if beside.sources():  # the official files may be deleted after their conversion
                return beside.open(task)
            continue
        # Files of a read-only directory are converted at home, under a key: others may have the same names.
        key = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        target = beside if os.access(directory, os.W_OK) else Arrays(home / f"converted-{key}", split)
        for arrays in (beside, target):
            if arrays.are_of(sources):
                return arrays.open(task)
        convert(sources, target)
        return target.open(task)
    return None


def _identity(source: Path) -> dict:
    """Return the name, size and time of a file, to notice changes without reading it."""
    status = source.stat()
    return {"name": source.name, "size": status.st_size, "mtime": status.st_mtime_ns}


def find_sources(directory: Path, split: str) -> list[Path]:
    """Find the official files of a split in a directory, in either form. Raises BadFileError if some are missing."""
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
    """Convert the official files of a split. Raises BadFileError and UnusableError."""
    with fetching.locked(arrays.directory):
        if arrays.are_of(sources):  # another process was faster
            return
        with suppress(OSError):  # no longer valid
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
    """Load an official file: pixels (n, 3072) uint8, in planes, and labels (n,) from 1. Raises BadFileError."""
    try:
        with fetching.readable(source) as file:
            npz = source.suffix == ".npz"
            batch = archives.read_npz(file, ("data", "labels")) if npz else archives.read_pickle(file)
        pixels, labels = batch["data"], batch["labels"]
    except (KeyError, ValueError) as error:
        raise BadFileError(f"{source} is not a batch of ImageNet32: {error}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise BadFileError(f"{source} is not a batch of ImageNet32: {pixels.dtype} data, {labels.dtype} labels")
    if pixels.shape[1] != PIXELS:
        side = (pixels.shape[1] / 3) ** 0.5
        raise BadFileError(f"{source} has images of {side:g}x{side:g} pixels (allowed: 32x32)")
    if len(pixels) != len(labels) or not len(labels):
        raise BadFileError(f"{source} has {len(pixels)} images and {len(labels)} labels")
    if labels.min() < 1 or labels.max() > TASK.outputs:
        counted = ", perhaps counted from 0" if labels.min() == 0 and labels.max() < TASK.outputs else ""
        raise BadFileError(
            f"{source} has labels from {labels.min()} to {labels.max()} (allowed: 1 to {TASK.outputs}){counted}"
        )
    return pixels, labels
