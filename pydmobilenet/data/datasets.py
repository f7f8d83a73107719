"""The data sets: names to tasks, and to images."""

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
from . import cifar, folder, imagenet32, images
from .cifar import CIFAR10, CIFAR100
from .dataset import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGE_SIZES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Dataset,
    Raw,
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
            outputs=100,  # as the authors' networks have them; those from 20 on are dead
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
            note="The labels are the 20 superclasses, as in the published CIFAR-100 column, not the 100 classes.",
        ),
        imagenet32.TASK,
        Task("digits", "Digits", tuple("0123456789"), 10, DIGITS_MEAN, DIGITS_STD, mirrored=False),
    )
}


def dataset_name(name: str | os.PathLike[str]) -> str:
    """A data set's name as it is recorded: a plain path of a folder is ``folder:PATH``."""
    name = os.fspath(name)
    known = name in DATASETS or name.startswith("folder:")
    return f"folder:{name}" if not known and (os.path.isdir(fetching.expanded(name)) or os.sep in name) else name


def located(name: str | os.PathLike[str], root: str | Path | None) -> str:
    """The name of a data set that is looked for in `root`, which replaces the path of a folder."""
    name = dataset_name(name)
    return f"folder:{fetching.expanded(root)}" if name.startswith("folder:") and root is not None else name


def get_task(name: str | os.PathLike[str], image_size: int | None = None) -> Task:
    """The task of a data set's name, for images of a size that a folder's are resized to, 32 by default.

    Raises InvalidValueError, which names the nearest ones, also for another size of images that have one.
    """
    name = dataset_name(name)
    if name.startswith("folder:"):
        return folder.task(name, images.SIDE if image_size is None else check_image_size(image_size))
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, "the path of a folder"])
    task = DATASETS[name]
    if image_size not in (None, task.image_size):
        own = f"{task.image_size}, which the images of {name} have"
        raise InvalidValueError(
            f"image_size is {image_size} (allowed: {own}; any multiple of 4 for a folder of images)"
        )
    return task


def recorded_task(name: str, record: Mapping[str, object]) -> Task:
    """The task of a data set's name, with the class names, outputs and normalisation that a run has recorded.

    Needs no data. What is not recorded is that of the name. Raises ValueError and TypeError for what no task can have,
    InvalidValueError for an unknown name.
    """
    if name.startswith("folder:"):
        known = Task(name, folder.title(name), (), 0, IMAGENET_MEAN, IMAGENET_STD)
    else:
        known = get_task(name)
    values: dict[str, Any] = {key: record.get(key, getattr(known, key)) for key in RECORDED}
    classes, outputs, size = values["classes"], values["outputs"], values["image_size"]
    if not isinstance(classes, (list, tuple)) or not all(isinstance(each, str) for each in classes):
        raise ValueError("classes is no list of names")
    if type(outputs) is not int or not max(1, len(classes)) <= outputs < 2**31 or len(set(classes)) < len(classes):
        raise ValueError(f"{len(classes)} classes and {str(outputs)[:20]} outputs cannot be")
    for key in ("mean", "std"):
        if len(values[key]) != 3 or not all(type(each) in (int, float) and math.isfinite(each) for each in values[key]):
            raise ValueError(f"{key} is not of three numbers")
        values[key] = tuple(map(float, values[key]))
    if min(values["std"]) <= 0:
        raise ValueError("a standard deviation is not above 0")
    if type(size) is not int or size not in IMAGE_SIZES:
        raise ValueError(f"an image_size of {str(size)[:20]} cannot be")
    return replace(known, **{**values, "classes": tuple(classes)})


RECORDED = ("outputs", "classes", "mean", "std", "image_size")


def about(task: Task) -> dict[str, str]:
    """What a file of a network says about its task: numbers and lists as JSON, in which every name is exact.

    Such a file is made to be given away: of a folder it has the name alone, not the path.
    """
    return {
        "dataset": f"folder:{task.title}" if task.name.startswith("folder:") else task.name,
        "outputs": json.dumps(task.outputs),
        "classes": json.dumps(task.classes),
        "mean": json.dumps(task.mean),
        "std": json.dumps(task.std),
        "image_size": json.dumps(task.image_size),
    }


def of_metadata(metadata: Mapping[str, str]) -> Task:
    """The task that a file tells as `about` has it. Raises KeyError without a data set, else as `recorded_task`."""
    return recorded_task(metadata["dataset"], decoded(metadata))


def decoded(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what `about` has written as texts with the numbers and lists that they stand for."""
    return {key: json.loads(text) if key in RECORDED else text for key, text in metadata.items()}


@functools.cache  # it is said once
def tell_of_namesake(name: str) -> None:
    """Warn where a folder here has the name of a data set, which is used instead."""
    if name in DATASETS and os.path.isdir(name):
        kind = "bundled" if name == "digits" else "official"
        warnings.warn(f"{name} is the {kind} data set; for the folder of that name, give ./{name}", stacklevel=3)


def read_split(
    name: str | os.PathLike[str],
    split: str = "train",
    root: str | Path | None = None,
    skip_bad: bool = False,
    task: Task | None = None,
) -> Dataset:
    """Read a split that a data set has itself, as `get_dataset` does."""
    if root is None:
        tell_of_namesake(os.fspath(name))
    root = None if root is None else fetching.expanded(root)
    name = located(name, root)
    allowed = (*folder.SPLITS, folder.ALL) if name.startswith("folder:") else ("train", "test")
    if split not in allowed:
        raise unknown("split", split, allowed)
    own = get_task(name, task.image_size if task else None)
    if task is not None and sorted(task.classes) != sorted(own.classes):
        raise BadFileError(_other_classes(own, task))
    task = task or own
    if name.startswith("folder:"):
        raw = folder.read(name, split, task, skip_bad)
    elif name == "digits":
        raw = _read_digits(split)
    elif name == "imagenet32":
        raw = imagenet32.read(split, root)
    else:
        raw = cifar.read(CIFAR10 if name == "cifar10" else CIFAR100, split, root, coarse=name == "cifar100-coarse")
    return Dataset(task, split, **vars(raw))


def _read_digits(split: str) -> Raw:
    """The first 1,437 images for training, the last 360 for the test."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        digits, labels = arrays["images"], arrays["labels"]
    levels = np.rint(digits * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(levels[:, None], 3, axis=1)
    part = slice(None, -DIGITS_TEST) if split == "train" else slice(-DIGITS_TEST, None)
    return Raw(images[part], labels[part].astype(np.int64), official=True, source="the package")


def _other_classes(own: Task, recorded: Task) -> str:
    """What to say of data whose classes are not those that were learned."""
    lacks = [name for name in recorded.classes if name not in own.classes]
    has = [name for name in own.classes if name not in recorded.classes]
    differences = [
        f"it {verb} {', '.join(map(repr, names[:5]))}" for verb, names in (("lacks", lacks), ("has", has)) if names
    ]
    where = folder.place(own.name) if own.name.startswith("folder:") else own.title
    return f"{where} has other classes than those learned: {' and '.join(differences)}"
