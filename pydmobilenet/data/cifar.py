"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): read in every common layout, or downloaded.

A directory may hold the binary files, the Python pickles, an archive of either, or ``train/`` and ``test/`` with a
folder of 32x32 images for each class.
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
from .dataset import Dataset, Task
from .folder import images_by_class

PIXELS = 3 * 32 * 32  # bytes of an image: red, green and blue planes, row by row
LARGEST = 1 << 28  # bytes of an unpacked archive: the official ones have up to 186 MB
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
    """The files of a data set. Digests: SHA-1 of MXNet's loader for binary files, MD5 of torchvision for pickles."""

    name: str
    title: str
    classes: tuple[str, ...]
    label_bytes: int  # before each image in a binary file; the last one is the class
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


def read(name: str, task: Task, split: str, root: Path | None = None) -> Dataset:
    """Read a split from `root`, ``$PYDMOBILENET_HOME`` or MXNet's home, else download it.

    Raises BadFileError for damaged files, and for unofficial ones outside of `root`; MissingFileError, UnusableError.
    """
    layout, coarse = CIFAR10 if name == CIFAR10.name else CIFAR100, name == "cifar100-coarse"
    directories = fetching.search_path(f"datasets/{layout.name}", root)
    target = root / layout.name if root else directories[0]
    for directory in directories:
        if contents := find_files(layout, split, directory):
            return _decode(layout, contents, task, split, coarse, user_data=directory == root)
        if directory == root and (folder := _image_folder(layout, split, directory)):
            dataset = images_by_class(replace(task, classes=layout.classes), split, folder)
            instead = ", ".join((layout.binary[split][0], layout.pickled[split][0], *layout.archives))
            doubt = f"a folder of images cannot be verified; these can: {instead}"
            labels = COARSE_OF_FINE[dataset.labels] if coarse else dataset.labels
            return replace(dataset, task=task, labels=labels, doubt=doubt)
    try:
        download(layout, target)
    except MissingFileError as error:
        searched = ", ".join(map(str, directories))
        raise MissingFileError(
            f"the {split} images of {layout.title} are not in {searched}, and could not be downloaded ({error}); to go "
            f"on without a network, put {layout.archives[0]} or its files into {target}"
        ) from None
    return _decode(layout, find_files(layout, split, target), task, split, coarse, user_data=False)


def find_files(layout: Layout, split: str, root: Path) -> list[tuple[Path, bytes]]:
    """Read the files of a split in or right below a directory; an empty list if there are none.

    Raises BadFileError if one of several is missing, and for a damaged archive.
    """
    for directory in (root, *(root / folder for folder in layout.folders)):
        incomplete = ""
        for names in (layout.binary[split], layout.pickled[split]):
            present = [name for name in names if os.path.isfile(directory / name)]
            if present and len(present) == len(names):
                return [(directory / name, _content(directory / name)) for name in names]
            if present:
                missing = ", ".join(name for name in names if name not in present)
                incomplete = f"{directory} has {present[0]}, but of the same split it lacks {missing}"
        for archive, table in zip(layout.archives, (layout.binary, layout.pickled)):
            if os.path.isfile(directory / archive):  # preferred to the files of an interrupted extraction
                contents = members(directory / archive, table[split])
                return [(directory / archive / name, content) for name, content in contents]
        if incomplete:
            raise BadFileError(incomplete)
    return []


def _content(path: Path) -> bytes:
    with fetching.readable(path) as file:
        return file.read()


def members(archive: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Read the named files of an archive, in any of its directories. Raises BadFileError."""
    try:
        with fetching.readable(archive) as file:
            contents = archives.read_tar(file, names, LARGEST)
    except ValueError as error:
        raise BadFileError(f"{archive} is not an archive, or a damaged one: {error}") from None
    missing = [name for name in names if name not in contents]
    if missing:
        raise BadFileError(f"{archive} lacks {', '.join(missing)}")
    return [(name, contents[name]) for name in names]


def download(layout: Layout, directory: Path) -> None:
    """Download the binary files into a directory, from MXNet's bucket or the University of Toronto.

    Raises MissingFileError and UnusableError.
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


def _decode(
    layout: Layout, contents: list[tuple[Path, bytes]], task: Task, split: str, coarse: bool, user_data: bool
) -> Dataset:
    official = True
    for path, content in contents:
        expected = layout.digests[path.name]
        kind = expected.partition(":")[0]
        digest = f"{kind}:{hashlib.new(kind, content, usedforsecurity=False).hexdigest()}"
        official = official and digest == expected
        if not official and not user_data:
            raise BadFileError(
                f"{path} is not the official file of {layout.title} (it has {digest}, not {expected}): move it away, "
                "or pass its directory to use it"
            )
    parts = [
        parse_binary(layout, path, content) if path.suffix == ".bin" else parse_pickle(layout, path, content)
        for path, content in contents
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    source = str(contents[0][0].parent)
    limits = np.array((len(SUPERCLASSES), len(layout.classes))[-layout.label_bytes :])
    for image, column in np.argwhere((labels < 0) | (labels >= limits))[:1]:
        allowed = f"0 to {limits[column] - 1}"
        raise BadFileError(f"{source}: label {labels[image, column]} of image {image} is invalid (allowed: {allowed})")
    return Dataset(task, split, images, labels[:, 0 if coarse else -1], official, source)


def parse_binary(layout: Layout, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parse a binary file to images (N, 3, 32, 32) uint8 and labels (N, label_bytes) int64."""
    record = layout.label_bytes + PIXELS
    if not content or len(content) % record:
        raise BadFileError(
            f"{path} is truncated, or not of {layout.title}: {len(content)} bytes are not records of {record}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels, pixels = records[:, : layout.label_bytes], records[:, layout.label_bytes :]
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def parse_pickle(layout: Layout, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parse a pickled batch to the same."""
    columns = ("labels",) if layout.label_bytes == 1 else ("coarse_labels", "fine_labels")
    try:
        batch = archives.read_pickle(io.BytesIO(content))
        labels = np.stack([batch[column] for column in columns], axis=1)
        pixels = batch["data"]
        if pixels.dtype != np.uint8 or labels.dtype.kind not in "iu" or pixels.shape != (len(labels), PIXELS):
            raise ValueError(f"data {pixels.dtype} {pixels.shape} beside {labels.dtype} labels {labels.shape}")
    except (KeyError, ValueError) as error:
        raise BadFileError(f"{path} is not a pickled batch of {layout.title}: {error}") from None
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _image_folder(layout: Layout, split: str, root: Path) -> Path | None:
    """Find the directory of a split, in or right below `root`, with a folder of images for some class."""
    for folder in (root / split, root / layout.name / split):
        if os.path.isdir(folder) and any(os.path.isdir(folder / name) for name in layout.classes):
            return folder
    return None
