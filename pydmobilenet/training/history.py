"""The history of a run, one row an epoch: lines of text, a summary, CSV, curves and TensorBoard's events.

Errors are in %, losses are means over the images.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import UnusableError
from ..text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

OPTIMISM = (
    "The best epoch is chosen by the test set, so its error leans optimistic; the published figures are of that kind."
)
LONGEST = 100  # characters of a title, which the picture has room for
TRAIN, TEST, RATE = "#4c78a8", "#d1495b", "#b0b0b0"  # told apart by the colour-blind too
STAR: dict[str, Any] = {"marker": "*", "color": TEST, "mec": "black", "ms": 12, "ls": "", "zorder": 3}  # the best epoch


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


def draw(history: History, path: str | os.PathLike[str], title: str) -> None:
    """Draw the curves as a PNG of 1440 x 540 pixels: errors on the left, losses and the learning rate on the right.

    Leaves out values that are not finite, and learning rates of 0, as their axis is logarithmic. Characters of the
    title that cannot be printed are escaped. Raises UnusableError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only the curves need it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.04, 0.11, 0.955, 0.87, wspace=0.12)  # a layout engine doubles the time
    title = printable(title)
    figure.suptitle(title if len(title) <= LONGEST else f"{title[:LONGEST]}…", parse_math=False)
    errors, losses = figure.subplots(1, 2)
    rates = losses.twinx()
    _draw_errors(errors, history)
    _draw_losses(losses, rates, history)
    epochs = history.last.epoch if history.last else 1
    margin = max(0.5, epochs / 50)
    for axes in (errors, losses, rates):
        axes.set_xlim(1 - margin, epochs + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines["top"].set_visible(False)
        axes.spines[:].set_color("lightgrey")
    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # that the font lacks: it is drawn as a box
        figure.savefig(image, format="png")
    files.write(Path(path), image.getvalue())


def _draw_errors(axes: Axes, history: History) -> None:
    lines = [
        _plot(axes, history, "train_error", TRAIN, "train"),
        _plot(axes, history, f"{history.split}_error", TEST, history.split),
    ]
    best = history.best
    if best and math.isfinite(best.error):
        label = f"best {history.split}: {best.error:.2f} % (epoch {best.epoch})"
        lines += axes.plot(best.epoch, best.error, label=label, **STAR)
    axes.set_ylim(0, max(1, 1.08 * max(_finite(lines), default=100)))
    _label(axes, "error, %", lines)


def _draw_losses(axes: Axes, rates: Axes, history: History) -> None:
    lines = [
        _plot(axes, history, "train_loss", TRAIN, "train"),
        _plot(axes, history, f"{history.split}_loss", TEST, history.split),
    ]
    values = _finite(lines)
    if values and 0 < 10 * min(values) <= max(values):
        axes.set_yscale("log")
    best = history.best
    if best and math.isfinite(best.error) and math.isfinite(best.loss):
        axes.plot(best.epoch, best.loss, **STAR)
    rate = _plot(rates, history, "learning_rate", RATE, "learning rate (right)", positive=True)
    values = _finite([rate])
    if values:
        lines.append(rate)
        highest, lowest = max(values), max(min(values), max(values) / 1e4)  # a cosine's last rate is next to nothing
        rates.set_yscale("log")
        rates.set_ylim(min(lowest, highest / 10) / 1.5, highest * 1.5)
    else:
        rates.set_yticks([])
    rates.tick_params(which="both", colors="grey")
    axes.set_zorder(rates.get_zorder() + 1)  # the losses in front of the faint rate
    axes.patch.set_visible(False)
    _label(axes, "loss", lines)


def _plot(axes: Axes, history: History, column: str, color: str, label: str, positive: bool = False) -> Line2D:
    values = [getattr(row, column) for row in history.rows]
    values = [value if math.isfinite(value) and (value > 0 or not positive) else math.nan for value in values]
    marker = "o" if len(values) <= 30 else ""  # a single epoch has no line, hundreds have no room for dots
    (line,) = axes.plot([row.epoch for row in history.rows], values, color=color, label=label, marker=marker, ms=4)
    return line


def _finite(lines: Iterable[Line2D]) -> list[float]:
    return [value for line in lines for value in np.asarray(line.get_ydata()).tolist() if math.isfinite(value)]


def _label(axes: Axes, title: str, lines: list[Line2D]) -> None:
    """Set the title and the legend of a panel, above it, where they hide no curve."""
    axes.set_title(title, loc="left")
    above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1, "ncol": len(lines)}
    axes.legend(handles=lines, frameon=False, handlelength=1.5, columnspacing=1.5, **above)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)


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
