"""Ways out of training: the same function, faster or elsewhere."""

from ..gluon.inference import fuse

__all__ = ["fuse"]
