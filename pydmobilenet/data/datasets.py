"""The data sets by name: tasks, and images of a split."""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import fetching
from ..errors import BadFileError, InvalidValueError, unknown
from . import arrays, cifar, folder, imagenet32, images
from .cifar import CIFAR10, CIFAR100
from .dataset import (
    CIFAR_MEAN,
    CIFAR_STD,
    DECODINGS,
    FULL,
    IMAGE_SIZES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Dataset,
    Task,
    check_image_size,
)

# The bundled digits are the test set of the Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI Machine
# Learning Repository, 1998, doi 10.24432/C50P49, CC BY 4.0), in the order in which scikit-learn has them.
DIGITS_TEST = 360  # the last ones, as in scikit-learn's own example
DIGITS_MEAN, DIGITS_STD = (0.3054,) * 3, (0.3753,) * 3  # of the training images' pixels

DATASETS = {
    task.name: task
    for task in (
        Task("cifar10", "CIFAR-10", CIFAR10.classes, 10, CIFAR_MEAN, CIFAR_STD),
        Task("cifar100", "CIFAR-100", CIFAR100.classes, 100, CIFAR_MEAN, CIFAR_STD),
        Task(
            name="cifar100-coarse",
            title="CIFAR-100, 20 superclasses",
            classes=tuple(cifar.SUPERCLASSES),
            outputs=100,  # as the authors' networks have; those from 20 on are dead
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
            note="The labels are the 20 superclasses, as in the published CIFAR-100 column, not the 100 classes.",
        ),
        imagenet32.TASK,
        Task("digits", "Digits", tuple("0123456789"), 10, DIGITS_MEAN, DIGITS_STD, mirrored=False),
    )
}


def dataset_name(name: str | os.PathLike[str]) -> str:
    """Return the recorded name of a data set: ``folder:PATH`` for the path of a folder."""
    name = os.fspath(name)
    known = name in DATASETS or is_own(name)
    is_path = os.sep in name or "/" in name  # Windows takes both
    return f"folder:{name}" if not known and (os.path.isdir(fetching.expanded(name)) or is_path) else name


def is_own(name: str) -> bool:
    """Return True for the name of a folder, or of arrays."""
    return name.startswith(("folder:", arrays.PREFIX))


def located(name: str | os.PathLike[str], root: str | Path | None) -> str:
    """Return the name of a data set; `root` replaces the path of a folder, or stands for arrays."""
    name = dataset_name(name)
    return f"folder:{fetching.expanded(root)}" if is_own(name) and root is not None else name


def get_task(name: str | os.PathLike[str], image_size: int | None = None) -> Task:
    """Return the task of a data set; the images of a folder are resized to `image_size`, 32 by default.

    Raises InvalidValueError for an unknown name, or another size than a data set has.
    """
    name = dataset_name(name)
    if name.startswith("folder:"):
        return folder.task(name, images.SIDE if image_size is None else check_image_size(image_size))
    if name.startswith(arrays.PREFIX):
        raise arrays.absent(name)
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, "the path of a folder"])
    task = DATASETS[name]
    if image_size not in (None, task.image_size):
        raise InvalidValueError(
            f"image_size is {image_size} (allowed: {task.image_size}, as {name} has; a folder takes any multiple of 4)"
        )
    return task


def recorded_task(name: str, record: Mapping[str, Any]) -> Task:
    """Return the task of a data set with the classes, outputs and normalisation of a record. Needs no data.

    Records of a folder without `decoding`, of earlier versions, are of pictures decoded in full.

    Raises ValueError or TypeError for an invalid record, InvalidValueError for an unknown name.
    """
    if is_own(name):
        title = folder.title(name) if name.startswith("folder:") else name.removeprefix(arrays.PREFIX)
        known = Task(name, title, (), 0, IMAGENET_MEAN, IMAGENET_STD, decoding=FULL)
    else:
        known = get_task(name)
    values: dict[str, Any] = {key: record.get(key, getattr(known, key)) for key in RECORDED}
    classes, outputs, mean, std, size, mirrored, decoding = values.values()
    valid = {
        "classes": isinstance(classes, (list, tuple))
        and all(isinstance(name, str) for name in classes)
        and len(set(classes)) == len(classes),
        "outputs": type(outputs) is int and max(1, len(classes)) <= outputs < 2**31,
        "mean": len(mean) == 3 and all(map(math.isfinite, mean)),
        "std": len(std) == 3 and all(math.isfinite(value) and value > 0 for value in std),
        "image_size": type(size) is int and size in IMAGE_SIZES,
        "mirrored": isinstance(mirrored, bool),
        "decoding": decoding in DECODINGS,
    }
    for key in RECORDED:
        if not valid[key]:
            raise ValueError(f"invalid {key}: {str(values[key])[:40]}")
    values.update(classes=tuple(classes), mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    return replace(known, **values)


RECORDED = ("classes", "outputs", "mean", "std", "image_size", "mirrored", "decoding")


def about(task: Task) -> dict[str, str]:
    """Return a task as the metadata of a file to give away: values as JSON, and of a folder only its name."""
    return {
        "dataset": f"folder:{task.title}" if task.name.startswith("folder:") else task.name,
        "outputs": json.dumps(task.outputs),
        "classes": json.dumps(task.classes),
        "mean": json.dumps(task.mean),
        "std": json.dumps(task.std),
        "image_size": json.dumps(task.image_size),
        "decoding": json.dumps(task.decoding),
    }


def of_metadata(metadata: Mapping[str, str]) -> Task:
    """Return the task of metadata written by `about`. Raises KeyError, or as `recorded_task`."""
    return recorded_task(metadata["dataset"], decoded(metadata))


def decoded(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Parse the JSON values of metadata written by `about`."""
    return {key: json.loads(text) if key in RECORDED else text for key, text in metadata.items()}


@functools.cache  # warns once
def tell_of_namesake(name: str) -> None:
    """Warn if a folder has the same name as a data set; the data set is used."""
    if name in DATASETS and os.path.isdir(name):
        warnings.warn(f"{name} is the data set of that name; for the folder, give ./{name}", stacklevel=3)


def read_split(
    name: str | os.PathLike[str],
    split: str = "train",
    root: str | Path | None = None,
    skip_bad: bool = False,
    task: Task | None = None,
    cache: bool = True,
    progress: bool | None = None,
) -> Dataset:
    """Read an existing split of a data set, as `get_dataset` does."""
    if root is None:
        tell_of_namesake(os.fspath(name))
    root = None if root is None else fetching.expanded(root)
    name = located(name, root)
    allowed = (*folder.SPLITS, folder.ALL) if name.startswith("folder:") else ("train", "test")
    if split not in allowed:
        raise unknown("split", split, allowed)
    data = get_task(name, task.image_size if task else None)
    if task is not None and sorted(task.classes) != sorted(data.classes):
        raise BadFileError(_other_classes(data, task))
    task = task or data
    if name.startswith("folder:"):
        return folder.read(name, task, split, skip_bad, cache, progress)
    if name == "digits":
        return _read_digits(task, split)
    if name == "imagenet32":
        return imagenet32.read(task, split, root)
    return cifar.read(name, task, split, root)


def _read_digits(task: Task, split: str) -> Dataset:
    """Return the first 1,437 images for training, the last 360 for the test.

    Each of the 8x8 pixels, from 0 to 16, becomes 4x4 pixels from 0 to 255 in all three colours.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        digits, labels = arrays["images"], arrays["labels"].astype(np.int64)
    levels = np.rint(digits * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(levels[:, None], 3, axis=1)
    part = slice(None, -DIGITS_TEST) if split == "train" else slice(-DIGITS_TEST, None)
    return Dataset(task, split, images[part], labels[part], official=True, source="the package")


def _other_classes(data: Task, learned: Task) -> str:
    """Describe how the classes of some data differ from the learned ones."""
    lacks = [name for name in learned.classes if name not in data.classes]
    has = [name for name in data.classes if name not in learned.classes]
    differences = [
        f"it {verb} {', '.join(map(repr, names[:5]))}" for verb, names in (("lacks", lacks), ("has", has)) if names
    ]
    where = folder.place(data.name) if data.name.startswith("folder:") else data.title
    return f"{where} has other classes than those learned: {' and '.join(differences)}"
