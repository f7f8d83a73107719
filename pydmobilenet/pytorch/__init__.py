"""The PyTorch engine. Nothing else in the package imports torch."""

from .. import machine

machine.limit_spinning()

from .network import get_model  # noqa: E402

__all__ = ["get_model"]
