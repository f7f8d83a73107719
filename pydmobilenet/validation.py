"""Validation: top-1 and top-5 error, interval, and the verdict against the published record."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Union

import numpy as np
from tqdm import tqdm

from . import catalog, checkpoints, provenance
from .catalog import Record
from .checkpoints import Checkpoint, runs
from .data import Dataset, Fractions, folder, get_dataset, get_splits
from .data.datasets import located
from .data.splits import kinds, put_aside
from .engine import Arrays, Engine
from .errors import BadFileError, InvalidValueError, UserError
from .metrics import Answers, Score, evaluate, wilson
from .network import Complexity, Network
from .processes import run_each
from .text import printable, progress_bar

logger = logging.getLogger(__name__)

TOLERANCE = 0.05  # points: how far the error on the whole official test set may be from the expected one
DIED = "its process died: perhaps for want of memory, of which OMP_NUM_THREADS=1 takes less"
WORTH_PROCESSES = 10_000  # answers, about ten seconds of work: what it takes to start a process is gained back


@dataclass(frozen=True)
class Result:
    """One row of the table: what was counted and measured for a record, or the `reason` why it was not.

    `complete` says that the whole official test set was answered: only then is the error judged. `answers` are kept
    where they were asked for.
    """

    record: Record
    complexity: Complexity | None = None
    counts: Score | None = None
    complete: bool = False
    reason: str = ""
    answers: Answers | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        found = (
            f"{self.error:.2f} % ({self.counts.wrong} of {self.counts.images:,} wrong)" if self.counts else self.reason
        )
        return f"{self.record.model} on {self.record.dataset}: {found}: {self.verdict}"

    @property
    def _counted(self) -> Score:
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


def validate(
    records: Iterable[Record],
    engine: Engine,
    weights: Callable[[Record], Arrays] = checkpoints.load_record,
    data_dir: Path | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    processes: int = 1,
    keep_answers: bool = False,
    skip_bad: bool = False,
    shown: bool | None = None,
) -> Found:
    """Check records against what `engine` answers, `batch_size` images a call (by default what is fastest for it).

    Yields, a data set at a time, its images and its results. `weights` gives the parameters of a record's network. What
    is wrong with a data set or with one row (no checkpoint, a corrupt file, a process that died) is the reason in their
    results, and the other rows go on. Each row is logged once it is finished. Up to so many `processes` work on
    different rows, where that is worth their start. With `keep_answers`, results have the answer to each image; with
    `skip_bad`, unreadable images of a folder are skipped. Progress bars are `shown` as `text.progress_bar` has it.
    """
    row = partial(_row, engine, weights, batch_size or engine.batch_size, limit, keep_answers)
    for _, group in groupby(records, key=_same_images):
        rows = list(group)
        published = any(record.filename for record in rows)  # of no network, no images are needed
        dataset, reason = _dataset(rows[0], data_dir, skip_bad) if published else (None, "")
        size = min(processes, len(rows))
        if dataset and size > 1 and len(dataset.head(limit)) * len(rows) >= WORTH_PROCESSES:
            answer = partial(_worker_row, row, rows[0], data_dir, skip_bad)
            yield dataset, _together(rows, answer, size, dataset.task.title, shown)
        else:
            yield dataset, [_told(row(record, dataset, reason, record.model, shown)) for record in rows]


def _dataset(record: Record, data_dir: Path | None, skip_bad: bool) -> tuple[Dataset | None, str]:
    """Return the test images of a record, or why they cannot be had."""
    try:
        return images_of(record, data_dir, skip_bad), ""
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
    if not isinstance(record, Checkpoint) or not record.images_sha256:
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
        if record.seen == runs.UNKNOWN and any(record.fractions):
            raise BadFileError(
                f"{record.run} was begun by version 0.4, which split images by their position: measure its error on "
                "others, in a folder with test/"
            )
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


def _without_seen(dataset: Dataset, record: Checkpoint) -> Dataset:
    """Leave out the images that a run has learned or chosen its epoch by, with a warning."""
    seen, run = set(record.seen.split()), record.run
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


def _together(
    rows: Sequence[Record], answer: Callable[[Record], Result], size: int, title: str, shown: bool | None
) -> list[Result]:
    """Evaluate rows in so many processes, the costliest first, so that all end at about the same time."""
    costliest_first = sorted(rows, key=lambda record: -described(record).complexity().multiply_adds)
    results = {}
    finished = run_each(answer, costliest_first, size)
    with closing(finished), progress_bar(len(rows), title, "networks", shown) as bar:
        for record, future in finished:
            died = isinstance(future.exception(), BrokenProcessPool)
            results[record] = _told(Result(record, reason=DIED) if died else future.result())
            bar.update()
    return [results[record] for record in rows]


def _worker_row(
    row: Callable[..., Result], first: Record, data_dir: Path | None, skip_bad: bool, record: Record
) -> Result:
    """Evaluate a record in a process of its own."""
    return row(record, *_worker_dataset(first, data_dir, skip_bad))


@lru_cache(maxsize=1)
def _worker_dataset(first: Record, data_dir: Path | None, skip_bad: bool) -> tuple[Dataset | None, str]:
    """Read the images once a process, without the warnings that its parent has had."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _dataset(first, data_dir, skip_bad)


def described(record: Record) -> Network:
    """The network of a record."""
    return catalog.describe(record.model, record.dataset, record.outputs)


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
    if isinstance(record, Checkpoint):
        own = (record.split, record.images_sha256, record.fractions, record.seen)
    return (record.dataset, record.published, record.task, *own)


def _row(
    engine: Engine,
    weights: Callable[[Record], Arrays],
    batch_size: int,
    limit: int | None,
    keep_answers: bool,
    record: Record,
    dataset: Dataset | None,
    reason: str,
    title: str = "",
    shown: bool | None = False,
) -> Result:
    """Evaluate a record, or say why not. Can be called in another process."""
    result = Result(record)
    try:
        network = described(record)
        result = replace(result, complexity=network.complexity(*([record.task.image] if record.task else [])))
        if not record.filename:
            raise UserError("no checkpoint is published")
        if dataset is None:
            raise UserError(reason)
        images = dataset.head(limit)
        answers = Answers.empty(len(images)) if keep_answers else None
        predict = engine.load(network, weights(record))
        with progress_bar(len(images), title, "images", shown) as bar:
            counts = evaluate(predict, images, batch_size, answers=answers, report=bar.update)
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
