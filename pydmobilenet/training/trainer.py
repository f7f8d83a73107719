"""The `Trainer` protocol of an engine, and what its steps are fed: learning rates, targets, mixup."""

from __future__ import annotations

import math
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


def learning_rates(config: Config, updates_per_epoch: int) -> Callable[[int], float]:
    """A function from the number of an update, from 1 on, to its learning rate.

    The rate rises linearly over `warmup_epochs` and reaches `learning_rate` with their last update. After that,
    ``step`` multiplies it by `decay` after each of the `milestones` (in epochs), and ``cosine`` brings it to 0 with the
    last update of the run.
    """
    total = config.epochs * updates_per_epoch
    warmup = min(round(config.warmup_epochs * updates_per_epoch), total - 1)
    milestones = [epoch * updates_per_epoch for epoch in config.milestones]

    # The order of the operations is that of MXNet's schedulers: the rates are the same to the last bit.
    def rate(update: int) -> float:
        if update < warmup:
            return config.learning_rate * update / warmup
        if config.schedule == "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * (update - warmup) / (total - warmup))) / 2
        decayed = config.learning_rate
        for milestone in milestones:
            if update > milestone:
                decayed *= config.decay  # one by one: a power of the decay rounds otherwise
        return decayed

    return rate


def make_targets(labels: np.ndarray, outputs: int, smoothing: float = 0.0) -> np.ndarray:
    """Labels (N,) to target distributions (N, outputs) in float32.

    Each has ``1 - smoothing`` on its label, and `smoothing` spread over all outputs (label smoothing: Szegedy et al.,
    2016, arXiv 1512.00567).
    """
    distributions = np.full((len(labels), outputs), smoothing / outputs, np.float32)
    distributions[np.arange(len(labels)), labels] += 1 - smoothing
    return distributions


def mixup_lam(alpha: float, seed: int, epoch: int, batch: int) -> float:
    """The share of each image in its mixture, one number a batch, drawn from Beta(alpha, alpha).

    It depends on the seed, the epoch and the batch (both from 0) alone, so that a resumed run draws the same.
    """
    # To NumPy, [seed, epoch, 0] is [seed, epoch], of which the order of the images is drawn.
    return float(np.random.default_rng([seed, epoch, batch, 1]).beta(alpha, alpha))


def mix(array: np.ndarray, lam: float, others: np.ndarray | None = None) -> np.ndarray:
    """Mix each of N images, or of N distributions, with its partner: the same batch in reverse order.

    (mixup: Zhang et al., 2018, arXiv 1710.09412; the partners as in the PydMobileNet authors' code). Of several workers
    that share a batch, `others` are those of the worker that has the partners.
    """
    own = np.float32(lam)
    return own * array + (1 - own) * (array if others is None else others)[::-1]
