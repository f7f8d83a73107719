"""The history of a run, one row an epoch: lines of text, a summary, CSV and TensorBoard's events.

Errors are in %, losses are means over the images.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UnusableError

OPTIMISM = (
    "The best epoch is chosen by the test set, so its error leans optimistic; the published figures are of that kind."
)


@dataclass(frozen=True)
class Epoch:
    """One epoch of training. Its error is that of the validation images where there are any, which are None in the
    other runs, as the test error is in these: it is measured once, at the end.
    """

    epoch: int  # finished epochs, from 1
    learning_rate: float  # at the epoch's last step
    train_loss: float
    train_error: float  # in %
    test_loss: float | None
    test_error: float | None  # in %
    images_per_second: float
    seconds: float
    val_loss: float | None = None
    val_error: float | None = None  # in %

    @property
    def split(self) -> str:
        """The images that choose the best epoch: ``val`` or ``test``."""
        return "test" if self.val_error is None else "val"

    @property
    def loss(self) -> float:
        """On the images that choose the best epoch."""
        return getattr(self, f"{self.split}_loss")

    @property
    def error(self) -> float:
        """On the images that choose the best epoch, in %."""
        return getattr(self, f"{self.split}_error")


def columns(split: str) -> list[str]:
    """The columns of the CSV file of a run whose best epoch is chosen by ``val`` or ``test``."""
    rest = ["images_per_second", "seconds"]
    return ["epoch", "learning_rate", "train_loss", "train_error", f"{split}_loss", f"{split}_error", *rest]


@dataclass
class History:
    """The finished epochs of a run, in order. `epochs` is how many the run will have, 0 if that is not known."""

    epochs: int = 0
    rows: list[Epoch] = field(default_factory=list)

    @property
    def last(self) -> Epoch | None:
        """The last epoch, or None where there is none yet."""
        return self.rows[-1] if self.rows else None

    @property
    def best(self) -> Epoch | None:
        """The epoch with the smallest error, the first of several, or None where there is none yet."""
        return _best(self.rows) if self.rows else None

    @property
    def split(self) -> str:
        """The images that choose the best epoch: ``val`` or ``test``."""
        return self.rows[-1].split if self.rows else "test"

    @property
    def epochs_since_best(self) -> int:
        """How many epochs have passed since the best one."""
        return self.last.epoch - self.best.epoch if self.last and self.best else 0

    def line(self, row: Epoch) -> str:
        """An epoch as one line of text, with the best epoch up to then. The lines of a run form columns."""
        best = _best([earlier for earlier in self.rows if earlier.epoch < row.epoch] + [row])
        total = str(self.epochs or "")
        number = f"{row.epoch:>{len(total) or 3}}" + (f"/{total}" if total else "")
        best_epoch = f"(epoch {best.epoch})"
        return (
            f"epoch {number}  loss {row.train_loss:.3f}  error {row.train_error:5.2f} %  "
            f"{row.split} {row.error:5.2f} %  best {best.error:5.2f} % {best_epoch:<{8 + (len(total) or 3)}}  "
            f"rate {row.learning_rate:.6f}  {row.images_per_second:>6,.0f} images/s  {row.seconds:>4,.0f} s"
        )

    def summary(self) -> str:
        """The last and the best error, and a word on the best one."""
        last, best = self.last, self.best
        if last is None or best is None:
            return "No epoch has been finished."
        kind, advice = ("Validation", "") if self.split == "val" else ("Test", f"\n{OPTIMISM}")
        return (
            f"{kind} error after the last epoch ({last.epoch}): {last.error:.2f} %; "
            f"the best, after epoch {best.epoch}: {best.error:.2f} %.{advice}"
        )

    def to_dicts(self) -> list[dict[str, float]]:
        """The epochs for JSON, with every digit. Python's JSON has NaN and infinity too."""
        return [{name: getattr(row, name) for name in columns(row.split)} for row in self.rows]

    @classmethod
    def from_dicts(cls, rows: Iterable[Mapping[str, Any]], epochs: int = 0) -> History:
        """The history from what `to_dicts` gave. Raises TypeError, ValueError or OverflowError for anything else."""
        history = cls(epochs, [Epoch(**{"test_loss": None, "test_error": None, **row}) for row in rows])
        for number, row in enumerate(history.rows, 1):
            check_types(row)
            values = [getattr(row, name) for name in columns(history.split)]
            possible = 0 <= row.learning_rate < math.inf and row.seconds >= 0 and None not in values
            wrong = any(error < 0 or error > 100 for error in (row.train_error, row.error))  # but not NaN
            if row.epoch != number or row.split != history.split or wrong or not possible:
                raise ValueError(f"what it tells of epoch {number} cannot be")
        return history


def check_types(instance: Any) -> None:
    """Raises TypeError or OverflowError where a number of a dataclass is none of its type, as what comes from JSON."""
    for each in fields(instance):
        value = getattr(instance, each.name)
        if each.type == "int" and type(value) is not int:
            raise TypeError(f"{each.name} is no whole number")
        if each.type == "float" or (each.type == "float | None" and value is not None):
            if type(value) not in (int, float):
                raise TypeError(f"{each.name} is no number")
            float(value)  # a whole number may be too large


def _best(rows: Sequence[Epoch]) -> Epoch:
    return min(rows, key=lambda row: row.error if math.isfinite(row.error) else math.inf)


def write_csv(history: History, path: str | os.PathLike[str]) -> None:
    """Write the epochs as CSV with every digit of every number. Raises UnusableError where that is not possible."""
    files.write(Path(path), csv_text(history))


def csv_text(history: History) -> str:
    """What `write_csv` writes."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns(history.split), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.to_dicts())  # csv writes floats with repr
    return buffer.getvalue()


class Events:
    """TensorBoard's event files, one step an epoch, with single precision.

    A writer's first epoch hides that epoch and all later ones in earlier files, so that a resumed run shows each epoch
    once. Raises UnusableError without tensorboardX, or where the directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.check()
        self._directory = Path(directory)
        self._writer: Any = None

    @staticmethod
    def check() -> None:
        """Raises UnusableError without tensorboardX."""
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise UnusableError(
                f"event files are written with tensorboardX, which cannot be imported ({error}): "
                "pip install '.[tensorboard]' in the checkout"
            ) from None

    def add(self, row: Epoch) -> None:
        """Write an epoch."""
        from tensorboardX import SummaryWriter

        with self._writing():
            if self._writer is None:
                # The library names a file by the second, and would write over that of a run which has just ended. Its
                # queue is without bounds: a full disk ends the thread that empties it.
                options = {"filename_suffix": f".{time.time_ns()}", "max_queue": 0}
                self._writer = SummaryWriter(str(self._directory), purge_step=row.epoch, **options)
            for tag in ("train/loss", "train/error", f"{row.split}/loss", f"{row.split}/error"):
                self._writer.add_scalar(tag, getattr(row, tag.replace("/", "_")), row.epoch)
            for tag in ("learning_rate", "images_per_second"):
                self._writer.add_scalar(tag, getattr(row, tag), row.epoch)
            self._writer.flush()

    def close(self) -> None:
        """Write what is left; once more does nothing."""
        writer, self._writer = self._writer, None
        if writer:
            with self._writing():
                writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnusableError(f"cannot write to {self._directory}: {error.strerror}") from None
