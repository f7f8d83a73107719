"""The training loop of every engine: epochs, checkpoints, signals, and what is shown of them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import processes
from ..checkpoints.runs import BEST
from ..data import Dataset, Splits, batches
from ..errors import BadFileError, InvalidValueError, UserError, of_engine
from ..metrics import wilson
from ..plots import draw
from ..text import progress_bar
from .checkpoint import Run, State
from .config import Config
from .history import Epoch, Events, History, check_types, csv_text, write_csv
from .trainer import Score, Trainer, make_targets, mix, mixup_lam

SAVE_SECONDS = 600.0  # what a crash in the middle of a long epoch may cost


class Diverged(UserError):
    """The loss, or a parameter, is no longer finite."""

    exit_code = 1


@dataclass
class Progress:
    """How far a run has come: finished `epochs`, and `batches` done of the current epoch, with the sums over these."""

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
        """The fields for JSON."""
        return {**vars(self), "history": self.history.to_dicts()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], config: Config, images: int) -> Progress:
        """What `to_dict` gave, in a run with so many training images. Raises BadFileError for anything else."""
        epochs, batches = config.epochs, updates_per_epoch(config, images) * config.accumulation_steps
        try:
            progress = cls(**{**values, "history": History.from_dicts(values["history"], epochs)})
            check_types(progress)
            possible = (
                len(progress.history.rows) == progress.epochs <= epochs
                and 0 <= progress.batches < batches
                and progress.batches % config.accumulation_steps == 0
                and 0 <= progress.wrong <= progress.images == progress.batches * config.batch_size
                and math.isfinite(progress.loss)
                and 0 <= progress.seconds < math.inf
            )
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise BadFileError(f"the state is damaged, or of another version: {error}") from None
        if not possible:
            raise BadFileError("the state is damaged, or of another version: its numbers cannot be")
        return progress


class Loop:
    """Trains a network from where its run stands to the last epoch.

    The best epoch is that of the lowest error on the validation images of `splits`, or on the test images where there
    are none. `schedule` gives the learning rate of each update, from 1 on. The run is in `directory`; `output` is what
    writes to it, and `events` those for TensorBoard, if they are wanted; both are None in all workers but the first.
    A progress bar is `shown` as `text.progress_bar` has it; where that is False, nothing is printed.
    """

    def __init__(
        self,
        trainer: Trainer,
        splits: Splits,
        schedule: Callable[[int], float],
        progress: Progress,
        directory: Path,
        output: Run | None,
        events: Events | None = None,
        shown: bool | None = None,
    ):
        self.trainer, self.config = trainer, trainer.config
        self.train, self.val, self.test = splits
        self.weights = class_weights(self.train) if self.config.class_weights == "balanced" else None
        self.schedule, self.progress, self.directory = schedule, progress, directory
        self.output, self.events, self.shown = output, events, shown
        self.batches = updates_per_epoch(self.config, len(self.train)) * self.config.accumulation_steps
        self.tested: Score | None = None  # of the best epoch, where validation images have chosen it
        self.stopped = 0  # the number of the signal that came
        self.saved = time.monotonic()

    def run(self) -> int:
        """Train to the last epoch, or until a signal comes. Returns the exit code: 0, or 128 plus the signal's number.

        Raises Diverged, and EngineError for what an engine throws.
        """
        try:
            with processes.handle_signals(self._stop):
                self._show_again()
                code = self._train()
                if self.events:
                    self.events.close()
                self.trainer.close()  # no worker goes on before the first one has written all
        except Exception as error:
            failure = of_engine(error)
            if failure is None:
                raise
            raise failure from error
        return code

    def _train(self) -> int:
        """Train to the last epoch, or until a signal comes, and save. Returns the exit code."""
        while self.progress.epochs < self.config.epochs and not self.stopped_early:
            if not self._train_epoch():
                self._save_inside()
                return 128 + self.stopped
            self._finish_epoch()
        if self.val is not None and self.test is not None:
            self._measure_test_error(self.test)
        return 0

    @property
    def stopped_early(self) -> bool:
        """Whether `patience` epochs have passed without a lower validation error."""
        return 0 < self.config.patience <= self.progress.history.epochs_since_best

    def _measure_test_error(self, test: Dataset) -> None:
        """Measure it once, of the best epoch, which the validation images have chosen."""
        self.trainer.all_reduce(np.zeros(1))  # until the first worker has written the file
        self.trainer.load_weights(self.directory / BEST)
        self.tested = self.trainer.evaluate(test)
        if self.output:
            self.output.record(BEST, test_error=100 * self.tested.wrong / self.tested.images)

    def summary(self) -> str:
        """What the run has reached, in words."""
        history, tested = self.progress.history, self.tested
        lines = [history.summary()]
        if self.stopped_early:
            lines.insert(0, f"Stopped early: {self.config.patience} epochs without a lower validation error.")
        if history.best and tested:
            error, (low, high) = 100 * tested.wrong / tested.images, wilson(tested.wrong, tested.images)
            lines.append(
                f"Test error of epoch {history.best.epoch}, measured once: {error:.2f} % "
                f"({tested.wrong} of {tested.images:,} images; 95 % interval {low:.2f} to {high:.2f})."
            )
        elif self.test is None:
            lines.append("There are no test images: the best validation error leans optimistic.")
        return "\n".join(lines)

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch; False if a signal came before."""
        progress, begun = self.progress, time.monotonic() - self.progress.seconds
        read = None
        with self._bar() as bar:
            for images, targets in self._mixed_batches():
                # The score of the last pass is asked for once this pass has started: the devices never wait.
                read, due = self.trainer.train_step(images, targets, self._learning_rate()), read
                if due is not None:
                    self._add(due())
                progress.batches += 1
                progress.seconds = time.monotonic() - begun
                self._show_pace(bar)
                if progress.batches % self.config.accumulation_steps == 0 and progress.batches < self.batches:
                    stop, save = self._requests()
                    if stop or save:
                        self._add(read())
                        read = None
                        self.trainer.sync_batch_norm()
                    if stop:
                        return False
                    if save:
                        self._save_inside()
        if read:
            self._add(read())
        return True

    def _mixed_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of the epoch that are still to do: images, and target distributions; this worker's share."""
        config, progress = self.config, self.progress
        rank, workers = self.trainer.rank, self.trainer.world_size
        mixed = config.mixup > 0 and progress.epochs < config.epochs - config.mixup_off_epochs
        if not mixed:
            yield from self._share(rank)
            return
        # The batch in reverse order has the images of the first worker where those of the last one stand.
        partners = self._share(workers - 1 - rank) if workers > 1 else None
        for number, (images, targets) in enumerate(self._share(rank), progress.batches):
            lam = mixup_lam(config.mixup, config.seed, progress.epochs, number)
            other_images, other_targets = next(partners) if partners else (None, None)
            yield mix(images, lam, other_images), mix(targets, lam, other_targets)

    def _share(self, worker: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A worker's share of the batches that are still to do: images, and target distributions before mixup."""
        config, progress, workers = self.config, self.progress, self.trainer.world_size
        source = batches(
            self.train,
            config.batch_size // workers,
            train=True,
            seed=config.seed,
            epoch=progress.epochs,
            part=worker,
            parts=workers,
            start=progress.batches,
        )
        left = self.batches - progress.batches  # those after them are too few for an update
        for images, labels in islice(source, left):
            targets = make_targets(labels, self.train.task.outputs, config.label_smoothing)
            yield images, targets if self.weights is None else targets * self.weights[labels, None]

    def _learning_rate(self) -> float:
        """The learning rate of the update that the current pass belongs to."""
        done = self.progress.epochs * self.batches + self.progress.batches
        return self.schedule(done // self.config.accumulation_steps + 1)

    def _add(self, score: Score) -> None:
        if not math.isfinite(score.loss):
            kept = "" if self.output and self.output.new else "; the last checkpoint is kept"
            raise Diverged(
                f"the loss became {score.loss} in epoch {self.progress.epochs + 1} at a learning rate of "
                f"{self._learning_rate():.4g}: a smaller one may help{kept}"
            )
        self.progress.add(score)
        if self.output:
            self.output.new = False

    def _finish_epoch(self) -> None:
        progress = self.progress
        self.trainer.sync_batch_norm()
        chooser = self.test if self.val is None else self.val
        assert chooser is not None  # as `config.configure` sees to
        split = "test" if self.val is None else "val"
        score = self.trainer.evaluate(chooser)
        done = Epoch(
            epoch=progress.epochs + 1,
            learning_rate=self.schedule((progress.epochs + 1) * self.batches // self.config.accumulation_steps),
            train_loss=progress.loss / progress.images,
            train_error=100 * progress.wrong / progress.images,
            images_per_second=progress.images / progress.seconds,
            seconds=progress.seconds,
            **{
                "test_loss": None,
                "test_error": None,
                f"{split}_loss": score.loss / score.images,
                f"{split}_error": 100 * score.wrong / score.images,
            },
        )
        progress.history.rows.append(done)
        self.progress = Progress(progress.epochs + 1, history=progress.history)
        if self.output is None:
            return
        names = ["last.params"]
        if progress.history.best is done:
            names.append(BEST)
        if self.config.keep_every and done.epoch % self.config.keep_every == 0:
            names.append(f"epoch-{done.epoch:04d}.params")
        errors = {name: {"epoch": done.epoch, f"{done.split}_error": done.error} for name in names}
        self._save(self.output, self._good_state(), errors)  # before anything that is for show
        self._show_epoch(self.output, done)
        if self.shown is not False:
            print(progress.history.line(done), flush=True)

    def _show_epoch(self, output: Run, done: Epoch) -> None:
        """Write the curves, the events and last the table: an epoch in the table has been shown in full."""
        history, directory = self.progress.history, output.directory
        try:
            draw(history, directory / "curves.png", f"{self.config.model} on {self.train.task.title}")
        except Exception as error:  # a plotting library's error is no reason to stop training
            why = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"no curves: {why[:200]}", stacklevel=2)
        if self.events:
            self.events.add(done)
        write_csv(history, directory / "history.csv")

    def _show_again(self) -> None:
        """Show the last epoch if the run was killed after saving it and before showing it."""
        history = self.progress.history
        if self.output is None or not history.last:
            return
        table = self.output.directory / "history.csv"
        if not table.is_file() or table.read_text(errors="replace") != csv_text(history):
            self._show_epoch(self.output, history.last)

    def _good_state(self) -> State:
        """The current state; raises Diverged where a parameter is not finite."""
        parameters, momentum = self.trainer.state()
        if not all(np.isfinite(array).all() for array in (*parameters.values(), *momentum.values())):
            epoch = self.progress.epochs + (self.progress.batches > 0)
            raise Diverged(f"a parameter is no longer finite in epoch {epoch}; the last checkpoint is kept")
        return State(parameters, momentum, self.progress.to_dict())

    def _save_inside(self) -> None:
        """Save in the middle of an epoch."""
        if self.output is not None:
            self._save(self.output, self._good_state(), {})
        self.saved = time.monotonic()

    def _save(self, output: Run, state: State, also: Mapping[str, Mapping[str, object]]) -> None:
        output.save(state, also)
        self.saved = time.monotonic()

    def _requests(self) -> tuple[bool, bool]:
        """Whether any worker got a signal, and whether it is time to save. The same answer in all workers."""
        due = self.output is not None and time.monotonic() - self.saved > SAVE_SECONDS
        own = [*(self.stopped == number for number in processes.STOP_SIGNALS), due]
        *asked, due = self.trainer.all_reduce(np.array(own, np.float32)) > 0
        by_number = zip(processes.STOP_SIGNALS, asked)
        self.stopped = self.stopped or next((number for number, by_one in by_number if by_one), 0)
        return any(asked), bool(due)

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
            left = (self.config.epochs - progress.epochs) * self.batches - progress.batches
            seconds = left * progress.seconds / progress.batches
            bar.set_postfix_str(
                f"loss {progress.loss / progress.images:.3f}, error {100 * progress.wrong / progress.images:.1f} %, "
                f"{tqdm.format_interval(seconds)} to the end",
                refresh=False,
            )


def class_weights(dataset: Dataset) -> np.ndarray:
    """Weights of the classes (outputs,) by which each counts the same in the loss, and their mean over the images is 1:
    images / (classes x images of the class), scikit-learn's ``balanced``.
    """
    numbers = np.bincount(dataset.labels, minlength=dataset.task.outputs)
    present = np.maximum(numbers, 1)
    return (len(dataset) / (np.count_nonzero(numbers) * present)).astype(np.float32)


def updates_per_epoch(config: Config, images: int) -> int:
    """The updates of an epoch; images that are too few for one more are left out of it.

    Raises InvalidValueError where there are too few for a single update.
    """
    updates = images // (config.batch_size * config.accumulation_steps)
    if not updates:
        raise InvalidValueError(
            f"batch_size {config.batch_size} times accumulation_steps {config.accumulation_steps} is more than the "
            f"{images} training images; nearest: batch_size {max(1, images // config.accumulation_steps)}"
        )
    return updates
