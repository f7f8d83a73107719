"""What the training loop knows of an engine: a network under training, as a Protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ..data import Dataset
from ..errors import InvalidValueError
from .config import Config

Arrays = Mapping[str, np.ndarray]


class Score(NamedTuple):
    """Summed losses and the number of wrong answers, of so many images."""

    loss: float
    wrong: int
    images: int


class Trainer(Protocol):
    """A network under training, the same on each of its devices and in each of the processes that train it."""

    config: Config
    device: str
    """The devices' names."""
    rank: int
    """The number of this process, from 0 on, of `world_size`."""
    world_size: int

    def train_step(self, images: np.ndarray, targets: np.ndarray, learning_rate: float) -> Callable[[], Score]:
        """A forward and backward pass, and an update if it is due.

        `images` (N, 3, H, W) and target distributions (N, outputs), both in float32, are this process's share of the
        batch. Nothing waits for the devices to finish but the function that is returned: the score of the whole batch.
        """
        ...

    def evaluate(self, dataset: Dataset) -> Score:
        """The score on a whole data set, each process taking its share of the images."""
        ...

    def sync_batch_norm(self) -> None:
        """Give all devices and processes the same moving statistics, the mean of theirs. Nothing else differs."""
        ...

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The sum of what all processes hand in; all of them have to call it."""
        ...

    def state(self) -> tuple[Arrays, Arrays]:
        """The parameters and the momentum, by structural name."""
        ...

    def load_state(self, parameters: Arrays, momentum: Arrays) -> None:
        """Go back to what `state` has given. Raises BadFileError where it is of another network."""
        ...

    def load_weights(self, path: Path) -> bool:
        """Start from a parameter file, whose dense layer may be of another size: whether it was, and is left out."""
        ...


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The summed losses of logits (N, outputs) for labels (N,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).sum())


def check_split(config: Config, devices: int, processes: int) -> None:
    """Raises InvalidValueError unless every device gets the same number of images, at least one."""
    shares = devices * processes
    if config.batch_size % shares:
        nearest = max(1, round(config.batch_size / shares)) * shares
        raise InvalidValueError(
            f"batch_size is {config.batch_size} (allowed: a multiple of {shares}, for {processes} worker(s) with "
            f"{devices} device(s) each; nearest: {nearest})"
        )
