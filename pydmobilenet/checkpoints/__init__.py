"""Which weights? A network with the weights that a name, a run or a file stands for."""

from .checkpoint import PUBLISHED, Checkpoint, Request, bundled, find, inspect, load_record, resolve

__all__ = ["PUBLISHED", "Checkpoint", "Request", "bundled", "find", "inspect", "load_record", "resolve"]
