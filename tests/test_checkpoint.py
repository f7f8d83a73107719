"""The files of a run, without any training: whole at every moment, and read with suspicion."""

import errno
import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import LIMIT, ROOT, listing, no_larger_files_than

from pydmobilenet.errors import BadFileError, MissingFileError, UnusableError
from pydmobilenet.training.checkpoint import Run, State, read_history


def state_of(run):
    return State.read(run.directory / "last.state")


def state(number, size=20_000):
    return State(
        {"w": np.full(size, number, np.float32)}, {"w": np.full(size, -number, np.float32)}, {"epochs": number}
    )


METADATA = {"model": "pyd-add-11-0.125", "dataset": "digits", "outputs": 10, "classes": list("0123456789")}


def also(number, *names):
    return {name: {"epoch": number, "test_error": 50.0 / number} for name in names}


@pytest.fixture
def run(tmp_path):
    """A run with one epoch behind it."""
    run = Run.create(tmp_path / "run", "model: x\n", state(0), METADATA)
    run.save(state(1), also(1, "last.params", "best.params"))
    yield run
    run.lock.release()


def save(run):
    run.save(state(2), also(2, "last.params", "best.params", "epoch-0002.params"))


@pytest.mark.parametrize("size", [100, 81_000, 100_000])
def test_where_one_file_cannot_be_written_none_is_replaced(size, run):
    before = listing(run.directory)
    with no_larger_files_than(size), pytest.raises(UnusableError, match=r"^cannot write \S+: File too large$"):
        save(run)
    assert listing(run.directory) == before
    save(run)
    assert state_of(run).progress == {"epochs": 2}


@pytest.mark.parametrize("call", range(5))
def test_where_one_file_does_not_come_to_the_disk_none_is_replaced(call, run, monkeypatch):
    before, calls, fsync = listing(run.directory), itertools.count(), os.fsync

    def failing(descriptor):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(UnusableError, match=r"^cannot write \S+: No space left on device$"):
        save(run)
    assert listing(run.directory) == before


@pytest.mark.parametrize("call", range(5))
def test_where_a_file_cannot_be_put_in_place_the_state_is_the_earlier_one(call, run, monkeypatch):
    calls, replace = itertools.count(), os.replace

    def failing(source, target):
        if next(calls) == call:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(UnusableError, match=r"^cannot write \S+: Permission denied$"):
            save(run)
    assert state_of(run).progress == {"epochs": 1}
    assert not list(run.directory.glob("*.part"))
    save(run)
    assert state_of(run).progress == {"epochs": 2}


# Does some work again and again, in a child that is killed before its first, second, third … system call on files.
# A program of its own: MXNet, which is not imported here, does not like to be forked.
KILLED_AT_EVERY_CALL = """
import itertools, json, os, shutil, signal, sys
from pathlib import Path

import numpy as np

from pydmobilenet.checkpoints import formats
from pydmobilenet.training.checkpoint import Run, State

METADATA = {"model": "pyd-add-11-0.25", "dataset": "digits"}


def state(number):
    ones = np.ones(5000, np.float32)
    return State({"w": number * ones}, {"w": -number * ones}, {"epochs": number})


def save(directory, number, *names):
    run = Run(directory)
    run.save(state(number), {name: {"epoch": number, "test_error": 50.0} for name in names})
    run.lock.release()


def again(directory):
    save(directory, 2, "last.params", "best.params", "epoch-0002.params")


def create(directory):
    Run.create(directory, "model: x", state(0), METADATA).lock.release()


def killed(call, work, directory):
    child = os.fork()
    if not child:
        calls = itertools.count()

        def hook(event, arguments):
            if event == "open" and not isinstance(arguments[0], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
                unnamed = arguments[2] & os.O_TMPFILE == os.O_TMPFILE  # as the library of the lock has it
                if not (unnamed or ".part" in str(arguments[0]) or str(arguments[0]).endswith("/.lock")):
                    os._exit(77)  # a file is written where it is to be
            if event.startswith(("open", "os.", "shutil.")) and next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 78
        try:
            sys.addaudithook(hook)
            work(directory)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def listing(directory):
    # All but what a killed writer has left.
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".part"}


def check(directory):
    left = State.read(directory / "last.state")
    epochs = left.progress["epochs"]
    assert (left.parameters["w"] == epochs).all() and (left.momentum["w"] == -epochs).all()
    assert (directory / "config.yaml").read_text() == "model: x"
    for path in directory.glob("*.params"):
        assert len(set(formats.read_params(path)["w"])) == 1
    return epochs


os.chdir(sys.argv[1])
earlier, later = Path("earlier"), Path("later")
create(earlier)
save(earlier, 1, "last.params", "best.params")
shutil.copytree(earlier, later)
again(later)
saved, made = [], []
for call in itertools.count():
    directory = Path(f"saved-{call}")
    shutil.copytree(earlier, directory)
    dead = killed(call, again, directory)
    saved.append(check(directory))
    if saved[-1] == 2:
        assert listing(directory) == listing(later)
    again(directory)  # as the run does that goes on
    assert listing(directory) == listing(later)
    if not dead:
        break
for call in itertools.count():
    directory = Path(f"made-{call}")
    dead = killed(call, create, directory)
    made.append(directory.exists())
    if not directory.exists():
        create(directory)
    assert check(directory) == 0
    if not dead:
        break
print(json.dumps([saved, made]))
"""


@pytest.mark.slow
def test_killed_between_any_two_calls_a_run_is_whole_and_earlier_or_later(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-B", "-c", KILLED_AT_EVERY_CALL, tmp_path],  # -B: what it imports writes no other files
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert answer.returncode == 0, answer.stderr
    saved, made = json.loads(answer.stdout)
    assert saved == sorted(saved)  # once it is the later state, it stays the later one
    assert made == sorted(made)
    assert set(saved) == {1, 2}
    assert set(made) == {False, True}
    assert len(saved) > 20  # with five files, each of them opened, synchronised and renamed


RACE = """
import sys, time
from pathlib import Path

import numpy as np

from pydmobilenet.errors import UnusableError
from pydmobilenet.training.checkpoint import Run, State

runs, name = Path(sys.argv[1]), sys.argv[2]
print(flush=True)
begin = float(sys.stdin.readline())
for number in range(20):
    state = State({"w": np.full(5000, float(name), np.float32)}, {}, {"epochs": 0})
    time.sleep(max(0, begin + 0.05 * number - time.time()))
    try:
        run = Run.create(runs / str(number), f"model: {name}", state, {"model": "pyd-add-11-0.25", "dataset": "digits"})
        run.save(state, {})
        print(number, flush=True)
    except UnusableError as error:
        assert "exists already" in str(error) or "another process is training" in str(error), error
"""


@pytest.mark.slow
def test_of_processes_that_make_one_run_at_once_exactly_one_wins(tmp_path):
    command, environment = [sys.executable, "-c", RACE, tmp_path / "runs"], {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([*command, str(name)], env=environment, **pipes) for name in range(3)]
    for racer in racers:
        racer.stdout.readline()
    answers = []
    for racer in racers:
        racer.stdin.write(f"{time.time() + 0.2}\n")
        racer.stdin.flush()
    for racer in racers:
        answers.append(racer.communicate(timeout=LIMIT)[0].split())
        assert racer.returncode == 0
    assert sorted(int(number) for won in answers for number in won) == list(range(20))  # each run has one winner
    for name, won in enumerate(answers):
        for number in won:
            directory = tmp_path / "runs" / number
            assert (directory / "config.yaml").read_text() == f"model: {name}"
            assert (State.read(directory / "last.state").parameters["w"] == name).all()
    assert len(list((tmp_path / "runs").iterdir())) == 20


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_run_takes_the_place_of_nothing(make, tmp_path):
    make(tmp_path / "run")
    before = os.lstat(tmp_path / "run")
    with pytest.raises(UnusableError, match="exists already"):
        Run.create(tmp_path / "run", "model: x\n", state(0), METADATA)
    assert os.lstat(tmp_path / "run") == before


def test_of_two_processes_on_one_run_the_second_is_refused(run):
    program = (
        "import sys; from pathlib import Path; from pydmobilenet.training.checkpoint import Run; Run(Path(sys.argv[1]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, run.directory],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert other.returncode != 0
    assert f"another process is training in {run.directory}" in other.stderr
    run.lock.release()
    assert state_of(Run(run.directory)).progress == {"epochs": 1}


def row(number):
    """An epoch of a history, as a state has it."""
    values = {"learning_rate": 0.1, "train_loss": 1.0, "train_error": 20.0, "test_loss": 1.5, "test_error": 30.0}
    return {"epoch": number, **values, "images_per_second": 100.0, "seconds": 1.0}


def test_the_history_of_a_run_is_read_from_its_state(run):
    run.save(State(state(2).parameters, {}, {"epochs": 2, "history": [row(1), row(2)]}), {})
    assert [each.epoch for each in read_history(run.directory).rows] == [1, 2]
    assert read_history(str(run.directory)).to_dicts() == [row(1), row(2)]  # while it is locked


def test_a_history_that_is_missing_or_damaged_is_refused(run, tmp_path):
    with pytest.raises(MissingFileError, match="holds no run"):
        read_history(tmp_path)
    for progress in ({}, {"history": [row(2)]}, {"history": 3}, {"history": [{"epoch": 1}]}):
        run.save(State(state(2).parameters, {}, progress), {})
        with pytest.raises(BadFileError, match=r"last\.state has no history, or a damaged one"):
            read_history(run.directory)


@pytest.mark.parametrize("kind", ["pickle", "arrays of objects"])
def test_a_state_is_read_without_pickle(kind, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "last.state"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap()))
    else:
        with open(path, "wb") as file:
            np.savez(file, position=np.array([Trap()], object))
    with pytest.raises(BadFileError, match=r"last\.state is not the state of a run, or damaged"):
        State.read(path)
    assert not (tmp_path / "sprung").exists()


def test_a_state_with_a_damaged_bit_is_refused_or_the_same(tmp_path):
    path = tmp_path / "last.state"
    whole = State({"w": np.arange(6, dtype=np.float32)}, {"w": np.ones(6, np.float32)}, {"epochs": 1})
    whole.write(path)
    written = path.read_bytes()
    refused = 0
    for place in range(len(written)):
        damaged = bytearray(written)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            read = State.read(path)
        except BadFileError:
            refused += 1
            continue
        assert read.progress == whole.progress
        for found, expected in ((read.parameters, whole.parameters), (read.momentum, whole.momentum)):
            assert found.keys() == expected.keys()
            assert found["w"].tobytes() == expected["w"].tobytes()
    assert refused > len(written) / 3
