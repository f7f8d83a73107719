"""The data sets, by name. Speaks NumPy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .. import fetching
from ..errors import BadFileError, unknown
from . import cifar, digits, folder, imagenet32
from .batching import batches
from .cifar import CIFAR10, CIFAR100
from .dataset import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Dataset, Task, normalise

__all__ = [
    "DATASETS",
    "Dataset",
    "Task",
    "about",
    "batches",
    "get_dataset",
    "get_task",
    "normalise",
    "of_metadata",
    "recorded_task",
]

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
        digits.TASK,
    )
}


def get_task(name: str) -> Task:
    """The task of a data set's name; raises InvalidValueError, which names the nearest ones."""
    if name.startswith("folder:"):
        return folder.task(name)
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, "folder:PATH"])
    return DATASETS[name]


def recorded_task(name: str, record: Mapping[str, object]) -> Task:
    """The task of a data set's name, with the class names, outputs and normalisation that a run has recorded.

    Needs no data. What is not recorded is that of the name. Raises ValueError and TypeError for what no task can have,
    InvalidValueError for an unknown name.
    """
    if name.startswith("folder:"):
        known = Task(name, name.partition(":")[2], (), 0, IMAGENET_MEAN, IMAGENET_STD)
    else:
        known = get_task(name)
    classes, outputs = record.get("classes", known.classes), record.get("outputs", known.outputs)
    if not isinstance(classes, (list, tuple)) or not all(isinstance(each, str) for each in classes):
        raise TypeError("classes are no list of names")
    if type(outputs) is not int or not max(1, len(classes)) <= outputs < 2**31 or len(set(classes)) < len(classes):
        raise ValueError(f"{len(classes)} classes and {str(outputs)[:20]} outputs cannot be")
    mean, std = (_channels(record.get(key, getattr(known, key))) for key in ("mean", "std"))
    if min(std) <= 0:
        raise ValueError("a standard deviation is not above 0")
    return replace(known, classes=tuple(classes), outputs=outputs, mean=mean, std=std)


def about(task: Task) -> dict[str, str]:
    """What a file of a network says about its task: numbers and lists as JSON, in which every name is exact."""
    return {
        "dataset": task.name,
        "outputs": json.dumps(task.outputs),
        "classes": json.dumps(task.classes),
        "mean": json.dumps(task.mean),
        "std": json.dumps(task.std),
    }


def of_metadata(metadata: Mapping[str, str]) -> Task:
    """The task that a file tells as `about` has it. Raises KeyError without a data set, else as `recorded_task`."""
    recorded = {key: json.loads(metadata[key]) for key in ("outputs", "classes", "mean", "std") if key in metadata}
    return recorded_task(metadata["dataset"], recorded)


def _channels(values: object) -> tuple[float, float, float]:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise TypeError("mean and std have three numbers each")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError("mean or std is no number")
    red, green, blue = map(float, values)
    return red, green, blue


def get_dataset(
    name: str, split: str = "train", root: str | Path | None = None, skip_bad: bool = False, task: Task | None = None
) -> Dataset:
    """A split, ``train`` or ``test``, of a data set.

    ``cifar10``, ``cifar100`` and ``cifar100-coarse`` (the 20 superclasses) are looked for in `root`,
    ``$PYDMOBILENET_HOME`` and MXNet's home, else downloaded; ``imagenet32`` is looked for there too, but has no free
    address. Other files than the official ones are used from `root` alone. ``digits`` comes with the package.
    ``folder:PATH`` is any folder of images, which `root` replaces; those that cannot be read are passed over with a
    warning if `skip_bad` says so. With a `task`, as a run has recorded it, labels and normalisation are that task's.

    Raises InvalidValueError, MissingFileError, BadFileError and UnusableError; BadFileError too where the data has
    other classes than the `task`.
    """
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    root = None if root is None else fetching.expanded(root)
    if name.startswith("folder:") and root is not None:
        name = f"folder:{root}"
    own = get_task(name)
    if task is not None and sorted(task.classes) != sorted(own.classes):
        raise BadFileError(_other_classes(own, task))
    task = task or own
    if name.startswith("folder:"):
        raw = folder.read(name, split, task.classes, skip_bad)
    elif name == "digits":
        raw = digits.read(split)
    elif name == "imagenet32":
        raw = imagenet32.read(split, root)
    else:
        raw = cifar.read(CIFAR10 if name == "cifar10" else CIFAR100, split, root, coarse=name == "cifar100-coarse")
    return Dataset(task, split, raw.images, raw.labels, raw.official, raw.source, raw.note, raw.doubt)


def _other_classes(own: Task, recorded: Task) -> str:
    """What to say of data whose classes are not those that were learned."""
    lacks = [name for name in recorded.classes if name not in own.classes]
    has = [name for name in own.classes if name not in recorded.classes]
    differences = [
        f"it {verb} {', '.join(map(repr, names[:5]))}" for verb, names in (("lacks", lacks), ("has", has)) if names
    ]
    return f"{own.title} has other classes than those learned: {' and '.join(differences)}"
