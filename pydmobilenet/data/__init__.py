"""Data sets, pictures, splits and batches; in NumPy, without an engine."""

from .dataset import IMAGE_SIZES, Dataset, Task, batches, normalise
from .datasets import DATASETS, about, dataset_name, decoded, get_task, of_metadata, recorded_task
from .splits import Fractions, Splits, get_dataset, get_splits

__all__ = [
    "DATASETS",
    "IMAGE_SIZES",
    "Dataset",
    "Fractions",
    "Splits",
    "Task",
    "about",
    "batches",
    "dataset_name",
    "decoded",
    "get_dataset",
    "get_splits",
    "get_task",
    "normalise",
    "of_metadata",
    "recorded_task",
]
