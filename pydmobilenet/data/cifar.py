"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), in every layout that people have; else downloaded.

A directory may hold the binary files, the Python pickles, either one's archive, or ``train/`` and ``test/`` with one
folder of 32x32 images a class.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import fetching, files
from ..errors import BadFileError, MissingFileError
from . import archives
from .dataset import Raw
from .folder import images_by_class

PIXELS = 3 * 32 * 32  # bytes of an image: the red, the green, then the blue plane, each row by row
LARGEST = 1 << 28  # bytes that an archive unpacks to: the official ones have up to 186 MB
TORONTO = "https://www.cs.toronto.edu/~kriz"
MXNET_REPOSITORY = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com"

# Superclass: its five classes. Both are numbered in alphabetical order (https://www.cs.toronto.edu/~kriz/cifar.html).
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
FINE_CLASSES = tuple(sorted(" ".join(SUPERCLASSES.values()).split()))
COARSE_OF_FINE = np.array(
    [next(i for i, members in enumerate(SUPERCLASSES.values()) if name in members.split()) for name in FINE_CLASSES]
)


@dataclass(frozen=True)
class Layout:
    """The files of one data set. `digests` are SHA-1 (of MXNet's loader) for the binary files, MD5 (of the data sets'
    home and torchvision) for the pickles; `sources` the archive of the binary files.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    label_bytes: int  # before each image in a binary file; the last of them is the class
    folders: tuple[str, ...]
    binary: dict[str, tuple[str, ...]]
    pickled: dict[str, tuple[str, ...]]
    archives: tuple[str, str]
    digests: dict[str, str]
    archive_digests: tuple[str, str]  # at MXNet's bucket, and at the University of Toronto

    def sources(self) -> list[fetching.Source]:
        mxnet = (os.environ.get("MXNET_GLUON_REPO") or MXNET_REPOSITORY).rstrip("/")
        urls = (f"{mxnet}/gluon/dataset/{self.name}/{self.archives[0]}", f"{TORONTO}/{self.archives[0]}")
        return [fetching.Source(url, digest) for url, digest in zip(urls, self.archive_digests)]


TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = Layout(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    label_bytes=1,
    folders=("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py"),
    binary={"train": tuple(f"{name}.bin" for name in TRAIN_BATCHES), "test": ("test_batch.bin",)},
    pickled={"train": TRAIN_BATCHES, "test": ("test_batch",)},
    archives=("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
    digests={
        "data_batch_1.bin": "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    archive_digests=("sha1:fab780a1e191a7eda0f345501ccd62d20f7ed891", "md5:c32a1d4ab5d03f1284b67883e8d87530"),
)
CIFAR100 = Layout(
    name="cifar100",
    title="CIFAR-100",
    classes=FINE_CLASSES,
    label_bytes=2,
    folders=("cifar100", "cifar-100-binary", "cifar-100-python"),
    binary={"train": ("train.bin",), "test": ("test.bin",)},
    pickled={"train": ("train",), "test": ("test",)},
    archives=("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
    digests={
        "train.bin": "sha1:e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
        "test.bin": "sha1:8fb6623e830365ff53cf14adec797474f5478006",
        "train": "md5:16019d7e3df5f24257cddd939b257f8d",
        "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
    archive_digests=("sha1:a0bb982c76b83111308126cc779a992fa506b90b", "md5:03b5dce01913d631647c71ecec9e9cb8"),
)


def read(layout: Layout, split: str, root: Path | None = None, coarse: bool = False) -> Raw:
    """A split of CIFAR-10 or CIFAR-100, from `root`, ``$PYDMOBILENET_HOME``, MXNet's home or, at last, the network.

    `coarse` gives CIFAR-100's superclasses. Raises BadFileError for damaged files, and for unofficial ones that are not
    in `root`; MissingFileError where the data is not to be had; UnusableError where it cannot be read or stored.
    """
    places = fetching.search_path(f"datasets/{layout.name}", root)
    target = root / layout.name if root else places[0]
    for place in places:
        if found := find_files(layout, split, place):
            return _decode(layout, found, coarse, named=place == root)
        if place == root and (folder := _image_folder(layout, split, place)):
            raw = images_by_class(layout.classes, folder)
            instead = ", ".join((layout.binary[split][0], layout.pickled[split][0], *layout.archives))
            doubt = f"a folder of images cannot be shown to be; what can is {instead}"
            labels = COARSE_OF_FINE[raw.labels] if coarse else raw.labels
            return replace(raw, labels=labels, doubt=doubt)
    try:
        download(layout, target)
    except MissingFileError as error:
        looked = ", ".join(map(str, places))
        raise MissingFileError(
            f"the {split} images of {layout.title} are not in {looked}, and could not be downloaded ({error}); to go "
            f"on without a network, put {layout.archives[0]} or what it holds into {target}"
        ) from None
    return _decode(layout, find_files(layout, split, target), coarse, named=False)


def find_files(layout: Layout, split: str, place: Path) -> list[tuple[Path, bytes]]:
    """The files of a split in or right below a directory, with their content; an empty list where there are none.

    Raises BadFileError where one of several is missing, and for a damaged archive.
    """
    for directory in (place, *(place / folder for folder in layout.folders)):
        incomplete = ""
        for names in (layout.binary[split], layout.pickled[split]):
            present = [name for name in names if os.path.isfile(directory / name)]
            if present and len(present) == len(names):
                return [(directory / name, _content(directory / name)) for name in names]
            if present:
                missing = ", ".join(name for name in names if name not in present)
                incomplete = f"{directory} has {present[0]}, but of the same split it lacks {missing}"
        for archive, table in zip(layout.archives, (layout.binary, layout.pickled)):
            if os.path.isfile(directory / archive):  # where its extraction was interrupted, it stands beside a part
                found = members(directory / archive, table[split])
                return [(directory / archive / name, content) for name, content in found]
        if incomplete:
            raise BadFileError(incomplete)
    return []


def _content(path: Path) -> bytes:
    with fetching.readable(path) as file:
        return file.read()


def members(archive: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """The named files of an archive, in whatever directory they stand in it, in the order of `names`.

    Raises BadFileError for a damaged archive and for one that lacks a file.
    """
    try:
        with fetching.readable(archive) as file:
            found = archives.read_tar(file, names, LARGEST)
    except ValueError as error:
        raise BadFileError(f"{archive} is a damaged archive, or none: {error}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise BadFileError(f"{archive} lacks {', '.join(missing)}")
    return [(name, found[name]) for name in names]


def download(layout: Layout, directory: Path) -> None:
    """Put the binary files of a data set into a directory, from MXNet's bucket or the University of Toronto.

    Raises MissingFileError where neither gives them, and UnusableError where the directory cannot be written.
    """
    names = layout.binary["train"] + layout.binary["test"]
    with fetching.locked(directory):
        if all((directory / name).is_file() for name in names):  # another process was faster
            return
        archive = fetching.fetch(layout.sources(), directory / layout.archives[0])
        for name, content in members(archive, names):
            if not (directory / name).exists():
                files.write(directory / name, content)
        with suppress(OSError):
            archive.unlink()


def _decode(layout: Layout, found: list[tuple[Path, bytes]], coarse: bool, named: bool) -> Raw:
    official = True
    for path, content in found:
        expected = layout.digests[path.name]
        kind = expected.split(":", 1)[0]
        digest = f"{kind}:{hashlib.new(kind, content, usedforsecurity=False).hexdigest()}"
        official = official and digest == expected
        if not official and not named:
            raise BadFileError(
                f"{path} is not the official file of {layout.title} (it has {digest}, not {expected}); other data is "
                "used only from a directory that you name. Move it away, or name its directory, to go on"
            )
    parts = [
        parse_binary(layout, path, content) if path.suffix == ".bin" else parse_pickle(layout, path, content)
        for path, content in found
    ]
    images, labels = (np.concatenate(pieces) for pieces in zip(*parts))
    limits = (len(SUPERCLASSES), len(layout.classes))[-layout.label_bytes :]
    for column, limit in enumerate(limits):
        wrong = np.flatnonzero((labels[:, column] < 0) | (labels[:, column] >= limit))
        if len(wrong):
            raise BadFileError(
                f"{found[0][0].parent}: label {labels[wrong[0], column]} of image {wrong[0]} is out of range "
                f"(allowed: 0 to {limit - 1})"
            )
    return Raw(images, labels[:, 0 if coarse else -1], official, source=str(found[0][0].parent))


def parse_binary(layout: Layout, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N, label_bytes) int64 of a binary file's content."""
    record = layout.label_bytes + PIXELS
    if not content or len(content) % record:
        raise BadFileError(
            f"{path} is truncated, or no file of {layout.title}: "
            f"{len(content)} bytes are not one or more records of {record}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels, pixels = records[:, : layout.label_bytes], records[:, layout.label_bytes :]
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def parse_pickle(layout: Layout, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The same of a pickled batch's content."""
    columns = ("labels",) if layout.label_bytes == 1 else ("coarse_labels", "fine_labels")
    try:
        batch = archives.read_pickle(io.BytesIO(content))
        labels = np.stack([batch[column] for column in columns], axis=1)
        pixels = batch["data"]
        if pixels.dtype != np.uint8 or labels.dtype.kind not in "iu" or pixels.shape != (len(labels), PIXELS):
            raise ValueError(f"data {pixels.dtype} {pixels.shape} beside {labels.dtype} labels {labels.shape}")
    except (KeyError, ValueError) as error:
        raise BadFileError(f"{path} is no pickled batch of {layout.title}: {error}") from None
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _image_folder(layout: Layout, split: str, place: Path) -> Path | None:
    """A directory `split` in or right below a place, with folders of images of which one at least is of a class."""
    for folder in (place / split, place / layout.name / split):
        if os.path.isdir(folder) and any(os.path.isdir(folder / name) for name in layout.classes):
            return folder
    return None
