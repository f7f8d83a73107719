"""Checkpoints: where they are, what is in them, and the runs that they belong to."""
