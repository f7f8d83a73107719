"""Validation: wrong answers, top-1 and top-5 error, interval, and the verdict against the published record.

The arithmetic speaks NumPy; what computes the logits is handed in.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
from tqdm import tqdm

from . import progress, provenance, zoo
from .catalog import Record, TrainedRecord
from .checkpoints import runs
from .data import Dataset, Fractions, batches, folder, get_dataset, get_splits
from .data.datasets import located
from .data.splits import kinds, put_aside
from .engine import Arrays, Engine, Predict
from .errors import BadFileError, InvalidValueError, UserError
from .metrics import count_wrong, softmax, wilson
from .network import Complexity, Network
from .processes import WorkerPool
from .text import printable

logger = logging.getLogger(__name__)

TOLERANCE = 0.05  # points: how far the error on the whole official test set may be from the expected one
NO_CLASS = np.iinfo(np.uint16).max  # stands for the class of an answer that is not a number
DIED = "a process died on it, and a second one: perhaps for want of memory, of which OMP_NUM_THREADS=1 takes less"
WORTH_PROCESSES = 10_000  # answers, about ten seconds of work: what it takes to start a process is gained back


class Counts(NamedTuple):
    """How many images were answered, how many labels were not at the first place, and not among the first five."""

    images: int
    wrong: int
    wrong_top5: int


class Answers(NamedTuple):
    """What a network says of each image: the class (N,) as uint16, and its softmax, from 0 to 1, (N,) as float32.

    Where the logits are not all finite, the class is `NO_CLASS` and the confidence 0.
    """

    classes: np.ndarray
    confidences: np.ndarray

    @classmethod
    def empty(cls, images: int) -> Answers:
        """Room for so many answers."""
        return cls(np.full(images, NO_CLASS, np.uint16), np.zeros(images, np.float32))


@dataclass(frozen=True)
class Result:
    """One row of the table: what was counted and measured for a record, or the `reason` why it was not.

    `complete` says that the whole official test set was answered: only then is the error judged. `answers` are kept
    where they were asked for.
    """

    record: Record
    complexity: Complexity | None = None
    counts: Counts | None = None
    complete: bool = False
    reason: str = ""
    answers: Answers | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        found = (
            f"{self.error:.2f} % ({self.counts.wrong} of {self.counts.images:,} wrong)" if self.counts else self.reason
        )
        return f"{self.record.model} on {self.record.dataset}: {found}: {self.verdict}"

    @property
    def _counted(self) -> Counts:
        """The counts of a row that was evaluated; no other has an error."""
        if self.counts is None:
            raise ValueError(f"{self.record.model} on {self.record.dataset} was not evaluated: {self.reason}")
        return self.counts

    @property
    def error(self) -> float:
        """Top-1 error in %."""
        return 100 * self._counted.wrong / self._counted.images

    @property
    def top5_error(self) -> float:
        """Top-5 error in %."""
        return 100 * self._counted.wrong_top5 / self._counted.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the top-1 error in %."""
        return wilson(self._counted.wrong, self._counted.images)

    @property
    def counts_right(self) -> bool:
        """Whether the network has the exact counts of the authors' graph, and the published parameters."""
        record, found = self.record, self.complexity
        if not record.published:
            return True
        if found is None or record.params_m is None or record.exact not in (None, found):
            return False
        return abs(found.parameters / 1e6 - record.params_m) <= record.params_tolerance_m

    @property
    def differs(self) -> bool:
        """Whether something that was judged is not as published, or as recorded."""
        if self.complexity and not self.counts_right:
            return True
        return self.complete and any(abs(d) > TOLERANCE + 1e-9 for d in self.differences)

    @property
    def differences(self) -> tuple[float, ...]:
        """Measured less published, or recorded, error, in points: top-1 and top-5, where they are known."""
        record = self.record
        top1 = () if record.top1_error is None else (self.error - record.top1_error,)
        return top1 if record.top5_error is None else (*top1, self.top5_error - record.top5_error)

    @property
    def verdict(self) -> str:
        if self.complexity and not self.counts_right:
            return "differs: counts"
        if self.counts is None:
            return "not evaluated"
        if self.record.top1_error is None:
            return "not judged"
        if self.complete:
            return "differs" if self.differs else "match"
        low, high = self.interval
        return f"not judged, {'in' if low <= self.record.top1_error <= high else 'off'} interval"


Found = Iterator[tuple[Union[Dataset, None], list[Result]]]
"""A data set at a time: its images, and its results."""


def most_likely(logits: np.ndarray) -> Answers:
    """The answers that logits (N, outputs) give; of equal ones the lower class wins."""
    finite = np.isfinite(logits).all(axis=1)
    logits = np.where(finite[:, None], logits, 0)
    classes = np.where(finite, logits.argmax(axis=1), NO_CLASS).astype(np.uint16)
    return Answers(classes, (finite * softmax(logits).max(axis=1)).astype(np.float32))


def evaluate(
    predict: Predict,
    dataset: Dataset,
    batch_size: int,
    limit: int | None = None,
    title: str = "",
    answers: Answers | None = None,
    shown: bool | None = None,
) -> Counts:
    """Answer the first `limit` images of a data set; with a `title`, a progress bar is `shown` (`progress.bar`).

    Room for `answers` to as many images, if given, is filled with them.
    """
    dataset = dataset.head(limit)
    answered = wrong = wrong_top5 = 0
    with progress.bar(len(dataset), title, "images", shown if title else False) as bar:
        for images, labels in batches(dataset, batch_size, train=False, threads=1):
            logits = predict(images)
            first, five = count_wrong(logits, labels)
            wrong, wrong_top5 = wrong + first, wrong_top5 + five
            if answers is not None:
                here = slice(answered, answered + len(labels))
                answers.classes[here], answers.confidences[here] = most_likely(logits)
            answered += len(labels)
            bar.update(len(labels))
    return Counts(answered, wrong, wrong_top5)


def validate(
    records: Iterable[Record],
    engine: Engine,
    weights: Callable[[Record], Arrays] = zoo.record_weights,
    data_dir: Path | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    processes: int = 1,
    keep_answers: bool = False,
    skip_bad: bool = False,
    shown: bool | None = None,
) -> Found:
    """Check records against what `engine` answers, `batch_size` images a call (by default what is fastest for it);
    yields, a data set at a time, its images and its results. `weights` gives the parameters of a record's network.

    What is wrong with a data set or with one row (no checkpoint, a corrupt file) stands in the results as their reason,
    and the other rows go on. Each row is logged as soon as it is finished. Up to so many `processes` work on different
    rows at once, where that is worth their start; a row on which one dies is tried once more. With `keep_answers`, the
    results have the answer to each image; with `skip_bad`, images of a folder that cannot be read are passed over.
    Progress bars are `shown` as `progress.bar` has it.
    """
    options = weights, batch_size or engine.batch_size, limit, keep_answers
    with ExitStack() as stack:
        pool = None
        for _, group in groupby(records, key=_same_images):
            rows = list(group)
            dataset, reason = _dataset(rows, data_dir, skip_bad)
            several = min(processes, len(rows)) > 1
            if dataset and several and len(dataset.head(limit)) * len(rows) >= WORTH_PROCESSES:
                pool = pool or stack.enter_context(
                    WorkerPool(min(processes, len(rows)), _Worker.begin, engine, data_dir, skip_bad, *options)
                )
                yield dataset, _together(pool, rows, dataset.task.title, shown)
            else:
                yield (
                    dataset,
                    [_told(_row(record, engine, dataset, reason, *options, record.model, shown)) for record in rows],
                )


def _dataset(rows: Sequence[Record], data_dir: Path | None, skip_bad: bool) -> tuple[Dataset | None, str]:
    """The test images of a data set, or why they cannot be had; none where no row has a checkpoint anyway."""
    if not any(record.checkpoint for record in rows):
        return None, ""
    try:
        return images_of(rows[0], data_dir, skip_bad), ""
    except (UserError, OSError) as error:
        return None, str(error)


def images_of(record: Record, data_dir: Path | None = None, skip_bad: bool = False) -> Dataset:
    """The images that the error of a record is of: the test images or, of a run without them, those of validation.

    Of a run, they are `official` where they are the ones that it recorded. Others are those for the test, of class
    folders alone all, but for those that it has seen; of a file that records no images, all of them. Raises as
    `get_dataset` does.
    """
    has = kinds(located(record.dataset, data_dir))
    where = (data_dir, skip_bad, record.task)
    if not isinstance(record, TrainedRecord) or not record.images_sha256:
        if has != (folder.ALL,):
            return get_dataset(record.dataset, "test", *where)
        dataset = get_dataset(record.dataset, folder.ALL, *where)
        return replace(dataset, doubt="all images, also those trained on")
    split = record.split
    if split not in has and "test" in has and record.dataset.startswith("folder:"):
        split = "test"  # of other data
    if split in has:
        dataset = recorded = get_dataset(record.dataset, split, *where)
    else:
        runs.check_put_aside(record)
        fractions = Fractions(*record.fractions)
        if has == (folder.ALL,):
            dataset, recorded = get_dataset(record.dataset, folder.ALL, *where), None
            with suppress(InvalidValueError):  # of other images, a class may be too small
                recorded = getattr(put_aside(dataset, fractions), split)
        else:
            splits = get_splits(record.dataset, fractions, *where)
            dataset = recorded = getattr(splits, split) or splits.train
    if recorded and provenance.of_data(recorded)["sha256"] == record.images_sha256:
        return replace(recorded, official=True)
    return _without_seen(replace(dataset, official=False), record)


def _without_seen(dataset: Dataset, record: TrainedRecord) -> Dataset:
    """Leave out the images that a run has learned or chosen its epoch by, with a warning."""
    seen, run = set(record.seen.split()), record.file.parent
    if dataset.hashes and runs.UNKNOWN in seen:
        warnings.warn(f"{run} does not record its images: some of these may be among them", stacklevel=2)
    fresh = [position for position, each in enumerate(dataset.hashes) if each not in seen]
    known = len(dataset.hashes) - len(fresh)
    if not known:
        return dataset
    what = f"{known:,} of {len(dataset):,} images have trained {run} or chosen its epoch"
    if not fresh:
        raise BadFileError(f"{what}: none is left to measure its error on")
    warnings.warn(f"{what}: left out", stacklevel=2)
    return replace(dataset.take(np.array(fresh), dataset.split), doubt=f"{known:,} that it has seen are left out")


def _together(pool: WorkerPool, rows: Sequence[Record], title: str, shown: bool | None) -> list[Result]:
    """The results of rows that a pool works on, the costliest first, so that all end at about the same time."""
    costliest_first = sorted(rows, key=lambda record: -described(record).complexity().multiply_adds)
    results = {}
    with progress.bar(len(rows), title, "networks", shown) as bar:
        for record, future in pool.run(_Worker.answer, costliest_first):
            try:
                result = future.result()
            except BrokenProcessPool:
                result = Result(record, reason=DIED)
            results[record] = _told(result)
            bar.update()
    return [results[record] for record in rows]


def described(record: Record) -> Network:
    """The network of a record."""
    return zoo.describe(record.model, record.dataset, record.outputs)


def _told(result: Result) -> Result:
    """The result, which a log has had as well."""
    counts = result.counts
    found = f"{counts.wrong:,} of {counts.images:,} wrong" if counts else result.reason
    with tqdm.external_write_mode():  # a progress bar makes room for the line
        logger.info("%s", printable(f"{result.record.model} on {result.record.dataset}: {found}"))
    return result


def _same_images(record: Record) -> tuple[object, ...]:
    """What records have in common that are evaluated on the same images."""
    own: tuple[object, ...] = ()
    if isinstance(record, TrainedRecord):
        own = (record.split, record.images_sha256, record.fractions, record.seen)
    return (record.dataset, record.published, record.task, *own)


class _Worker:
    """What a process of a pool works with."""

    engine: Engine
    where: tuple[Path | None, bool]
    options: tuple[Any, ...]  # of `_row`
    datasets: dict[tuple[object, ...], tuple[Dataset | None, str]]

    @classmethod
    def begin(cls, engine: Engine, data_dir: Path | None, skip_bad: bool, *options: Any) -> None:
        cls.engine, cls.where, cls.options, cls.datasets = engine, (data_dir, skip_bad), options, {}
        tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that is killed leaves behind

    @classmethod
    def answer(cls, record: Record) -> Result:
        key = _same_images(record)
        if key not in cls.datasets:  # which is on this machine, as the parent has read it
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parent has had them
                cls.datasets[key] = _dataset([record], *cls.where)
        return _row(record, cls.engine, *cls.datasets[key], *cls.options)


def _row(
    record: Record,
    engine: Engine,
    dataset: Dataset | None,
    reason: str,
    weights: Callable[[Record], Arrays],
    batch_size: int,
    limit: int | None,
    keep_answers: bool,
    title: str = "",
    shown: bool | None = None,
) -> Result:
    result = Result(record)
    try:
        network = described(record)
        result = replace(result, complexity=network.complexity(*([record.task.image] if record.task else [])))
        if record.checkpoint is None:
            raise UserError("no checkpoint is published")
        if dataset is None:
            raise UserError(reason)
        answers = Answers.empty(len(dataset.head(limit))) if keep_answers else None
        predict = engine.load(network, weights(record))
        counts = evaluate(predict, dataset, batch_size, limit, title, answers, shown)
    except UserError as error:
        return replace(result, reason=str(error))
    except Exception as error:  # of one row (a GPU that is full, say): the others go on, and nothing measured is lost
        return replace(result, reason=f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}")
    complete = dataset.official and counts.images == len(dataset)
    return replace(result, counts=counts, complete=complete, answers=answers)


def exit_code(results: Iterable[Result], require_all: bool = False) -> int:
    """0 where all that was evaluated is right; 1 where a row differs or, with `require_all`, was not evaluated; 3 where
    none was evaluated.
    """
    results = list(results)
    if any(result.differs or (require_all and not result.counts) for result in results):
        return 1
    return 0 if any(result.counts for result in results) else 3
