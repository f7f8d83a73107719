"""The networks in PyTorch: modules, inference, training. Nothing else in the package imports torch."""

from .network import get_model

__all__ = ["get_model"]
