"""From an architecture to a network."""

from __future__ import annotations

import math

from mxnet.gluon.block import HybridBlock

from .. import complexity
from ..catalog import Architecture
from ..errors import UnusableError
from . import devices
from .blocks import SPATIAL
from .network import CIFAR, IMAGENET32, Network, Trunk

__all__ = ["CIFAR", "IMAGENET32", "Network", "Trunk", "build"]


def build(architecture: Architecture, classes: int, trunk: Trunk = CIFAR) -> HybridBlock:
    """The network of an architecture, its parameters not yet initialised, their shapes known.

    A Wide ResNet is GluonCV's and has one form for every data set; raises UnusableError where gluoncv is absent, and
    for a network that does not fit into this machine's memory.
    """
    if architecture.family == "wrn":
        net = _wide_resnet(architecture, classes)
        parameters = complexity.count(net).parameters  # GluonCV leaves the shapes to the first image
    else:
        spatial, blocks = SPATIAL[architecture.family], (architecture.depth - 2) // 9
        net = Network(spatial, blocks, architecture.multiplier, classes, trunk)
        # Not from its graph: a network that was asked for it can no longer be cast to another type.
        learned = (each.shape for name, each in net.collect_params().items() if "running" not in name)
        parameters = sum(map(math.prod, learned))
    memory = devices.available_memory()
    if 8 * parameters > memory:  # in single precision, with their gradients
        raise UnusableError(
            f"{architecture.name} with {classes} outputs has {parameters:,} parameters: with their gradients, "
            f"{8 * parameters / 1e9:,.1f} GB (allowed: the {memory / 1e9:,.1f} GB of memory that are free)"
        )
    return net


def _wide_resnet(architecture: Architecture, classes: int) -> HybridBlock:
    # Imported here: all of gluoncv comes with it, and OpenCV, which asks for a libGL.so.1 that servers may lack.
    try:
        from gluoncv.model_zoo.cifarwideresnet import get_cifar_wide_resnet
    except Exception as error:  # gluoncv raises its own errors too, for a version of torch that it does not like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnusableError(
            f"{architecture.name} is GluonCV's, which cannot be imported ({reason}): "
            "pip install '.[wrn]' in the checkout"
        ) from error
    return get_cifar_wide_resnet(architecture.depth, int(architecture.multiplier), classes=classes)
