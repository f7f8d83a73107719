"""The learning rate of each update, as a pure function of the update's number."""

from __future__ import annotations

import math
from collections.abc import Callable

from .config import Config


def make(config: Config, updates_per_epoch: int) -> Callable[[int], float]:
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
