"""A trained run, as `api.train` returns it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import checkpoints
from . import engine as engines

if TYPE_CHECKING:
    from torch import nn  # noqa: TID251  for its type alone

    from .gluon.network import HybridBlock
    from .training.history import History


@dataclass(frozen=True)
class Run:
    """A trained run, usable as the path of its `directory`. Under torchrun only the first process has a `summary`.

    Trained with several seeds, it has the `runs` of these, and the means and standard deviations in its `summary`.
    """

    directory: Path
    summary: str = ""
    runs: tuple[Run, ...] = ()

    def __fspath__(self) -> str:
        return os.fspath(self.directory)

    @property
    def history(self) -> History:
        """The losses, errors and learning rates of the epochs: ``run.history.rows``."""
        from .training.checkpoint import read_history

        return read_history(self.directory)

    @property
    def test_error(self) -> float | None:
        """The test error of the best epoch in %; None before it is measured, or without test images."""
        from .checkpoints import runs

        return runs.read_metadata(self.directory)["checkpoints"].get(runs.BEST, {}).get("test_error")

    def model(self, device: str | None = None, engine: str = "auto") -> HybridBlock | nn.Module:
        """Return the network of the best epoch, as `get_model`. Raises MissingFileError before the first epoch."""
        return engines.get_model(checkpoints.resolve(weights=self), engine, device)
