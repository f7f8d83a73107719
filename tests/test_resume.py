"""A run goes on exactly where it was, whatever ended it; and what is on the disk is whole at every moment."""

import csv
import functools
import json
import os
import shlex
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from test_checkpoint import listing, no_larger_files_than
from test_train_command import DIGITS, assert_mistake, make_folder, options, process, runner

from pydmobilenet import params
from pydmobilenet.data import Dataset, get_task
from pydmobilenet.training import config, loop, prepare
from pydmobilenet.training.checkpoint import Run, State
from pydmobilenet.training.learner import Score
from pydmobilenet.training.workers import Workers

ADD = "pyd-add-11-0.125"
EPOCHS = 5
RECIPE = {"batch_size": 8, "mixup": 0.2, "plain_epochs": 1, "warmup_epochs": 1.5, "seed": 5}
LIMIT = 240  # seconds for any one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"), train=16)


@pytest.fixture
def inside(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


def rows(path):
    return list(csv.DictReader(path.open())) if path.exists() else []


def deterministic(rows):
    """Rows of a history without what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def content(directory):
    """All that two runs of the same recipe have in common: arrays and files as bytes, position, facts."""
    assert not list(directory.glob("**/*.part"))
    state = State.read(directory / "last.state")
    position = {key: value for key, value in state.position.items() if key != "seconds"}
    return {
        **{f"parameter {name}": array.tobytes() for name, array in state.parameters.items()},
        **{f"momentum {name}": array.tobytes() for name, array in state.momentum.items()},
        **{path.name: path.read_bytes() for path in directory.glob("*.params")},
        "position": {**position, "history": deterministic(position["history"])},
        "history.csv": deterministic(rows(directory / "history.csv")),
        "config": (directory / "config.yaml").read_bytes(),
        "facts": json.loads((directory / "run.json").read_text()) if (directory / "run.json").exists() else None,
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


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
def beginning(folder):
    """How the runs of this file begin on the command line, but for where they are put."""
    return ["--config", DIGITS, *options({**RECIPE, "model": ADD, "dataset": folder, "epochs": EPOCHS})]


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


def test_killed_at_three_random_moments_a_run_ends_with_the_same_bits(undisturbed, beginning, tmp_path):
    expected, seconds = undisturbed
    directory = tmp_path / "run"
    thirds = np.arange(3) + np.random.default_rng(2).random(3)
    moments = (EPOCHS - 2) / 3 * thirds  # in epochs from the run's beginning
    finished = 0
    for moment in moments:
        resumed = directory.exists()
        with started(*(["--resume", directory] if resumed else [*beginning, "--output", directory])) as run:
            until(run.stderr, "resuming " if resumed else "device: ")
            if int(moment) > finished:
                until(run.stdout, f"epoch {int(moment)}/")
            time.sleep(moment % 1 * seconds)
            run.kill()
            assert run.wait() == -signal.SIGKILL
        finished = State.read(directory / "last.state").position["epochs"]
        assert int(moment) <= finished < EPOCHS
    finish("--resume", directory)
    assert_same(content(directory), content(expected))


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
        assert state.position["epochs"] >= epoch
        assert 0 < state.position["batches"] < 64 // 8  # in the middle of an epoch, whose steps are not lost
        arguments = ["--resume", directory]
    finish(*arguments)
    assert_same(content(directory), content(expected))


def test_a_finished_run_that_is_resumed_stays_as_it_is(undisturbed, tmp_path, inside):
    directory = tmp_path / "run"
    shutil.copytree(undisturbed[0], directory)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}
    answer = inside("--resume", directory, "--epochs", EPOCHS)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"Test error after the last epoch ({EPOCHS}): ")
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}
    after[".lock"] = before[".lock"]
    assert after == before


# Inside this process, where a run of two epochs takes less than a second.


@pytest.fixture
def quick(monkeypatch):
    """No curves: they take longer than the training of such small runs."""
    monkeypatch.setattr(loop, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("few"), train=6, test=2)


def recipe(small, model=ADD, **values):
    made = {**config.read(DIGITS), **RECIPE, "batch_size": 4, "model": model, "dataset": small, "epochs": 2, **values}
    return config.make(made)


ON = prepare.Circumstances([mx.cpu()])


def trained(made, directory):
    """The code and the content of a run that is begun, or goes on, in a directory."""
    run = prepare.resume(directory, ON) if made is None else prepare.begin(made, directory, ON)
    try:
        return run.go(), content(directory)
    finally:
        run.run.lock.release()


@pytest.fixture
def at_update(monkeypatch):
    """Something happens, once, when the learning rate of an update is asked for."""

    def arrange(number, happening):
        make, pending = prepare.schedule.make, [happening]

        def made(*arguments):
            rate = make(*arguments)

            def asked(update):
                if update == number and pending:
                    pending.pop()()
                return rate(update)

            return asked

        monkeypatch.setattr(prepare.schedule, "make", made)

    return arrange


@pytest.fixture(scope="module")
def left_alone(small, tmp_path_factory):
    """The content of a run of a recipe that nothing disturbs."""

    @functools.lru_cache
    def train(made):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "draw", lambda *_: None)
            code, found = trained(made, tmp_path_factory.mktemp("alone") / "run")
        assert code == 0
        return found

    return train


ACCUMULATING = {"model": "pyd-concat-11-0.125", "accumulate": 2}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({}, "first"),
        ({}, "middle"),
        ({}, "last of an epoch"),
        ({"model": "resnet-11-0.125"}, "middle"),
        (ACCUMULATING, "middle"),
        (ACCUMULATING, "last of an epoch"),
        ({"model": "mobilenet-11-0.125", "momentum": 0}, "middle"),
    ],
)
def test_a_signal_lets_the_update_end_and_the_run_goes_on_exactly(
    values, place, small, tmp_path, quick, at_update, left_alone
):
    made = recipe(small, **values)
    updates = 24 // (4 * made.accumulate)
    last = {"first": 1, "middle": updates + updates // 2, "last of an epoch": updates}[place]
    at_update(last, lambda: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    code, found = trained(made, tmp_path / "run")
    assert code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    done = last + (place == "last of an epoch")  # the epoch is finished first, with all that is written at its end
    position = found["position"]
    assert (position["epochs"], position["batches"]) == (done // updates, done % updates * made.accumulate)
    assert position["images"] == position["batches"] * 4
    code, found = trained(None, tmp_path / "run")
    assert code == 0
    assert_same(found, left_alone(made))


def test_a_signal_in_the_last_update_finds_a_finished_run(small, tmp_path, quick, at_update, left_alone):
    made = recipe(small)
    at_update(12, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, found = trained(made, tmp_path / "run")
    assert code == 0
    assert_same(found, left_alone(made))


class Killed(BaseException):
    """Nothing of the program handles it."""


def kill():
    raise Killed


@pytest.mark.parametrize("update", [4, 7, 12])
def test_what_is_saved_now_and_then_inside_an_epoch_is_gone_on_from(
    update, small, tmp_path, quick, at_update, left_alone, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    made = recipe(small)
    at_update(update, kill)
    with pytest.raises(Killed):
        trained(made, tmp_path / "run")
    position = State.read(tmp_path / "run" / "last.state").position
    assert 6 * position["epochs"] + position["batches"] == update - 1  # all that was done before
    code, found = trained(None, tmp_path / "run")
    assert code == 0
    assert_same(found, left_alone(made))


def test_a_second_interruption_ends_at_once(small, tmp_path, quick, at_update, inside):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # for the first one to be seen
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    at_update(3, twice)
    values = options({**RECIPE, "batch_size": 4, "model": ADD, "dataset": small, "epochs": 2})
    answer = inside("--config", DIGITS, *values, "--output", tmp_path / "run")
    assert answer.returncode == 130
    assert answer.stderr.splitlines()[-1] == "train.py: interrupted"
    assert State.read(tmp_path / "run" / "last.state").position["batches"] == 0


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [1_000, 80_000, 150_000])
def test_on_a_full_disk_a_run_ends_with_one_line_and_can_go_on(
    size,
    small,
    tmp_path,
    quick,
    left_alone,
    inside,
):
    made = recipe(small)
    values = options({**RECIPE, "batch_size": 4, "model": ADD, "dataset": small, "epochs": 2})
    directory = tmp_path / "run"
    with no_larger_files_than(size):
        answer = inside("--config", DIGITS, *values, "--output", directory)
    file = "last.state"  # with momentum the largest file, without it larger than the parameters alone
    assert_mistake(answer, f"/{file}: File too large")
    assert not list(tmp_path.glob("**/*.part"))
    if size < 100_000:  # not even the state before the first step
        assert not directory.exists()
        assert list(tmp_path.iterdir()) == []
        return
    assert sorted(path.name for path in directory.iterdir()) == [".lock", "config.yaml", "history.csv", "last.state"]
    code, found = trained(None, directory)
    assert code == 0
    assert_same(found, left_alone(made))


def test_train_py_does_not_go_on_with_a_run_that_another_process_is_at(small, tmp_path, inside):
    made = recipe(small)
    begun = prepare.begin(made, tmp_path / "run", ON)
    before = listing(tmp_path / "run")
    assert_mistake(inside("--resume", tmp_path / "run"), f"another process is training in {tmp_path / 'run'}")
    assert listing(tmp_path / "run") == before
    begun.run.lock.release()


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
    net = prepare.zoo.build(prepare.catalog.parse_name("resnet-11-0.25"), "digits")
    net.initialize()
    parameters = {name: each.data().asnumpy() for name, each in net._collect_params_with_prefix().items()}
    State(parameters, {}, State.read(path).position).write(path)


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("last.state", cut_short, "last.state is no state of a run, or a damaged one: "),
        ("last.state", spoilt_in_the_middle, "last.state is no state of a run, or a damaged one: "),
        ("last.state", lambda path: path.write_bytes(b""), "last.state is no state of a run, or a damaged one: "),
        ("last.state", lambda path: path.write_text("x"), "last.state is no state of a run, or a damaged one: "),
        ("last.state", an_array, "last.state is no state of a run, or a damaged one: "),
        ("last.state", Path.unlink, "last.state is missing"),
        ("last.state", of_another_model, "the state is of another network"),
        ("run.json", cut_short, "run.json does not describe a run: "),
        ("config.yaml", Path.unlink, "holds no run: it has no config.yaml"),
        ("config.yaml", lambda path: path.write_text("model: ["), "config.yaml, line 1, column 9: no valid YAML: "),
        ("config.yaml", lambda path: path.write_text("seed: 1\n"), "no model is given: "),
        ("", shutil.rmtree, "holds no run: it has no config.yaml"),
    ],
)
def test_a_damaged_run_is_refused_on_one_line_and_left_alone(file, spoil, words, undisturbed, tmp_path, inside):
    directory = tmp_path / "run"
    shutil.copytree(undisturbed[0], directory)
    spoil(directory / file)
    before = listing(directory) if file else None
    assert_mistake(inside("--resume", directory), words)
    assert (listing(directory) if directory.exists() else None) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "resnet-11-0.125"], f"model is 'resnet-11-0.125', but the run to resume has '{ADD}'; to train on with"),
        (
            ["--epochs", "70"],
            "epochs is 70, but the run to resume has 5; to train on with another recipe, start a run ",
        ),
        (["-d", "digits"], "dataset is 'digits', but the run to resume has 'folder:"),
        (["--device", "gpu:99"], "device 'gpu:99': "),
    ],
)
def test_a_run_does_not_go_on_as_another_one(arguments, words, undisturbed, inside):
    before = listing(undisturbed[0])
    assert_mistake(inside("--resume", undisturbed[0], *arguments), words)
    assert listing(undisturbed[0]) == before


class Stub:
    """In the place of a learner: every epoch is like the other, until the parameters of one are not finite."""

    workers = Workers()

    def __init__(self, config, bad):
        self.config, self.bad, self.passes = config, bad, 0

    def learn(self, images, targets, learning_rate):
        self.passes += 1
        return lambda: Score(1.0, 1, len(images))

    def agree(self):
        pass

    def evaluate(self, dataset):
        return Score(1.0, 1, len(dataset))

    def arrays(self):
        return {"w": np.array([np.nan if self.passes >= self.bad else self.passes], np.float32)}, {}


def test_an_epoch_whose_parameters_are_not_finite_leaves_no_trace(tmp_path, quick):
    images = np.zeros((8, 3, 32, 32), np.uint8)
    dataset = Dataset(get_task("digits"), "train", images, np.zeros(8, int), False, "nowhere")
    made = config.make({**config.read(DIGITS), "model": ADD, "epochs": 5, "batch_size": 4})
    position = loop.Position()
    run = Run.create(tmp_path / "run", config.text(made), State({"w": np.zeros(1, np.float32)}, {}, position.plain()))
    training = loop.Loop(Stub(made, bad=5), dataset, dataset, lambda update: 0.1, position, run)
    with pytest.raises(loop.Diverged, match="a parameter is no longer finite in epoch 3; the last checkpoint is kept"):
        training.go()
    assert run.state().position["epochs"] == 2
    assert run.state().parameters["w"] == 4
    assert params.read(run.directory / "last.params")["w"] == 4
    assert len(rows(run.directory / "history.csv")) == 2  # what it says is what there is
