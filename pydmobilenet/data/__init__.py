"""Data sets, pictures, splits and batches; in NumPy, without an engine."""

from .arrays import array_dataset
from .dataset import IMAGE_SIZES, Dataset, Task, batches, normalise
from .datasets import DATASETS, about, dataset_name, decoded, get_task, is_own, of_metadata, recorded_task
from .splits import Fractions, Splits, get_dataset, get_splits, given_splits

__all__ = [
    "DATASETS",
    "IMAGE_SIZES",
    "Dataset",
    "Fractions",
    "Splits",
    "Task",
    "about",
    "array_dataset",
    "batches",
    "dataset_name",
    "decoded",
    "get_dataset",
    "get_splits",
    "get_task",
    "given_splits",
    "is_own",
    "normalise",
    "of_metadata",
    "recorded_task",
]
