"""The training loop of every engine: epochs, checkpoints, signals, progress."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import files, processes
from ..checkpoints.runs import BEST, EMA
from ..data import Dataset, Splits
from ..errors import BadFileError, InvalidValueError, StopTraining, UserError, of_engine
from ..metrics import wilson
from ..plots import draw
from ..text import progress_bar
from .checkpoint import Run, State
from .config import Config
from .history import Epoch, Events, History
from .trainer import Score, Trainer, learning_rates

OnEpoch = Callable[[Path, Epoch], None]
SAVE_SECONDS = 600.0  # between saves within an epoch: the most that a crash may cost
DRAW_SECONDS = 30.0  # between drawings of the curves: one takes half a second, on a GPU a tenth of an epoch


class Diverged(UserError):
    """The loss or a parameter is no longer finite."""

    exit_code = 1


@dataclass
class Progress:
    """Finished `epochs`, the `batches` done of the current epoch, and the sums over these."""

    epochs: int = 0
    batches: int = 0
    loss: float = 0.0
    wrong: int = 0
    images: int = 0
    seconds: float = 0.0
    history: History = field(default_factory=History)

    def add(self, score: Score) -> None:
        self.loss += score.loss
        self.wrong += score.wrong
        self.images += score.images

    def to_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return {**vars(self), "history": self.history.to_dicts()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], config: Config, images: int) -> Progress:
        """Rebuild the progress of a run with so many training images from `to_dict`. Raises BadFileError."""
        epochs, batches = config.epochs, updates_per_epoch(config, images) * config.accumulation_steps
        try:
            progress = cls(**{**values, "history": History.from_dicts(values["history"], epochs)})
            fits = (
                len(progress.history.rows) == progress.epochs <= epochs
                and 0 <= progress.batches < batches
                and 0 <= progress.wrong <= progress.images == progress.batches * config.batch_size
                and math.isfinite(progress.loss)
                and progress.seconds >= 0
            )
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise BadFileError(f"the state is damaged, or of another version: {str(error)[:200]}") from None
        if not fits:
            raise BadFileError("the state is damaged, or of another version: its progress does not fit the run")
        return progress


class Loop:
    """Trains a network from its progress to the last epoch.

    The validation images of `splits` choose the best epoch, or else the test images. `output` writes the run in
    `directory`, and `events` is for TensorBoard; both are None in all workers but the first. `shown` is as in
    `text.progress_bar`; if it is False, nothing is printed. `on_epoch` is called by the first worker with the directory
    and the row of each epoch, once it is saved; StopTraining, if raised there, ends the run in all workers.
    """

    def __init__(
        self,
        trainer: Trainer,
        splits: Splits,
        progress: Progress,
        directory: Path,
        output: Run | None,
        events: Events | None = None,
        shown: bool | None = None,
        on_epoch: OnEpoch | None = None,
    ):
        self.trainer, self.config = trainer, trainer.config
        self.train, self.val, self.test = splits
        self.progress, self.directory = progress, directory
        self.output, self.events, self.shown, self.on_epoch = output, events, shown, on_epoch
        updates = updates_per_epoch(self.config, len(self.train))
        self.schedule = learning_rates(self.config, updates)
        self.batches = updates * self.config.accumulation_steps
        self.loader = trainer.loader(self.train, self.batches)
        self.test_scores: dict[str, Score] = {}  # of each file that validation images have chosen
        self.stopped = 0  # the number of the signal received
        self.ended_by_callback = False
        self.failure: Exception | None = None  # of the callback
        self.saved = time.monotonic()
        self.drawn_epochs, self.drawn = progress.epochs, -math.inf  # of the curves: epochs, and when
        self.finishing = 0.0  # seconds that the end of an epoch took: evaluation, files

    def run(self) -> int:
        """Train to the last epoch or a signal. Returns the exit code: 0, or 128 plus the signal's number.

        Raises Diverged, and EngineError for an engine's own errors.
        """
        try:
            with processes.handle_signals(self._stop):
                self._show_again()
                code = self._train()
                if self.output and self.drawn_epochs < self.progress.epochs:
                    self._draw(self.output)
                if self.events:
                    self.events.close()
                self.trainer.close()  # no worker goes on before the first one has written everything
        except Exception as error:
            failure = None if error is self.failure else of_engine(error)
            if failure is None:
                raise
            if self.stopped:  # the signal went to a compiler too that the engine had called
                warnings.warn(f"not saved since the last time: {failure}", stacklevel=2)
                return 128 + self.stopped
            raise failure from error
        return code

    def _train(self) -> int:
        while not self.finished:
            if not self._train_epoch():
                self._save()
                return 128 + self.stopped
            begun = time.monotonic()
            self._finish_epoch()
            self._call_back()
            self.finishing = time.monotonic() - begun
            if not self.finished and self._requests()[0]:  # an epoch may be a single update, without a look within
                return 128 + self.stopped
        if self.val is not None and self.test is not None:
            self._measure_test_error(self.test)
        return 0

    def _call_back(self) -> None:
        """Call `on_epoch` in the first worker. All workers stop together, or fail together."""
        stop = False
        try:
            if self.on_epoch and self.output and self.progress.history.last:
                self.on_epoch(self.directory, self.progress.history.last)
        except StopTraining:
            stop = True
        except Exception as error:
            self.failure = error
        flags = self.trainer.all_reduce(np.array([stop, self.failure is not None], np.float32)) > 0
        self.ended_by_callback = bool(flags[0])
        if stop and self.output:
            self.output.record("last.params", ended_by_callback=True)
        if flags[1]:
            raise self.failure or UserError("on_epoch has failed in the first process")

    @property
    def finished(self) -> bool:
        """True after the last epoch, or earlier by `patience` or `on_epoch`."""
        return self.progress.epochs >= self.config.epochs or self.stopped_early or self.ended_by_callback

    @property
    def stopped_early(self) -> bool:
        """True after `patience` epochs without a lower validation error."""
        epochs, patience = self.progress.epochs, self.config.patience
        return epochs < self.config.epochs and 0 < patience <= self.progress.history.epochs_since_best

    def _measure_test_error(self, test: Dataset) -> None:
        """Measure the test error of the best epoch, once; before, that of the moving average."""
        self.trainer.all_reduce(np.zeros(1))  # until the first worker has written the files
        for file in (EMA, BEST) if self.config.ema else (BEST,):
            self.trainer.load_weights(self.directory / file)
            self.test_scores[file] = score = self.trainer.evaluate(test)
            if self.output:
                self.output.record(file, test_error=100 * score.wrong / score.images)

    def summary(self) -> str:
        """Describe the errors of the run."""
        history = self.progress.history
        lines = [history.summary()]
        if self.stopped_early:
            patience = "1 epoch" if self.config.patience == 1 else f"{self.config.patience} epochs"
            lines.insert(
                0,
                f"Stopped early, after {self.progress.epochs} of at most {self.config.epochs} epochs: {patience} "
                "without a lower validation error (--patience 0 trains all epochs).",
            )
        elif self.ended_by_callback:
            lines.insert(0, f"Stopped by on_epoch after {self.progress.epochs} of {self.config.epochs} epochs.")
        for file, row, what in ((BEST, history.best, ""), (EMA, history.best_average, "the moving average after ")):
            if row and (score := self.test_scores.get(file)):
                error, (low, high) = 100 * score.wrong / score.images, wilson(score.wrong, score.images)
                lines.append(
                    f"Test error of {what}epoch {row.epoch}, measured once: {error:.2f} % "
                    f"({score.wrong} of {score.images:,} images; 95 % interval {low:.2f} to {high:.2f})."
                )
        if self.test is None:
            lines.append("There are no test images: the best validation error leans optimistic.")
        return "\n".join(lines)

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch. Returns False if a signal came before."""
        progress, begun = self.progress, time.monotonic() - self.progress.seconds
        score: Callable[[], Score] | None = None
        with self._bar() as bar:
            for images, targets in self.loader.epoch(progress.epochs, progress.batches):
                previous, score = score, self.trainer.train_step(images, targets, self._learning_rate())
                if previous is not None:  # read after launching this step, so the device stays busy
                    self._add(previous())
                progress.batches += 1
                progress.seconds = time.monotonic() - begun
                self._show_pace(bar)
                if progress.batches % self.config.accumulation_steps == 0 and progress.batches < self.batches:
                    stop, save = self._requests()
                    if stop or save:
                        self._add(score())
                        score = None
                        self.trainer.sync_batch_norm()
                    if stop:
                        return False
                    if save:
                        self._save()
        if score:
            self._add(score())
        return True

    def _learning_rate(self) -> float:
        """Return the learning rate of the current update."""
        done = self.progress.epochs * self.batches + self.progress.batches
        return self.schedule(done // self.config.accumulation_steps + 1)

    def _add(self, score: Score) -> None:
        if not math.isfinite(score.loss):
            kept = "" if self.output and self.output.new else "; the last checkpoint is kept"
            raise Diverged(
                f"the loss became {score.loss} in epoch {self.progress.epochs + 1} at a learning rate of "
                f"{self._learning_rate():.4g}: try a smaller one{kept}"
            )
        self.progress.add(score)
        if self.output:
            self.output.new = False

    def _finish_epoch(self) -> None:
        progress = self.progress
        self.trainer.sync_batch_norm()
        split, dataset = ("test", self.test) if self.val is None else ("val", self.val)
        assert dataset is not None  # `recipe.configure` sees to it
        score = self.trainer.evaluate(dataset)
        scores = {f"{split}_loss": score.loss / score.images, f"{split}_error": 100 * score.wrong / score.images}
        if self.config.ema:
            score = self.trainer.evaluate(dataset, averaged=True)
            scores.update(ema_loss=score.loss / score.images, ema_error=100 * score.wrong / score.images)
        done = Epoch(
            epoch=progress.epochs + 1,
            learning_rate=self.schedule((progress.epochs + 1) * self.batches // self.config.accumulation_steps),
            train_loss=progress.loss / progress.images,
            train_error=100 * progress.wrong / progress.images,
            images_per_second=progress.images / progress.seconds,
            seconds=progress.seconds,
            **{"test_loss": None, "test_error": None, **scores},
        )
        history = progress.history
        history.rows.append(done)
        self.progress = Progress(progress.epochs + 1, history=history)
        if self.output is None:
            return
        names = ["last.params"]
        if history.best is done:
            names.append(BEST)
        if self.config.keep_every and done.epoch % self.config.keep_every == 0:
            names.append(f"epoch-{done.epoch:04d}.params")
        entries: dict[str, dict[str, object]]
        entries = {name: {"epoch": done.epoch, f"{split}_error": done.error} for name in names}
        if history.best_average is done:
            entries[EMA] = {"epoch": done.epoch, f"{split}_error": done.ema_error}
        self._save(entries)
        self._show_epoch(self.output, done)
        if self.shown is not False:
            print(history.line(done), flush=True)

    def _show_epoch(self, output: Run, done: Epoch) -> None:
        """Write the curves, the events and last the table: a row in the table means that all is written."""
        if self.finished or time.monotonic() - self.drawn > DRAW_SECONDS:
            self._draw(output)
        if self.events:
            self.events.add(done)
        files.write(output.directory / "history.csv", self.progress.history.to_csv())

    def _draw(self, output: Run) -> None:
        try:
            title = f"{self.config.model} on {self.train.task.title}"
            draw(self.progress.history, output.directory / "curves.png", title)
        except Exception as error:  # a plotting library's error is no reason to stop training
            why = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"no curves: {why[:200]}", stacklevel=2)
        self.drawn_epochs, self.drawn = self.progress.epochs, time.monotonic()

    def _show_again(self) -> None:
        """Show the last epoch if the run was killed after saving it and before showing it."""
        history = self.progress.history
        if self.output is None or not history.last:
            return
        table = self.output.directory / "history.csv"
        if not table.is_file() or table.read_text(errors="replace") != history.to_csv():
            self._show_epoch(self.output, history.last)

    def _save(self, entries: Mapping[str, Mapping[str, object]] | None = None) -> None:
        """Save the state, and checkpoints with their `entries`. Raises Diverged if a parameter is not finite."""
        self.saved = time.monotonic()
        if self.output is None:
            return
        parameters, momentum = self.trainer.state()
        if not all(np.isfinite(array).all() for array in (*parameters.values(), *momentum.values())):
            epoch = self.progress.epochs + (self.progress.batches > 0)
            raise Diverged(f"a parameter is no longer finite in epoch {epoch}; the last checkpoint is kept")
        averaged = self.trainer.averaged() if entries and EMA in entries else None
        self.output.save(State(parameters, momentum, self.progress.to_dict()), entries or {}, averaged)

    def _requests(self) -> tuple[bool, bool]:
        """Return whether any worker got a signal, and whether to save. All workers get the same answer."""
        due = self.output is not None and time.monotonic() - self.saved > SAVE_SECONDS
        flags = [*(self.stopped == number for number in processes.STOP_SIGNALS), due]
        *signals, due = self.trainer.all_reduce(np.array(flags, np.float32)) > 0
        received = [number for number, flag in zip(processes.STOP_SIGNALS, signals) if flag]
        if received and not self.stopped:
            self.stopped = received[0]
        return bool(received), bool(due)

    def _stop(self, number: int) -> None:
        self.stopped = number

    def _bar(self) -> tqdm:
        batch, epoch = self.config.batch_size, self.progress.epochs + 1
        return progress_bar(
            total=self.batches * batch,
            description=f"epoch {epoch}/{self.config.epochs}",
            unit="images",
            shown=self.shown if self.output else False,
            initial=self.progress.batches * batch,
        )

    def _show_pace(self, bar: tqdm) -> None:
        progress = self.progress
        bar.update(self.config.batch_size)
        if progress.images and not bar.disable:
            epochs = self.config.epochs - progress.epochs  # with this one
            left = epochs * self.batches - progress.batches
            seconds = left * progress.seconds / progress.batches + epochs * self.finishing
            most = "at most " if 0 < self.config.patience < self.config.epochs else ""
            bar.set_postfix_str(
                f"loss {progress.loss / progress.images:.3f}, error {100 * progress.wrong / progress.images:.1f} %, "
                f"{most}{tqdm.format_interval(seconds)} left",
                refresh=False,
            )


def batch_of_update(config: Config) -> int:
    """Count the images of an update."""
    return config.batch_size * config.accumulation_steps


def updates_per_epoch(config: Config, images: int) -> int:
    """Count the updates of an epoch; images too few for one more are left out. Raises InvalidValueError for none."""
    updates = images // batch_of_update(config)
    if not updates:
        raise InvalidValueError(
            f"batch_size {config.batch_size} times accumulation_steps {config.accumulation_steps} is more than the "
            f"{images} training images; nearest: batch_size {max(1, images // config.accumulation_steps)}"
        )
    return updates
