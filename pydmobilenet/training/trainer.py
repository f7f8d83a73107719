"""What an engine has to offer to be trained with: the `Trainer` protocol, and what every trainer needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..checkpoints.weights import Head
from ..data import Dataset
from ..errors import BadFileError, InvalidValueError
from ..metrics import Score
from ..network import Network
from .config import Config

Arrays = Mapping[str, np.ndarray]
"""Arrays by structural name, as ``stem.conv.weight``."""
LOSS_SCALE = "loss scale"  # of half precision, which stands beside the momentum in the optimiser's state


class Trainer(Protocol):
    """A network under training, with its optimiser, on one or more devices and beside other workers.

    A worker is a process that trains the same network on its share of each batch; worker `rank` is one of
    `world_size`. `device` names the devices of this worker.
    """

    name: str
    """Of the engine: another engine cannot go on with a state."""
    config: Config

    @property
    def rank(self) -> int:
        """The number of this worker, from 0; worker 0 writes the run's files."""

    @property
    def world_size(self) -> int:
        """The number of workers."""

    @property
    def device(self) -> str:
        """The devices in words, as ``cpu(0)``."""

    def train_step(self, images: np.ndarray, targets: np.ndarray, learning_rate: float) -> Callable[[], Score]:
        """Do a forward and a backward pass, and an update after every `accumulation_steps` passes.

        `images` (N, 3, 32, 32) and `targets` (N, outputs) are this worker's share of the batch. Returns at once. The
        function returned waits for the devices and gives the score of the whole batch, over all workers.
        """

    def evaluate(self, dataset: Dataset) -> Score:
        """The score on a whole data set, over all workers. Changes nothing that is trained."""

    def sync_batch_norm(self) -> None:
        """Set the running statistics of batch normalisation to their mean over all devices and workers."""

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The sum of the values of all workers. Every worker has to call it."""

    def close(self) -> None:
        """Wait until all workers have called it: the end of training."""

    def state(self) -> tuple[Arrays, Arrays]:
        """Parameters, and momentum with the rest of the optimiser's state: copies that later steps do not change."""

    def load_state(self, parameters: Arrays, momentum: Arrays) -> None:
        """Go back to what `state` gave: the same steps from there give the same bits.

        Raises BadFileError for the state of another network.
        """

    def load_weights(self, path: Path, head: Head = "required") -> bool:
        """Load the parameters of a file, those of the dense layer as `head` says.

        Returns whether the dense layer kept its own. Raises MissingFileError and BadFileError.
        """


def rate_multiplier(name: str, network: Network, config: Config) -> float:
    """Return a parameter's share of the learning rate: 1 in the network's head, `body_rate` everywhere else."""
    return 1.0 if name.rpartition(".")[0] == network.head.name else config.body_rate


def check_state(parameters: Arrays, momentum: Arrays, own: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    """Raises BadFileError where a state is of another network than the one with its `own` arrays, of which some are
    `trained`; they may be an engine's.
    """
    moved = _shapes(momentum)  # of none before the first update, and without momentum
    if _shapes(parameters) != _shapes(own) or moved not in ({}, _shapes(trained)):
        raise BadFileError("the state is of another network")


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def check_split(config: Config, devices: int, workers: int) -> None:
    """Raises InvalidValueError unless every device gets the same number of images, at least one."""
    shares = devices * workers
    if config.batch_size % shares:
        nearest = max(1, round(config.batch_size / shares)) * shares
        raise InvalidValueError(
            f"batch_size is {config.batch_size} (allowed: a multiple of {shares}, for {workers} worker(s) with "
            f"{devices} device(s) each; nearest: {nearest})"
        )
