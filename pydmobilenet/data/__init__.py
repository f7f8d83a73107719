"""The data sets, by name. Speaks NumPy alone."""

from __future__ import annotations

from pathlib import Path

from .. import fetching
from ..errors import unknown
from . import cifar, digits, folder, imagenet32
from .batching import batches
from .cifar import CIFAR10, CIFAR100
from .dataset import CIFAR_MEAN, CIFAR_STD, Dataset, Task, normalise

__all__ = ["DATASETS", "Dataset", "Task", "batches", "get_dataset", "get_task", "normalise"]

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
    """The task of a data set's name; raises UnknownNameError, which names the nearest ones."""
    if name.startswith("folder:"):
        return folder.task(name)
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, "folder:PATH"])
    return DATASETS[name]


def get_dataset(name: str, split: str = "train", root: str | Path | None = None, skip_bad: bool = False) -> Dataset:
    """A split, ``train`` or ``test``, of a data set.

    ``cifar10``, ``cifar100`` and ``cifar100-coarse`` (the 20 superclasses) are looked for in `root`,
    ``$PYDMOBILENET_HOME`` and MXNet's home, else downloaded; ``imagenet32`` is looked for there too, but has no free
    address. Other files than the official ones are used from `root` alone. ``digits`` comes with scikit-learn.
    ``folder:PATH`` is any folder of images; with `skip_bad`, those that cannot be read are passed over with a warning.
    What may be wrong with a folder is a warning; how many images each class has, and what was skipped, is its `note`.

    Raises UnknownNameError, MissingFileError, BadFileError and UnusableError.
    """
    task = get_task(name)
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    root = None if root is None else fetching.expanded(root)
    if name.startswith("folder:"):
        raw = folder.read(name, split, skip_bad)
    elif name == "digits":
        raw = digits.read(split)
    elif name == "imagenet32":
        raw = imagenet32.read(split, root)
    else:
        raw = cifar.read(CIFAR10 if name == "cifar10" else CIFAR100, split, root, coarse=name == "cifar100-coarse")
    return Dataset(task, split, raw.images, raw.labels, raw.official, raw.source, raw.note, raw.doubt)
