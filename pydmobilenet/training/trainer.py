"""The `Trainer` protocol of an engine, and the learning rates of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..checkpoints.weights import Head
from ..data import Dataset, Splits, batches
from ..errors import BadFileError, InvalidValueError
from ..metrics import Score
from ..network import Network
from ..text import progress_bar
from .config import Config
from .loader import Loader

Arrays = Mapping[str, np.ndarray]
"""Arrays by structural name, as ``stem.conv.weight``."""
FEATURES_BATCH = 100
LOSS_SCALE = "loss scale"  # of half precision; it stands beside the momentum in the optimiser's state
STEP = "step"  # the number of AdamW's updates; it stands there too
# An optimiser's arrays for each parameter: their names in PyTorch, and the prefix of the parameter's in the state.
MOMENTS = {"sgd": {"momentum_buffer": ""}, "adamw": {"exp_avg": "exp_avg/", "exp_avg_sq": "exp_avg_sq/"}}


class Trainer(Protocol):
    """A network under training, with its optimiser, on one or more devices.

    A worker is a process with a shard of each batch: worker `rank` of `world_size`.
    """

    name: str
    """The engine. Another one cannot resume its state."""
    config: Config

    @property
    def rank(self) -> int:
        """The number of this worker. Worker 0 writes the run's files."""

    @property
    def world_size(self) -> int:
        """The number of workers."""

    @property
    def device(self) -> str:
        """The devices of this worker, as ``cpu(0)``."""

    def loader(self, dataset: Dataset, batches: int) -> Loader:
        """Return the source of this worker's batches, so many an epoch, as `train_step` takes them."""

    def train_step(self, images: Any, targets: Any, learning_rate: float) -> Callable[[], Score]:
        """Do a forward and a backward pass, and an update after every `accumulation_steps` passes.

        `images` (N, 3, H, W), or their `features` (N, C), and `targets` (N, outputs) are this worker's shard, as
        arrays or as its `loader` gives them. Returns at once a function: it waits for the devices and returns the score
        of the batch, over all workers.
        """

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the pooled features (n, C) of normalised images (n, 3, H, W), with a frozen body."""

    def evaluate(self, dataset: Dataset, averaged: bool = False) -> Score:
        """Return the score on a data set, or on its `features`, over all workers. Changes nothing trained.

        It is of the parameters, or of those `averaged`.
        """

    def averaged(self) -> Arrays:
        """Return the exponential moving average of the parameters, by the config's ``ema``."""

    def sync_batch_norm(self) -> None:
        """Set the running statistics of batch normalisation to their mean over all devices and workers."""

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """Sum the values of all workers. Every worker has to call it."""

    def close(self) -> None:
        """Wait until all workers have called it."""

    def state(self) -> tuple[Arrays, Arrays]:
        """Return copies of the parameters, and of the momentum (`MOMENTS`) with the rest of the optimiser's state."""

    def load_state(self, parameters: Arrays, momentum: Arrays) -> None:
        """Go back to a `state`: the same steps give the same bits. Raises BadFileError for another network's."""

    def load_weights(self, path: Path, head: Head = "required") -> bool:
        """Load a file's parameters, those of the dense layer as `head` says. Raises MissingFileError and BadFileError.

        Returns True if the dense layer was left as it was.
        """


def rate_multiplier(name: str, network: Network, config: Config) -> float:
    """Return a parameter's factor of the learning rate: 1 in the network's head, else `body_rate`; 0: untrained."""
    return 1.0 if name.rpartition(".")[0] == network.head.name else config.body_rate


def body(network: Network, arrays: Arrays) -> tuple[Network, Arrays]:
    """Replace a network's head by the identity: its logits are the pooled features then, bit for bit."""
    head, size = network.head, network.head.in_features
    identity = {f"{head.name}.weight": np.eye(size, dtype=np.float32), f"{head.name}.bias": np.zeros(size, np.float32)}
    return Network((*network.layers[:-1], replace(head, out_features=size))), {**arrays, **identity}


def head_predictor(network: Network, arrays: Arrays) -> Callable[[np.ndarray], np.ndarray]:
    """Return a network's head as a function: features (N, C) to logits (N, outputs)."""
    weight, bias = (arrays[f"{network.head.name}.{name}"] for name in network.head.parameters)
    return lambda x: x @ weight.T + bias


def with_features(trainer: Trainer, splits: Splits, shown: bool | None) -> Splits:
    """Replace images by their features (N, C) in float32. `shown` is as in `text.progress_bar`."""

    def extract(dataset: Dataset) -> Dataset:
        parts = []
        for images, labels in batches(dataset, FEATURES_BATCH, train=False):
            parts.append(trainer.features(images))
            bar.update(len(labels))
        return replace(dataset, images=np.concatenate(parts))

    train, *others = splits
    with progress_bar(sum(len(dataset) for dataset in splits if dataset), "features", "images", shown) as bar:
        return Splits(extract(train), *(dataset and extract(dataset) for dataset in others))


def check_state(
    parameters: Arrays, momentum: Arrays, net: Mapping[str, Any], trained: Mapping[str, Any], optimizer: str
) -> None:
    """Raise BadFileError unless a state fits: a network's arrays, and those of the optimizer for the `trained` ones."""
    expected = {prefix + name: array for prefix in MOMENTS[optimizer].values() for name, array in trained.items()}
    if optimizer == "adamw":
        expected[STEP] = np.empty(())
    shapes = _shapes(momentum)  # none before the first update, or without momentum
    if _shapes(parameters) != _shapes(net) or shapes not in ({}, _shapes(expected)):
        raise BadFileError("the state is of another network")
    if STEP in momentum:
        step, squares = momentum[STEP], (array for name, array in momentum.items() if name.startswith("exp_avg_sq/"))
        if step < 1 or step % 1 or any((array < 0).any() for array in squares):
            raise BadFileError("the state is damaged: AdamW's step or squares are impossible")


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def check_split(config: Config, devices: int, workers: int) -> None:
    """Raise InvalidValueError unless every device gets the same number of images."""
    shards = devices * workers
    if config.batch_size % shards:
        nearest = max(1, round(config.batch_size / shards)) * shards
        raise InvalidValueError(
            f"batch_size is {config.batch_size} (allowed: a multiple of {shards}, for {workers} worker(s) with "
            f"{devices} device(s) each; nearest: {nearest})"
        )


def learning_rates(config: Config, updates_per_epoch: int) -> Callable[[int], float]:
    """Return a function from the number of an update, from 1, to its learning rate.

    The rate rises linearly over `warmup_epochs` to `learning_rate`. Then ``step`` multiplies it by `decay` after each
    of the `milestones` (in epochs), and ``cosine`` brings it to 0 with the last update. ``htd`` is hyperbolic tangent
    decay from -6 to 3, down to 0.0025 of the peak (Hsueh, Li and Wu, 2019, arXiv 1806.01593).
    """
    total = config.epochs * updates_per_epoch
    warmup = min(round(config.warmup_epochs * updates_per_epoch), total - 1)
    milestones = [epoch * updates_per_epoch for epoch in config.milestones]

    # In the order of MXNet's schedulers: the rates are the same to the last bit.
    def rate(update: int) -> float:
        if update < warmup:
            return config.learning_rate * update / warmup
        if config.schedule == "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * (update - warmup) / (total - warmup))) / 2
        if config.schedule == "htd":
            return config.learning_rate * (1 - math.tanh(-6 + 9 * (update - warmup) / (total - warmup))) / 2
        decayed = config.learning_rate
        for milestone in milestones:
            if update > milestone:
                decayed *= config.decay  # one by one: a power of the decay rounds otherwise
        return decayed

    return rate
