"""Runs that differ only by their seed, in one directory: each is trained by a process of its own, several at once.

``config.yaml``     the configuration of all
``run.json``        its kind, ``seeds``; the seeds, the initial weights, the commands, and the spread of the errors
``seed-0``, …       the runs
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from .. import checkpoints, fetching, files, machine, processes
from ..checkpoints import runs
from ..checkpoints.runs import METADATA, seed_directory
from ..data import folder
from ..errors import InvalidValueError, UserError
from ..text import printable
from . import checkpoint, distillation, results
from . import config as configuration
from .checkpoint import CONFIG
from .config import AUTO, Config
from .history import OPTIMISM
from .recipe import configure
from .session import PathLike, default_directory, read_config

# Of `train`, for each run.
OPTIONS = ("engine", "device", "compile", "pyramid", "data_dir", "skip_bad", "tensorboard", "verbose")
MAX_SEEDS = 1000
GPU_JOBS = 4  # runs that share a GPU: each also needs a processor for its batches
ALLOWED = "a number of seeds from 2, as 5, or a list, as 0,1,2; one seed is --seed"


class SeedsFailed(UserError):
    """Some runs have failed, for the reasons in `failures`; the others are finished."""

    exit_code = 1

    def __init__(self, failures: Mapping[int, str]):
        reasons: dict[str, list[int]] = {}
        for seed, why in sorted(failures.items()):
            reasons.setdefault(why.replace(f"seed-{seed}", "seed-N"), []).append(seed)
        super().__init__("; ".join(f"seed {', '.join(map(str, of))} failed: {why}" for why, of in reasons.items()))


def parse(seeds: object) -> list[int]:
    """Parse ``5``, for the seeds 0 to 4, or a list, as ``0,1,2``. Raises InvalidValueError."""
    is_list = isinstance(seeds, Iterable) and not isinstance(seeds, str)
    words = list(map(str, seeds)) if is_list else str(seeds).split(",")  # type: ignore[call-overload]
    try:
        numbers = list(map(int, words))
        parsed = numbers if is_list or len(words) > 1 else [*range(min(numbers[0], MAX_SEEDS + 1))]
        if 2 <= len({*parsed}) == len(parsed) <= MAX_SEEDS:
            return [configuration.parse({"seed": seed})["seed"] for seed in parsed]
    except ValueError:
        pass
    raise InvalidValueError(f"seeds: {','.join(words)[:100]!r} (allowed: {ALLOWED})")


def plan(
    given: Mapping[str, Any],
    seeds: object,
    config: PathLike | None,
    output: PathLike | None,
    resume: PathLike | None,
    weights: PathLike | None,
    weights_dir: PathLike | None,
    teacher: PathLike | None,
    command: str,
) -> Path:
    """Make the directory of the runs, or find the one to `resume`, and return it. Reads no data.

    More seeds may be given than it began with. Raises a UserError, also for other values, seeds or weights.
    """
    if processes.launched():
        raise UserError("--seeds starts processes of its own: leave out torchrun")
    if "seed" in given:
        raise UserError("pass either --seed or --seeds, not both")
    published = teacher is None or distillation.is_published(teacher)
    if weights_dir and weights != checkpoints.PUBLISHED and not (teacher and published):
        raise UserError("--weights-dir is only used with --weights published")
    source = str(teacher) if teacher and published else _absolute_path(teacher)
    numbers = None if seeds is None else parse(seeds)
    if resume is not None and resume != AUTO:
        if output or config or weights:
            raise UserError("--resume reads the runs' own settings: leave out --output, --config, --weights")
        directory = fetching.expanded(resume)
        _resume(directory, numbers, given, command, teacher=source)
        return directory
    made = _absolute(configure(given, config, weights, distilled=teacher is not None))
    directory = fetching.expanded(output or default_directory(made))
    init = {"weights": _absolute_path(weights), "weights_dir": _absolute_path(weights_dir), "teacher": source}
    if resume == AUTO and os.path.isfile(directory / METADATA):
        values = {key: value for key, value in vars(made).items() if key != "seed"}
        _resume(directory, numbers, values, command, init)
        return directory
    checkpoint.check_new(directory)
    metadata = {"kind": runs.SEEDS, "model": made.model, "dataset": made.dataset, "seeds": numbers}
    with files.new_directory(directory) as tmp:
        files.write(tmp / CONFIG, configuration.text(made))
        _write(tmp, {**metadata, **init, "commands": [command], "spreads": {}})
    return directory


def _absolute(config: Config) -> Config:
    """Name a folder of images by its absolute path: the runs may be resumed from elsewhere."""
    if not config.dataset.startswith("folder:"):
        return config
    return replace(config, dataset=f"folder:{os.path.abspath(folder.place(config.dataset))}")


def _absolute_path(path: PathLike | None) -> str | None:
    if path is None or path == checkpoints.PUBLISHED:
        return path  # type: ignore[return-value]
    return os.path.abspath(fetching.expanded(path))


def _resume(
    directory: Path,
    seeds: list[int] | None,
    given: Mapping[str, Any],
    command: str,
    init: Mapping[str, Any] = {},
    teacher: str | None = None,
) -> None:
    """Record a start of the runs. Raises InvalidValueError unless they began with what is given.

    Only the file of a `teacher` may have moved: its SHA-256 tells each run.
    """
    begun = runs.seeds(directory)
    if not begun:
        raise InvalidValueError(f"{directory} does not hold a run for each seed: leave out --seeds")
    if not {*begun} <= {*(seeds or begun)}:
        raise InvalidValueError(f"{directory} has other seeds; nearest: --seeds {','.join(map(str, begun))}")
    config = vars(read_config(directory))
    wanted = vars(_absolute(configuration.make({**config, **given})))
    checkpoint.check_config({key: wanted[key] for key in given}, config)
    lock = checkpoint.lock(directory)
    try:
        metadata = _read(directory)
        asked = init or {"teacher": teacher or metadata.get("teacher")}
        for key in [key for key in ("weights", "teacher") if key in asked]:
            begun_with = metadata.get(key)
            moved = key == "teacher" and begun_with and os.path.exists(asked[key] or "")
            if moved and asked[key] != begun_with:
                _check_same_teacher(directory, begun, Path(asked[key]))
            elif asked[key] != begun_with:
                raise InvalidValueError(
                    f"the runs in {directory} have {key} {begun_with or 'none'}; nearest: another --output"
                )
        started = {"seeds": seeds or begun, "teacher": asked["teacher"]}
        _write(directory, {**metadata, **started, "commands": [*metadata.get("commands", []), command]})
    finally:
        lock.release()


def _check_same_teacher(directory: Path, seeds: list[int], teacher: Path) -> None:
    """Raise InvalidValueError if a moved teacher is not that of the first run, by its SHA-256."""
    for seed in seeds:
        path = seed_directory(directory, seed)
        if (path / METADATA).exists():
            distillation.check_same(checkpoints.find(weights=teacher, to_train=True), runs.read_metadata(path))
            return


def _read(directory: Path) -> dict[str, Any]:
    return json.loads((directory / METADATA).read_bytes())


def _write(directory: Path, metadata: Mapping[str, Any]) -> None:
    files.write(directory / METADATA, json.dumps(metadata, indent=1) + "\n")


def check_jobs(jobs: object) -> None:
    """Raise InvalidValueError unless `jobs` is a number of processes, or None."""
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise InvalidValueError(f"jobs is {jobs!r} (allowed: a whole number from 1)")


def default_jobs(device: str) -> int:
    """Return how many runs train at once: one a processor, on a GPU at most `GPU_JOBS`."""
    threads = os.environ.get("OMP_NUM_THREADS", "")  # of each, if set
    jobs = machine.available_processors() // max(1, int(threads) if threads.isdigit() else 1)
    on_gpu = device not in ("cpu", "-1") and (device == "mps" or machine.compute_capabilities())
    return max(1, min(jobs, GPU_JOBS if on_gpu else jobs))


@dataclass
class Processes:
    """Trains the seeds in a directory, `jobs` at once, with the `OPTIONS` of ``train`` by name.

    A line of a run is printed after its seed, unless `shown` is False; what several say on standard error, once.
    """

    directory: Path
    options: Mapping[str, object]
    jobs: int | None = None
    shown: bool = True
    failures: dict[int, str] = field(default_factory=dict)
    stopped: int = 0  # the number of the signal received
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    said: set[str] = field(default_factory=set)

    def run(self) -> int:
        """Train all that is unfinished. Returns 0, or 128 plus the signal's number.

        The first run begins alone: a mistake in the command is raised as its UserError, and leaves no directory.
        """
        seeds = runs.seeds(self.directory)
        unfinished = [seed for seed in seeds if not _finished(seed_directory(self.directory, seed))]
        self.jobs = min(len(seeds), self.jobs or default_jobs(str(self.options["device"])))
        lock = checkpoint.lock(self.directory)
        try:
            self._keep_options()
            with processes.handle_signals(self._stop), ThreadPoolExecutor(self.jobs) as pool:
                self._train_all(pool, unfinished)
            if not self.stopped:
                self._record()
        finally:
            lock.release()
            begun = any(seed_directory(self.directory, seed).exists() for seed in seeds)
            if self.failures and not begun and len(_read(self.directory)["commands"]) == 1:  # made by this one
                with suppress(OSError):  # another file in it is the user's
                    for name in (CONFIG, METADATA, ".lock"):
                        (self.directory / name).unlink(missing_ok=True)
                    self.directory.rmdir()
        return 128 + self.stopped if self.stopped else 0

    def _keep_options(self) -> None:
        """Take the options of an earlier start, where none are given, and record those of this one.

        Raises InvalidValueError for another engine than that of the runs: a mean over both would mean nothing.
        """
        metadata, engine, given = _read(self.directory), self.options["engine"], dict(self.options)
        if engine not in (AUTO, begun_with := _engine(self.directory) or engine):
            raise InvalidValueError(f"engine is {engine!r}, but the runs began with {begun_with!r}")
        kept = metadata.get("options", {})
        options: dict[str, Any] = {key: given[key] or kept.get(key) for key in ("data_dir", "skip_bad")}
        options["data_dir"] = _absolute_path(options["data_dir"])
        self.options = {**given, **options}
        _write(self.directory, {**metadata, "options": options})

    def _train_all(self, pool: ThreadPoolExecutor, seeds: list[int]) -> None:
        futures: list[Future[None]] = []
        try:
            for seed in seeds:
                futures.append(pool.submit(self._train, seed))
                while seed == seeds[0] and not futures[0].done() and not seed_directory(self.directory, seed).exists():
                    wait(futures, 0.1)
                if len(futures) == 1 and self.failures and not seed_directory(self.directory, seed).exists():
                    raise UserError(self.failures[seed])
            while wait(futures, 0.5).not_done:  # Windows handles no signal while it waits
                pass
            for future in futures:
                future.result()
        except BaseException:
            self._stop(signal.SIGTERM)
            raise

    def _train(self, seed: int) -> None:
        """Train a seed in a process, and print its lines."""
        if self.stopped:
            return
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, machine.available_processors() // (self.jobs or 1)))
        environment = {"OMP_NUM_THREADS": threads, "PYTHONIOENCODING": "utf-8", processes.WATCH: "1"}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self._command(seed),
            **dict.fromkeys(("stdin", "stdout", "stderr"), pipe),  # type: ignore[call-overload]
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **environment},
        ) as process:
            self.running.append(process)
            if self.stopped:
                process.stdin.close()
            errors: list[str] = []
            reader = threading.Thread(target=self._read_errors, args=(seed, process.stderr, errors))
            reader.start()
            for line in process.stdout:
                if self.shown:
                    print(f"seed {seed}: {line}", end="", flush=True)
            reader.join()
        if process.returncode and not self.stopped:
            why = errors[-1].partition("error: ")[2] or errors[-1] if errors else ""
            self.failures[seed] = why or f"its process ended with {process.returncode}"

    def _read_errors(self, seed: int, stream: IO[str], lines: list[str]) -> None:
        for line in map(str.rstrip, stream):
            lines.append(line)
            is_error = ": error: " in line  # said at the end
            if self.shown and not is_error and not self.stopped and line not in self.said:
                print(f"seed {seed}: {printable(line)}", file=sys.stderr, flush=True)
            self.said.add(line)

    def _command(self, seed: int) -> list[str]:
        """Return the command that begins or continues the run of a seed."""
        directory, metadata = seed_directory(self.directory, seed), _read(self.directory)
        teacher = metadata.get("teacher")
        values: dict[str, object] = {"resume": directory}
        if teacher and not distillation.is_published(teacher):  # it may have moved since the run began
            values["teacher"] = teacher
        if not directory.exists():
            init = {key: metadata.get(key) for key in ("weights", "weights_dir", "teacher")}
            values = {"config": self.directory / CONFIG, "seed": seed, "output": directory, **init}
        words = []
        options = {**self.options, "quiet": not self.shown}
        if options["engine"] == AUTO:
            options["engine"] = _engine(self.directory) or AUTO
        for key, value in {**values, **options}.items():
            if value is not None and value is not False and value != AUTO:  # 0 is a seed
                words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
        script = files.RESOURCES / "train.py"  # in a checkout, found from any directory
        program = [str(script)] if script.is_file() else ["-m", "pydmobilenet", "train"]
        return [sys.executable, *program, *words]

    def _stop(self, number: int) -> None:
        """Have all processes save and end: their standard input ends."""
        self.stopped = self.stopped or number
        for process in self.running:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]

    def _record(self) -> None:
        spreads: dict[str, dict[str, object]] = {}
        groups = _only_group(_results(self.directory))
        for figure, spread in groups[0].spreads.items() if groups else ():
            spreads.setdefault(figure.epoch, {})[figure.split] = spread._asdict()
        _write(self.directory, {**_read(self.directory), "spreads": spreads})


def directories(directory: Path) -> list[Path]:
    """Return the directories of the runs, in the order of their seeds."""
    return [seed_directory(directory, seed) for seed in runs.seeds(directory)]


def _finished(directory: Path) -> bool:
    try:
        return results.read(directory).finished
    except UserError:  # its process says why, if it is damaged
        return False


def _engine(directory: Path) -> str:
    """Return the engine of the runs that have begun; empty before."""
    for path in directories(directory):
        if (path / METADATA).exists():
            with suppress(UserError):  # its process says why, if it is damaged
                return runs.read_metadata(path).get("engine", "")
    return ""


def _only_group(finished: list[results.RunResult]) -> list[results.Seeds]:
    """Return the group of all finished runs; none if some differ by more than their seed."""
    return [group for group in results.over_seeds(finished) if len(group.results) == len(finished)]


def _results(directory: Path) -> list[results.RunResult]:
    return [results.read(path) for path in directories(directory) if _finished(path)]


def summary(directory: Path) -> str:
    """Describe the errors of the finished runs: mean and standard deviation of each."""
    seeds = runs.seeds(directory)
    finished = _results(directory)
    groups = _only_group(finished)
    lines = [f"{directory}: {len(finished)} of {len(seeds)} seeds are finished."]
    if groups:
        spreads = groups[0].spreads
        lines += [f"{str(figure).capitalize()}: {spread} %" for figure, spread in spreads.items()]
        lines[0] += f" Mean ± standard deviation (n - 1) of n = {len(groups[0].results)}:"
        lines += [OPTIMISM] if finished[0].optimistic and finished[0].split == "test" else []
    elif len(finished) > 1:
        lines.append("They differ by more than their seed, so there is no mean.")
    return "\n".join(lines)
