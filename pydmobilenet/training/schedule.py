"""The learning rate of each update: a pure function of the update's number."""

from __future__ import annotations

import math
from collections.abc import Callable

from .config import Config


def make(config: Config, updates_per_epoch: int) -> Callable[[int], float]:
    """From the number of an update, from 1 on, to its learning rate.

    It rises linearly over `warmup_epochs`, reaching `learning_rate` with their last update. Then ``step`` multiplies it
    by `decay` once each of the `milestones` (in epochs) is behind, and ``cosine`` brings it to 0 with the very last
    update (Loshchilov and Hutter, 2017, arXiv 1608.03983). The numbers are those of MXNet's schedulers, bit for bit.
    """
    total = config.epochs * updates_per_epoch
    warmup = min(round(config.warmup_epochs * updates_per_epoch), total - 1)
    milestones = [epoch * updates_per_epoch for epoch in config.milestones]

    def rate(update: int) -> float:
        if update < warmup:
            return config.learning_rate * update / warmup
        if config.schedule == "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * (update - warmup) / (total - warmup))) / 2
        rate = config.learning_rate
        for milestone in milestones:
            if update > milestone:
                rate *= config.decay
        return rate

    return rate
