"""A run goes on exactly where it was, whatever ended it; and what is on the disk is whole at every moment."""

import select
import shlex
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import oracle
import pytest
from helpers import (
    DIGITS,
    LIMIT,
    MODEL,
    RECIPE,
    assert_mistake,
    assert_same,
    content,
    listing,
    make_folder,
    options,
    process,
    runner,
)

import pydmobilenet
from pydmobilenet import catalog
from pydmobilenet.training.checkpoint import State

pytestmark = pytest.mark.trains
GLUON, PYTORCH, LONG = pytest.mark.gluon, pytest.mark.pytorch, pytest.mark.fuzz
EPOCHS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"), train=16)


@pytest.fixture
def inside(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@contextmanager
def started(*arguments):
    """train.py, ended at the latest when the block is left or time is up."""
    run = process(*arguments)
    guard = threading.Timer(LIMIT, run.kill)
    guard.start()
    try:
        yield run
    finally:
        guard.cancel()
        run.kill()
        run.communicate()


def until(stream, beginning):
    """Read lines up to one that begins so."""
    for line in stream:
        if line.startswith(beginning):
            return
    pytest.fail(f"the process ended without a line {beginning!r}")


def finish(*arguments):
    with started(*arguments) as run:
        _, err = run.communicate()
        assert run.returncode == 0, err


@pytest.fixture(scope="module")
def beginning(folder, request):
    """How the runs of this file begin on the command line, but for where they are put."""
    engine = ["--engine", request.param]
    return [*engine, "--config", DIGITS, *options({**RECIPE, "model": MODEL, "dataset": folder, "epochs": EPOCHS})]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, beginning):
    """A run that was left alone: its directory, and the seconds an epoch of it took on the wall."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    with started(*beginning, "--output", directory) as run:
        until(run.stdout, "epoch 1/")
        begun = time.monotonic()
        until(run.stdout, f"epoch {EPOCHS}/")
        seconds = (time.monotonic() - begun) / (EPOCHS - 1)
        assert run.wait() == 0
    return directory, seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    "beginning", [pytest.param("gluon", marks=GLUON), pytest.param("pytorch", marks=[PYTORCH, LONG])], indirect=True
)
def test_killed_at_three_random_moments_a_run_ends_with_the_same_bits(undisturbed, beginning, tmp_path):
    expected, seconds = undisturbed
    directory = tmp_path / "run"
    thirds = np.arange(3) + np.random.default_rng(2).random(3)
    moments = (EPOCHS - 2) / 3 * thirds  # in epochs from the run's beginning
    finished = 0
    for moment in moments:
        resumed = directory.exists()
        with started(*(["--resume", directory] if resumed else [*beginning, "--output", directory])) as run:
            until(run.stderr, "resuming " if resumed else "Training on ")
            while run.poll() is None and not directory.exists():  # it is there before the first epoch begins
                time.sleep(0.001)
            if int(moment) > finished:
                until(run.stdout, f"epoch {int(moment)}/")
            select.select([run.stdout], [], [], moment % 1 * seconds)  # at the latest when the next epoch is told of
            run.kill()
            assert run.wait() == -signal.SIGKILL
        for path in directory.glob("*.part"):  # of a file that was being written
            path.unlink()
        finished = State.read(directory / "last.state").progress["epochs"]
        assert int(moment) <= finished < EPOCHS
    finish("--resume", directory)
    assert_same(content(directory), content(expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    "beginning", [pytest.param("gluon", marks=[GLUON, LONG]), pytest.param("pytorch", marks=PYTORCH)], indirect=True
)
def test_interrupted_and_terminated_in_an_epoch_a_run_ends_with_the_same_bits(undisturbed, beginning, tmp_path):
    expected, seconds = undisturbed
    directory = tmp_path / "a run"
    arguments = [*beginning, "--output", directory]
    for number, code, epoch in ((signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 3)):
        with started(*arguments) as run:
            until(run.stdout, f"epoch {epoch}/")
            time.sleep(0.2 * seconds)
            run.send_signal(number)
            _, err = run.communicate()
            assert run.returncode == code, err
        line, _, command = err.splitlines()[-1].partition("; to go on: ")
        assert line == "train.py: interrupted"
        assert shlex.split(command) == ["python", "train.py", "--resume", str(directory)]
        state = State.read(directory / "last.state")
        assert state.progress["epochs"] >= epoch
        assert 0 < state.progress["batches"] < 64 // 8  # in the middle of an epoch, whose steps are not lost
        arguments = ["--resume", directory]
    finish(*arguments)
    assert_same(content(directory), content(expected))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "finished"
    recipe = {**RECIPE, "config": DIGITS, "epochs": EPOCHS}
    return pydmobilenet.train(MODEL, folder, output=directory, device="cpu", progress=False, **recipe).directory


def test_a_finished_run_that_is_resumed_stays_as_it_is(finished, tmp_path, inside):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}
    answer = inside("--resume", directory, "--epochs", EPOCHS)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"Test error after the last epoch ({EPOCHS}): ")
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}
    after[".lock"] = before[".lock"]
    assert after == before


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoilt_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def an_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def of_another_model(path):
    parameters = oracle.random_arrays(catalog.describe("resnet-11-0.25", "digits"))
    State(parameters, {}, State.read(path).progress).write(path)


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("last.state", cut_short, "last.state is not the state of a run, or damaged: "),
        ("last.state", spoilt_in_the_middle, "last.state is not the state of a run, or damaged: "),
        ("last.state", lambda path: path.write_bytes(b""), "last.state is not the state of a run, or damaged: "),
        ("last.state", lambda path: path.write_text("x"), "last.state is not the state of a run, or damaged: "),
        ("last.state", an_array, "last.state is not the state of a run, or damaged: "),
        ("last.state", Path.unlink, "last.state is missing"),
        ("last.state", of_another_model, "the state is of another network"),
        ("run.json", cut_short, "run.json does not describe a run: "),
        ("config.yaml", Path.unlink, "holds no run: it has no config.yaml"),
        (
            "config.yaml",
            lambda path: path.write_text("model: ["),
            "config.yaml: no valid YAML: while parsing a flow node",
        ),
        ("config.yaml", lambda path: path.write_text("seed: 1\n"), "no model is given: "),
        ("", shutil.rmtree, "holds no run: it has no config.yaml"),
    ],
)
def test_a_damaged_run_is_refused_on_one_line_and_left_alone(file, spoil, words, finished, tmp_path, inside):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    spoil(directory / file)
    before = listing(directory) if file else None
    assert_mistake(inside("--resume", directory), words)
    assert (listing(directory) if directory.exists() else None) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["-m", "resnet-11-0.125"],
            f"model is 'resnet-11-0.125', but the run began with '{MODEL}'; to train on, start",
        ),
        (
            ["--epochs", "70"],
            "epochs is 70, but the run began with 5; to train on, start a new run with ",
        ),
        (["-d", "digits"], "dataset is 'digits', but the run began with 'folder:"),
        (["--device", "gpu:99"], "device 'gpu:99': "),
    ],
)
def test_a_run_does_not_go_on_as_another_one(arguments, words, finished, inside):
    before = listing(finished)
    assert_mistake(inside("--resume", finished, *arguments), words)
    assert listing(finished) == before
