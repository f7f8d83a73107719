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
from dataclasses import dataclass, field
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

    def append(self, row: Epoch) -> None:
        self.rows.append(row)

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
        """The history from what `to_dicts` gave.

        Raises TypeError where a field is missing, unknown or no number; ValueError or OverflowError where the epochs
        are not 1, 2, 3 … or a number is impossible.
        """
        history = cls(epochs, [_checked(_epoch(row), number) for number, row in enumerate(rows, 1)])
        if len({row.split for row in history.rows}) > 1:
            raise ValueError("some epochs have a validation error, and others a test error")
        return history


def _epoch(values: Mapping[str, Any]) -> Epoch:
    others: dict[str, Any] = {"test_loss": None, "test_error": None} if "val_error" in values else {}
    if set(values) != set(columns("val" if others else "test")):
        raise TypeError("an epoch has other fields")
    return Epoch(**others, **values)


def _checked(row: Epoch, number: int) -> Epoch:
    values = [getattr(row, name) for name in columns(row.split)]
    for value in values:
        if type(value) not in (int, float):
            raise TypeError(f"a value of epoch {number} is no number")
        float(value)  # a whole number may be too large
    outside = [error for error in (row.train_error, row.error) if error < 0 or error > 100]
    if type(row.epoch) is not int or row.epoch != number or outside:
        raise ValueError(f"epoch {row.epoch} with {outside or 'its errors'} is not epoch {number}")
    if not (0 <= row.learning_rate < math.inf and row.seconds >= 0):
        raise ValueError(f"epoch {number} has a learning rate of {row.learning_rate}, and took {row.seconds} s")
    return row


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
    """TensorBoard's event files, one step an epoch: `with Events(directory) as events: events.add(row)`.

    Each writer has a file of its own. Its first epoch hides that epoch and all later ones in earlier files, so that a
    resumed run shows each epoch once. Raises UnusableError without tensorboardX, or where the directory cannot be
    written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.check()
        # Not SummaryWriter: it writes from a thread, which waits for ever once the disk is full. Its `purge_step` makes
        # the same mark as `add`, but takes the step here, and a resumed run may yet have to show its last epoch again.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._session, self._summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self._directory = Path(directory)
        self._is_first = True
        with self._writing():
            self._directory.mkdir(parents=True, exist_ok=True)
            # The library names a file by the second, and would write over that of a run which has just ended.
            self._writer = EventsWriter(str(self._directory / "events"), f".{time.time_ns()}")

    @staticmethod
    def check() -> None:
        """Raises UnusableError without tensorboardX."""
        try:
            import tensorboardX.event_file_writer  # noqa: F401
        except ImportError as error:
            raise UnusableError(
                f"event files are written with tensorboardX, which cannot be imported ({error}): "
                "pip install '.[tensorboard]' in the checkout"
            ) from None

    def add(self, row: Epoch) -> None:
        """Write an epoch; it is on the disk when this returns. The format has single precision."""
        if self._is_first:
            self._write(row, session_log=self._session(status=self._session.START))  # hides earlier events from here on
            self._is_first = False
        scalars = {
            "train/loss": row.train_loss,
            "train/error": row.train_error,
            f"{row.split}/loss": row.loss,
            f"{row.split}/error": row.error,
            "learning_rate": row.learning_rate,
            "images_per_second": row.images_per_second,
        }
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(row, summary=self._summary(value=values))
        with self._writing():
            self._writer.flush()

    def close(self) -> None:
        """Close the file; once more does nothing."""
        writer, self._writer = self._writer, None
        if writer:
            with self._writing():
                writer.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, row: Epoch, **content: object) -> None:
        with self._writing():
            self._writer.write_event(self._event(wall_time=time.time(), step=row.epoch, **content))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnusableError(f"cannot write to {self._directory}: {error.strerror}") from None
