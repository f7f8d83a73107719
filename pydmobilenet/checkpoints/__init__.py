"""Weights: find, verify, read and write them."""

from .checkpoint import PUBLISHED, Checkpoint, bundled, find, inspect, load_record, origin, resolve

__all__ = ["PUBLISHED", "Checkpoint", "bundled", "find", "inspect", "load_record", "origin", "resolve"]
