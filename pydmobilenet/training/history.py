"""The history of a run, one row an epoch: lines of text, a summary, CSV, TensorBoard's events.

Errors are in %, losses are means over the images.
"""

from __future__ import annotations

import csv
import io
import math
import operator
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UnusableError

OPTIMISM = (
    "The best epoch is chosen by the test set, so its error leans optimistic; the published figures are of that kind."
)


@dataclass(frozen=True)
class Epoch:
    """One epoch. A run with validation images has no test loss and error here: it measures them once, at its end."""

    epoch: int  # finished epochs, from 1
    learning_rate: float  # at the epoch's last step
    train_loss: float
    train_error: float
    test_loss: float | None
    test_error: float | None
    images_per_second: float
    seconds: float
    val_loss: float | None = None
    val_error: float | None = None
    ema_loss: float | None = None  # of the moving average, on the images of `split`
    ema_error: float | None = None

    @property
    def split(self) -> str:
        """The images that choose the best epoch: ``val`` or ``test``."""
        return "test" if self.val_error is None else "val"

    @property
    def loss(self) -> float:
        """The loss on the images of `split`."""
        return getattr(self, f"{self.split}_loss")

    @property
    def error(self) -> float:
        """The error on the images of `split`."""
        return getattr(self, f"{self.split}_error")


def columns(split: str, averaged: bool = False) -> list[str]:
    """Name the columns of the CSV file of a run with this `Epoch.split`, perhaps with a moving average."""
    errors = [f"{split}_loss", f"{split}_error", *(["ema_loss", "ema_error"] if averaged else [])]
    return ["epoch", "learning_rate", "train_loss", "train_error", *errors, "images_per_second", "seconds"]


@dataclass
class History:
    """The finished epochs of a run, in order, of `epochs` in all (0: unknown)."""

    epochs: int = 0
    rows: list[Epoch] = field(default_factory=list)

    @property
    def last(self) -> Epoch | None:
        """The last epoch, or None."""
        return self.rows[-1] if self.rows else None

    @property
    def best(self) -> Epoch | None:
        """The first epoch with the smallest error, or None."""
        return min(self.rows, key=lambda row: row.error if math.isfinite(row.error) else math.inf, default=None)

    @property
    def best_average(self) -> Epoch | None:
        """The first epoch with the smallest error of the moving average; None without one."""
        rows = [row for row in self.rows if row.ema_error is not None]
        return min(rows, key=operator.attrgetter("ema_error"), default=None)

    @property
    def split(self) -> str:
        """The images that choose the best epoch: ``val`` or ``test``."""
        return self.rows[-1].split if self.rows else "test"

    @property
    def _columns(self) -> list[str]:
        return columns(self.split, self.best_average is not None)

    @property
    def epochs_since_best(self) -> int:
        """The number of epochs since the best one."""
        return self.last.epoch - self.best.epoch if self.last and self.best else 0

    def line(self, row: Epoch) -> str:
        """Format an epoch as a line, with the best epoch up to then. The lines of a run form columns."""
        best = History(rows=[*(earlier for earlier in self.rows if earlier.epoch < row.epoch), row]).best
        assert best
        total = str(self.epochs or "")
        number = f"{row.epoch:>{len(total) or 3}}" + (f"/{total}" if total else "")
        best_epoch = f"(epoch {best.epoch})"
        average = "" if row.ema_error is None else f"ema {row.ema_error:5.2f} %  "
        return (
            f"epoch {number}  loss {row.train_loss:.3f}  error {row.train_error:5.2f} %  "
            f"{row.split} {row.error:5.2f} %  {average}best {best.error:5.2f} % {best_epoch:<{8 + (len(total) or 3)}}  "
            f"rate {row.learning_rate:.6f}  {row.images_per_second:>6,.0f} images/s  {row.seconds:>4,.0f} s"
        )

    def summary(self) -> str:
        """Describe the last and the best error, and say what the best one is worth."""
        last, best = self.last, self.best
        if last is None or best is None:
            return "No epoch has been finished."
        kind, advice = ("Validation", "") if self.split == "val" else ("Test", f"\n{OPTIMISM}")
        average = ""
        if chosen := self.best_average:
            average = (
                f"\nOf the moving average: {last.ema_error:.2f} %; "
                f"the best, after epoch {chosen.epoch}: {chosen.ema_error:.2f} %."
            )
        return (
            f"{kind} error after the last epoch ({last.epoch}): {last.error:.2f} %; "
            f"the best, after epoch {best.epoch}: {best.error:.2f} %.{average}{advice}"
        )

    def to_dicts(self) -> list[dict[str, float]]:
        """Return the epochs for JSON, with every digit. Python's JSON has NaN and infinity too."""
        names = self._columns
        return [{name: getattr(row, name) for name in names} for row in self.rows]

    @classmethod
    def from_dicts(cls, rows: Iterable[Mapping[str, Any]], epochs: int = 0) -> History:
        """Rebuild the history from `to_dicts`. Raises TypeError, KeyError, ValueError or OverflowError."""
        history = cls(epochs)
        for number, row in enumerate(rows, 1):
            values: dict[str, Any] = {name: float(value) for name, value in dict(row).items()}
            values = {"test_loss": None, "test_error": None, **values, "epoch": int(values["epoch"])}
            epoch = Epoch(**values)
            history.rows.append(epoch)
            first = history.rows[0]
            same = (number, first.split, first.ema_error is None) == (epoch.epoch, epoch.split, epoch.ema_error is None)
            if not same or None in (epoch.loss, epoch.error):
                raise ValueError(f"epoch {number} is missing or damaged")
        return history

    def to_csv(self) -> str:
        """Format the epochs as CSV with every digit."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_dicts())  # csv writes floats with repr
        return buffer.getvalue()


class Events:
    """TensorBoard's event files, one step an epoch, written by tensorboardX in single precision.

    ``tensorboard --logdir runs`` shows all runs side by side.

    A writer's first epoch hides itself and all later ones in earlier files: a resumed run shows each epoch once.
    Raises UnusableError without tensorboardX, or if the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.check()
        self.directory = directory
        self.writer: Any = None

    @staticmethod
    def check() -> None:
        """Raise UnusableError without tensorboardX."""
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise UnusableError(f"{error}: for --tensorboard, pip install 'pydmobilenet[tensorboard]'") from None

    def add(self, row: Epoch) -> None:
        """Write an epoch."""
        from tensorboardX import SummaryWriter

        try:
            if self.writer is None:
                # The library's own names have the second: a run resumed within it would overwrite its first file.
                # Its queue is unbounded: a full disk ends the thread that empties it.
                suffix = f".{time.time_ns()}"
                self.writer = SummaryWriter(
                    str(self.directory), purge_step=row.epoch, filename_suffix=suffix, max_queue=0
                )
            for tag in ("train/loss", "train/error", f"{row.split}/loss", f"{row.split}/error"):
                self.writer.add_scalar(tag, getattr(row, tag.replace("/", "_")), row.epoch)
            for tag in ("ema/loss", "ema/error") if row.ema_error is not None else ():
                self.writer.add_scalar(tag, getattr(row, tag.replace("/", "_")), row.epoch)
            for tag in ("learning_rate", "images_per_second"):
                self.writer.add_scalar(tag, getattr(row, tag), row.epoch)
            self.writer.flush()
        except OSError as error:
            raise UnusableError(f"cannot write to {self.directory}: {error.strerror}") from None

    def close(self) -> None:
        """End the writer's thread. Every epoch is on the disk already."""
        if self.writer:
            with suppress(OSError):
                self.writer.close()
            self.writer = None
