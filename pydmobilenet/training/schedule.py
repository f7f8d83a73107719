"""The learning rate of each update: a pure function of the update's number, made of MXNet's own schedulers."""

from __future__ import annotations

from collections.abc import Callable

import mxnet as mx

from .config import Config


def make(config: Config, updates_per_epoch: int) -> Callable[[int], float]:
    """From the number of an update, from 1 on, to its learning rate.

    It rises linearly over `warmup_epochs`, reaching `learning_rate` with their last update. Then ``step`` multiplies it
    by `decay` once each of the `milestones` (in epochs) is behind, and ``cosine`` brings it to 0 with the very last
    update.
    """
    rising = min(round(config.warmup_epochs * updates_per_epoch), config.epochs * updates_per_epoch - 1)
    warmup = {"base_lr": config.learning_rate, "warmup_steps": rising}

    def rate(update: int) -> float:
        # A new scheduler each time: MXNet's remember what they were last asked.
        if config.schedule == "cosine":
            scheduler = mx.lr_scheduler.CosineScheduler(config.epochs * updates_per_epoch, final_lr=0, **warmup)
        else:
            never = config.epochs * updates_per_epoch + 1  # MXNet's wants one at least
            milestones = [epoch * updates_per_epoch for epoch in config.milestones] or [never]
            scheduler = mx.lr_scheduler.MultiFactorScheduler(milestones, config.decay, **warmup)
        return scheduler(update)

    return rate
