"""From a model's name to its description."""

from __future__ import annotations

from . import catalog
from .data import get_task
from .network import CIFAR, IMAGENET32, Architecture, Network, Widths
from .network import describe as describe_architecture


def describe(model: str | Architecture, dataset: str = "cifar10", outputs: int | None = None) -> Network:
    """Describe a model's network on a data set, with the outputs that this asks for or with so many.

    Raises InvalidValueError for an unknown name.
    """
    architecture = catalog.parse_name(model) if isinstance(model, str) else model
    return describe_architecture(architecture, outputs or get_task(dataset).outputs, widths(dataset))


def widths(dataset: str) -> Widths:
    """How wide the networks for a data set are."""
    return IMAGENET32 if dataset == "imagenet32" else CIFAR
