"""Validation: top-1 and top-5 error, interval, and the verdict against the published or recorded error."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Union

import numpy as np
from tqdm import tqdm

from . import catalog, checkpoints, exported, fetching, provenance
from .answers import Change, Earlier
from .catalog import Record
from .checkpoints import Checkpoint, runs
from .data import Dataset, Fractions, dataset_name, folder, get_dataset, get_splits, get_task, is_own
from .data.arrays import PREFIX
from .data.datasets import located
from .data.splits import check_task, kinds, pixel_hashes, put_aside
from .engine import Arrays, Engine
from .errors import BadFileError, InvalidValueError, UserError
from .exported import Exported
from .metrics import Answers, Score, evaluate, wilson
from .network import Complexity
from .processes import run_each
from .text import printable, progress_bar

PathLike = Union[str, "os.PathLike[str]"]
logger = logging.getLogger(__name__)

TOLERANCE = 0.05  # points between the measured and the expected error of the whole official test set
DIED = "its process died, perhaps out of memory; try OMP_NUM_THREADS=1"
MIN_IMAGES_FOR_PROCESSES = 10_000  # of all rows, about ten seconds of work: more than starting a process takes


@dataclass(frozen=True)
class Result:
    """One row of the table: counts and score of a record, or the `reason` for having none.

    With `complete`, the whole official test set was evaluated: only then is the error judged. `change` compares the
    answers with earlier ones.
    """

    record: Record
    complexity: Complexity | None = None
    counts: Score | None = None
    complete: bool = False
    reason: str = ""
    answers: Answers | None = field(default=None, compare=False, repr=False)
    change: Change | None = None

    def __str__(self) -> str:
        text = self.reason
        if self.counts:
            text = f"{self.error:.2f} % ({self.counts.wrong} of {self.counts.images:,} wrong)"
        return f"{self.record.model} on {self.record.dataset}: {text}: {self.verdict}"

    @property
    def _score(self) -> Score:
        if self.counts is None:
            raise ValueError(f"{self.record.model} on {self.record.dataset} was not evaluated: {self.reason}")
        return self.counts

    @property
    def error(self) -> float:
        """Top-1 error in %."""
        return 100 * self._score.wrong / self._score.images

    @property
    def top5_error(self) -> float:
        """Top-5 error in %."""
        return 100 * self._score.wrong_top5 / self._score.images

    @property
    def mirror_error(self) -> float | None:
        """Top-1 error in % by the mean softmax of each image and its mirror image, if measured. It is never judged."""
        wrong = None if self.counts is None else self.counts.wrong_mirror
        return None if wrong is None else 100 * wrong / self._score.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the top-1 error in %."""
        return wilson(self._score.wrong, self._score.images)

    @property
    def counts_right(self) -> bool:
        """Whether the network has the exact counts of the authors' graph, and the published parameters."""
        record, counts = self.record, self.complexity
        if not record.published:
            return True
        if counts is None or record.params_m is None or record.exact not in (None, counts):
            return False
        return abs(counts.parameters / 1e6 - record.params_m) <= record.params_tolerance_m

    @property
    def differs(self) -> bool:
        """Whether a judged error or count is not as published, or as recorded."""
        if self.complexity and not self.counts_right:
            return True
        return self.complete and any(abs(d) > TOLERANCE + 1e-9 for d in self.differences)

    @property
    def differences(self) -> tuple[float, ...]:
        """Measured minus expected error in points: top-1 and top-5, if known."""
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


class Results(list[Result]):
    """Results of networks, printed a line each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def select(
    what: PathLike | Sequence[str],
    dataset: str | Sequence[str] | Dataset | None,
    weights: PathLike | Sequence[PathLike],
    depth: Sequence[int],
    data_dir: PathLike | None,
    weights_dir: Path | None = None,
) -> tuple[list[Record], Path | Dataset | None]:
    """Select the rows for `api.validate`; return them with their images, or the directory of these."""
    paths = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights)
    if isinstance(what, os.PathLike) or (isinstance(what, str) and os.path.exists(fetching.expanded(what))):
        paths, what = [*paths, what], "*"
    patterns = [what] if isinstance(what, str) else what
    images = dataset if isinstance(dataset, Dataset) else None
    datasets = [dataset] if isinstance(dataset, str) else [] if isinstance(dataset, Dataset) else list(dataset or [])
    where = None if data_dir is None else fetching.expanded(data_dir)
    if images is not None and (where or not paths):
        raise UserError("given images are for runs and files of weights, without data_dir: validate(run, dataset)")
    if set(paths) <= {checkpoints.PUBLISHED}:
        rows: list[Record] = [*catalog.RECORDS, *checkpoints.bundled()]
    else:
        networks = [checkpoints.find(weights=path) for path in paths if not exported.is_exported(path)]
        for path in filter(exported.is_exported, paths):
            networks = exported.insert(path, networks, weights_dir)
        rows = list(networks)
        datasets = list(map(dataset_name, datasets))
        folders = [name for name in datasets if name.startswith("folder:")]
        if len(folders) + (where is not None) > 1:
            raise UserError("pass either one --dataset folder:PATH or --data-dir, not both")
        datasets = [name for name in datasets if name not in folders]
        where = fetching.expanded(folders[0].partition(":")[2]) if folders else where
    return catalog.select(patterns or ["*"], datasets or ["*"], depth, rows), where if images is None else images


def validate(
    records: Iterable[Record],
    engine: Engine,
    weights: Callable[[Record], Arrays] = checkpoints.load_record,
    source: Path | Dataset | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    processes: int = 1,
    keep_answers: bool = False,
    skip_bad: bool = False,
    shown: bool | None = None,
    cache: bool = True,
    mirror: bool = False,
    earlier: Earlier | None = None,
) -> Iterator[tuple[Dataset | None, list[Result]]]:
    """Evaluate records by an engine; yield the images and the results of one data set at a time.

    `weights` loads the parameters of a record; `source` has the images, or is their directory. Errors of a data set or
    a row (a corrupt file, a process that died) become the reason in their results, and the others go on. Up to so many
    `processes` share the rows, if that saves time. `skip_bad` skips unreadable images of a folder; its pixels are kept
    in the `cache`. Bars are `shown` as for `progress_bar`. With `mirror`, the mirror images are evaluated too, and
    answers are compared with `earlier` ones. Raises InvalidValueError if no data set is to be mirrored, and
    BadFileError if the earlier answers are of other images than those of the only data set.
    """
    records = list(records)
    names = list(dict.fromkeys(record.dataset for record in records))
    if mirror and not any((record.task or get_task(record.dataset)).mirrored for record in records):
        raise InvalidValueError(f"{', '.join(names)} has no mirror images: leave out mirror")
    keep_answers = keep_answers or any(isinstance(record, Exported) for record in records)
    job = _Job(engine, weights, batch_size or engine.batch_size, limit, keep_answers, mirror)
    for _, group in groupby(records, key=_same_images):
        rows = list(group)
        published = any(record.filename for record in rows)  # no images are read for figures without a network
        dataset, reason = _read(rows[0], source, skip_bad, cache, shown) if published else (None, "")
        same_images = None
        if earlier and dataset:
            try:
                same_images = earlier.of(dataset.head(limit), rows)
            except BadFileError as error:
                if len(names) == 1:
                    raise
                warnings.warn(f"{error}: not compared", stacklevel=2)
        size = 1 if isinstance(source, Dataset) else min(processes, len(rows))  # arrays are not sent to each
        if dataset and size > 1 and len(dataset.head(limit)) * len(rows) >= MIN_IMAGES_FOR_PROCESSES:
            run = partial(job.run_in_worker, (rows[0], source, skip_bad, cache, False))
            results = _evaluate_in_processes(rows, run, size, dataset.task.title, shown)
        else:
            results = [_log(job.run(record, dataset, reason, shown)) for record in rows]
        seen = {row.record: row.answers for row in results if row.answers}
        given = {record: same_images.change(record, own) for record, own in seen.items()} if same_images else {}
        changes = {**exported.changes(seen, dataset), **given}
        yield dataset, [replace(row, change=changes.get(row.record)) for row in results]


@dataclass(frozen=True)
class _Job:
    """Evaluates one record after the other. It can be sent to another process."""

    engine: Engine
    weights: Callable[[Record], Arrays]
    batch_size: int
    limit: int | None
    keep_answers: bool
    mirror: bool = False

    def run(self, record: Record, dataset: Dataset | None, reason: str, shown: bool | None = False) -> Result:
        """Evaluate a record, or return the reason against it, by default that for having no data set."""
        result = Result(record)
        try:
            network = record.network
            result = replace(result, complexity=network.complexity(*([record.task.image] if record.task else [])))
            if not record.filename:
                raise UserError("no checkpoint is published")
            if dataset is None:
                raise UserError(reason)
            images = dataset.head(self.limit)
            answers = Answers.empty(len(images)) if self.keep_answers else None
            predict = record.load() if isinstance(record, Exported) else self.engine.load(network, self.weights(record))
            how: dict[str, Any] = {"answers": answers, "mirror": self.mirror and dataset.task.mirrored}
            with progress_bar(len(images), record.model, "images", shown) as bar:
                counts = evaluate(predict, images, self.batch_size, report=bar.update, **how)
        except UserError as error:
            return replace(result, reason=str(error))
        except Exception as error:  # a full GPU, say: other rows go on, and nothing measured is lost
            return replace(result, reason=f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}")
        complete = dataset.official and counts.images == len(dataset)
        return replace(result, counts=counts, complete=complete, answers=answers)

    def run_in_worker(self, source: tuple[Any, ...], record: Record) -> Result:
        return self.run(record, *_read_once(*source))


def _read(
    record: Record, source: Path | Dataset | None, skip_bad: bool, cache: bool, shown: bool | None
) -> tuple[Dataset | None, str]:
    """Return the images for a record, or the reason for having none."""
    try:
        if isinstance(source, Dataset):
            return given_images(record, source), ""
        return images_of(record, source, skip_bad, cache, shown), ""
    except (UserError, OSError) as error:
        return None, str(error)


@lru_cache(maxsize=1)
def _read_once(*source: Any) -> tuple[Dataset | None, str]:
    """Read the images once per process, without the warnings already given by the parent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read(*source)


def images_of(
    record: Record,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    cache: bool = True,
    shown: bool | None = False,
) -> Dataset:
    """Read the images for the error of a record: the test images or, for a run without them, those of validation.

    For a run they are `official` if they are the recorded ones; otherwise the images seen in training are left out.
    Class folders without splits are read completely. Raises as `get_dataset` does.
    """
    has = kinds(located(record.dataset, data_dir))
    skip_bad = skip_bad or runs.skips_bad(record)
    reading: dict[str, Any] = {"root": data_dir, "skip_bad": skip_bad, "cache": cache, "progress": shown}

    def read(split: str) -> Dataset:
        return get_dataset(record.dataset, split, task=record.task, **reading)

    if not isinstance(record, Checkpoint) or not record.images_sha256:
        if has != (folder.ALL,):
            return read("test")
        dataset = read(folder.ALL)
        return replace(dataset, doubt="all images, also those trained on")
    split = record.split
    if split not in has and "test" in has and is_own(record.dataset):
        split = "test"  # of other data
    if split in has:
        dataset = recorded = read(split)
    else:
        if record.seen == runs.UNKNOWN and any(record.fractions):
            raise BadFileError(
                f"{record.run} was begun by version 0.4, which split images by their position: "
                "validate it on a folder with test/"
            )
        fractions = Fractions(*record.fractions)
        if has == (folder.ALL,):
            dataset, recorded = read(folder.ALL), None
            with suppress(InvalidValueError):  # of other images, a class may be too small
                recorded = getattr(put_aside(dataset, fractions), split)
        else:
            splits = get_splits(record.dataset, fractions, task=record.task, **reading)
            dataset = recorded = getattr(splits, split) or splits.train
    if recorded and provenance.of_data(recorded)["sha256"] == record.images_sha256:
        return replace(recorded, official=True)
    return _without_seen(replace(dataset, official=False), record)


def given_images(record: Record, dataset: Dataset) -> Dataset:
    """Return given images as those for the error of a record, `official` or not as in `images_of`.

    Raises InvalidValueError for other classes or another size, and BadFileError if all were seen in training.
    """
    task = record.task or get_task(record.dataset)
    check_task(dataset, task, "the data")
    if task.name.startswith(PREFIX) or not dataset.hashes:  # arrays record the hashes of pixels
        dataset = replace(dataset, files=(), hashes=pixel_hashes(dataset))
    dataset = replace(dataset, task=task, official=False)
    if not isinstance(record, Checkpoint) or not record.images_sha256:
        return dataset
    if provenance.of_data(dataset)["sha256"] == record.images_sha256:
        return replace(dataset, official=True)
    return _without_seen(dataset, record)


def _without_seen(dataset: Dataset, record: Checkpoint) -> Dataset:
    """Leave out the images that a run has trained on or chosen its epoch by, with a warning."""
    seen, run = set(record.seen.split()), record.run
    if dataset.hashes and (why := record.cannot_tell(dataset)):
        warnings.warn(f"{run} {why}: some of these may be among them", stacklevel=2)
    fresh = [index for index, content_hash in enumerate(dataset.hashes) if content_hash not in seen]
    known = len(dataset.hashes) - len(fresh)
    if not known:
        return dataset
    what = f"{known:,} of {len(dataset):,} images have trained the run {run} or chosen its epoch"
    if not fresh:
        raise BadFileError(f"{what}: none is left to measure its error on")
    warnings.warn(f"{what}: left out", stacklevel=2)
    return replace(dataset.take(np.array(fresh), dataset.split), doubt=f"{known:,} that it has seen are left out")


def _evaluate_in_processes(
    rows: Sequence[Record], run: Callable[[Record], Result], size: int, title: str, shown: bool | None
) -> list[Result]:
    """Evaluate rows in so many processes, the costliest first, so that all end at about the same time."""
    costliest_first = sorted(rows, key=lambda record: -record.network.complexity().multiply_adds)
    results = {}
    finished = run_each(run, costliest_first, size)
    with closing(finished), progress_bar(len(rows), title, "networks", shown) as bar:
        for record, future in finished:
            died = isinstance(future.exception(), BrokenProcessPool)
            results[record] = _log(Result(record, reason=DIED) if died else future.result())
            bar.update()
    return [results[record] for record in rows]


def _log(result: Result) -> Result:
    counts = result.counts
    text = f"{counts.wrong:,} of {counts.images:,} wrong" if counts else result.reason
    with tqdm.external_write_mode():  # a progress bar makes room for the line
        logger.info("%s", printable(f"{result.record.model} on {result.record.dataset}: {text}"))
    return result


def _same_images(record: Record) -> tuple[object, ...]:
    """Return a key that is equal for records with the same images."""
    key = (record.dataset, record.published, record.task)
    if not isinstance(record, Checkpoint):
        return key
    return (*key, record.split, record.images_sha256, record.fractions, record.seen)


def exit_code(results: Iterable[Result], require_all: bool = False) -> int:
    """Return 1 if a row differs or, with `require_all`, was not evaluated; 3 if none was evaluated; otherwise 0."""
    results = list(results)
    if any(result.differs or (require_all and not result.counts) for result in results):
        return 1
    return 0 if any(result.counts for result in results) else 3
