"""A run that is interrupted, killed or out of space, inside this process, where two epochs take less than a second."""

import contextlib
import functools
import os
import signal
import time

import mxnet as mx
import numpy as np
import pytest
from helpers import (
    DIGITS,
    MODEL,
    RECIPE,
    assert_mistake,
    assert_same,
    content,
    listing,
    make_folder,
    no_larger_files_than,
    options,
    rows,
    runner,
)

from pydmobilenet import files
from pydmobilenet.checkpoints import formats
from pydmobilenet.data import Dataset, Splits, get_task
from pydmobilenet.errors import EngineError
from pydmobilenet.gluon import trainer
from pydmobilenet.training import config, loop, session
from pydmobilenet.training.checkpoint import Run, State
from pydmobilenet.training.loader import Loader
from pydmobilenet.training.trainer import Score


def state_of(run):
    return State.read(run.directory / "last.state")


@pytest.fixture
def inside(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@pytest.fixture
def quick(monkeypatch):
    """No curves: they take longer than the training of such small runs."""
    monkeypatch.setattr(loop, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("few"), train=6, test=2)


def recipe(small, model=MODEL, **values):
    made = {**config.read(DIGITS), **RECIPE, "batch_size": 4, "model": model, "dataset": small, "epochs": 2, **values}
    return config.make(made)


def opened(made, directory, resumed=False):
    return session.opened(
        session.Session(made, directory, resumed), functools.partial(trainer.make, contexts=[mx.cpu()])
    )


def trained(made, directory):
    """The code and the content of a run that is begun, or goes on, in a directory."""
    with opened(made or session.read_config(directory), directory, resumed=made is None) as run:
        return run.run(), content(directory)


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


ACCUMULATING = {"model": "pyd-concat-11-0.125", "accumulation_steps": 2}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({}, "first"),
        ({}, "middle"),
        ({}, "last of an epoch"),
        (ACCUMULATING, "middle"),
        ({"model": "mobilenet-11-0.125", "momentum": 0}, "middle"),
    ],
)
def test_a_signal_lets_the_update_end_and_the_run_goes_on_exactly(
    values, place, small, tmp_path, quick, at_update, left_alone
):
    made = recipe(small, **values)
    updates = 24 // (4 * made.accumulation_steps)
    last = {"first": 1, "middle": updates + updates // 2, "last of an epoch": updates}[place]
    at_update(last, lambda: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    code, found = trained(made, tmp_path / "run")
    assert code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    progress = found["progress"]
    assert (progress["epochs"], progress["batches"]) == (last // updates, last % updates * made.accumulation_steps)
    assert progress["images"] == progress["batches"] * 4
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


@pytest.mark.parametrize("update", [4, 7])
def test_what_is_saved_now_and_then_inside_an_epoch_is_gone_on_from(
    update, small, tmp_path, quick, at_update, left_alone, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    made = recipe(small)
    at_update(update, kill)
    with pytest.raises(Killed):
        trained(made, tmp_path / "run")
    progress = State.read(tmp_path / "run" / "last.state").progress
    assert 6 * progress["epochs"] + progress["batches"] == update - 1  # all that was done before
    code, found = trained(None, tmp_path / "run")
    assert code == 0
    assert_same(found, left_alone(made))


@pytest.mark.parametrize(("epoch", "killed"), [(1, "draw"), (2, "files.write")])
def test_killed_between_the_save_and_the_show_a_run_shows_the_epoch_again(
    epoch, killed, small, tmp_path, monkeypatch, left_alone
):
    drawn = []

    def draw(history, *_):
        drawn.append(len(history.rows))
        if killed == "draw" and epoch == len(history.rows):
            raise Killed

    def write(path, content, write=files.write):
        if killed == "files.write" and path.name == "history.csv" and drawn[-1] == epoch:
            raise Killed
        write(path, content)

    made = recipe(small)
    monkeypatch.setattr(loop, "draw", draw)
    monkeypatch.setattr(files, "write", write)
    with pytest.raises(Killed):
        trained(made, tmp_path / "run")
    killed = ""
    assert State.read(tmp_path / "run" / "last.state").progress["epochs"] == epoch  # nothing of it is lost
    assert len(rows(tmp_path / "run" / "history.csv")) == epoch - 1
    drawn.clear()
    code, found = trained(None, tmp_path / "run")
    assert code == 0
    assert_same(found, left_alone(made))
    assert drawn == list(range(epoch, 3))  # the one that was lost, and those that followed
    drawn.clear()
    trained(None, tmp_path / "run")
    assert drawn == []  # once is enough


def test_what_cannot_be_drawn_is_one_warning_and_costs_no_epoch(small, tmp_path, monkeypatch, inside, left_alone):
    def broken(*_):
        raise RuntimeError("In FT2Font: Could not set the fontsize\nerror code 0x97")

    monkeypatch.setattr(loop, "draw", broken)
    values = options({**RECIPE, "batch_size": 4, "model": MODEL, "dataset": small, "epochs": 2})
    words = "no curves: RuntimeError: In FT2Font: Could not set the fontsize error code 0x97"
    with pytest.warns(UserWarning, match="^no curves") as warned:
        answer = inside("--config", DIGITS, *values, "--output", tmp_path / "run", "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == 4
    shown = {str(warning.message) for warning in warned if warning.category is UserWarning}
    shown -= {text for text in shown if text.startswith("the faster training step is left out")}  # with AVX-512
    assert shown == {words}  # of equal ones, Python shows the first
    assert_same(content(tmp_path / "run"), left_alone(recipe(small)))


def test_a_second_interruption_ends_at_once(small, tmp_path, quick, at_update, inside):
    def twice():
        first = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is first:  # until it is seen: two that are pending are one
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)  # which the second one ends
        raise AssertionError("a second interruption has ended nothing")

    at_update(3, twice)
    values = options({**RECIPE, "batch_size": 4, "model": MODEL, "dataset": small, "epochs": 2})
    answer = inside("--config", DIGITS, *values, "--output", tmp_path / "run")
    assert answer.returncode == 130
    assert answer.stderr.splitlines()[-1] == "train.py: interrupted"
    assert State.read(tmp_path / "run" / "last.state").progress["batches"] == 0


def break_the_engine():
    """As a kernel that cannot be made does: the error comes later, from the engine's own threads."""
    mx.nd.linalg.potrf(mx.nd.array([[-1.0]]))


@pytest.mark.parametrize("update", [1, 9], ids=["first", "in the second epoch"])
def test_what_an_engine_throws_is_one_line_and_the_run_goes_on_from_its_last_checkpoint(
    update, small, tmp_path, quick, at_update, left_alone, inside
):
    made = recipe(small)
    at_update(update, break_the_engine)
    values = options({**RECIPE, "batch_size": 4, "model": MODEL, "dataset": small, "epochs": 2})
    answer = inside("--config", DIGITS, *values, "--output", tmp_path / "run")
    assert answer.returncode == 1
    *_, line = answer.stderr.splitlines()
    assert line.startswith("train.py: error: MXNet has failed: ")
    assert "Traceback" not in answer.stderr
    if update == 1:  # it never began
        assert list(tmp_path.iterdir()) == []
        return
    assert State.read(tmp_path / "run" / "last.state").progress["epochs"] == (update > 6)
    code, found = trained(None, tmp_path / "run")
    assert code == 0
    assert_same(found, left_alone(made))


def test_what_an_engine_throws_after_a_signal_is_an_interruption(small, tmp_path, quick, at_update, inside):
    def interrupt():  # as Ctrl-C does to a compiler that the engine has called
        os.kill(os.getpid(), signal.SIGTERM)
        break_the_engine()

    at_update(9, interrupt)
    values = options({**RECIPE, "batch_size": 4, "model": MODEL, "dataset": small, "epochs": 2})
    answer = inside("--config", DIGITS, *values, "--output", tmp_path / "run")
    assert answer.returncode == 143
    assert "interrupted; to go on: " in answer.stderr.splitlines()[-1]


def test_a_run_that_was_there_before_stays_whatever_the_engine_does(small, tmp_path, quick, at_update, left_alone):
    made = recipe(small)
    with opened(made, tmp_path / "run"):
        pass  # as one that is killed before its first update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.GluonTrainer, "train_step", lambda *_: break_the_engine() or mx.nd.waitall())
        with pytest.raises(EngineError, match="MXNet has failed"):
            trained(None, tmp_path / "run")
    code, found = trained(None, tmp_path / "run")
    assert code == 0
    assert_same(found, left_alone(made))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [80_000, 150_000])
def test_on_a_full_disk_a_run_ends_with_one_line_and_can_go_on(
    size,
    small,
    tmp_path,
    quick,
    left_alone,
    inside,
):
    made = recipe(small)
    values = options({**RECIPE, "batch_size": 4, "model": MODEL, "dataset": small, "epochs": 2})
    directory = tmp_path / "run"
    with no_larger_files_than(size):
        answer = inside("--config", DIGITS, *values, "--output", directory)
    # The state with momentum is the largest file; without it, it is larger than the parameters alone.
    assert_mistake(answer, "/last.state: File too large")
    assert not list(tmp_path.glob("**/*.part"))
    if size < 100_000:  # not even the state before the first step
        assert not directory.exists()
        assert list(tmp_path.iterdir()) == []
        return
    assert sorted(path.name for path in directory.iterdir()) == [".lock", "config.yaml", "last.state", "run.json"]
    code, found = trained(None, directory)
    assert code == 0
    assert_same(found, left_alone(made))


def test_of_two_runs_with_one_output_the_first_is_trained_and_the_other_told(
    small, tmp_path, quick, inside, monkeypatch
):
    made, directory = recipe(small), tmp_path / "run"
    describe, first = session._describe, []
    with contextlib.ExitStack() as stack:

        def faster(*arguments):  # when all has been checked, another process makes the directory
            monkeypatch.setattr(session, "_describe", describe)
            first.append(stack.enter_context(opened(made, directory)))
            return describe(*arguments)

        monkeypatch.setattr(session, "_describe", faster)
        values = options({**RECIPE, "batch_size": 4, "model": MODEL, "dataset": small, "epochs": 2})
        answer = inside("--config", DIGITS, *values, "--output", directory)
        assert_mistake(answer, f"{directory} exists already: pass --resume {directory}, or another --output")
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert first[0].run() == 0
    assert State.read(directory / "last.state").progress["epochs"] == 2


def test_train_py_does_not_go_on_with_a_run_that_another_process_is_at(small, tmp_path, inside):
    made = recipe(small)
    with opened(made, tmp_path / "run"):
        before = listing(tmp_path / "run")
        assert_mistake(inside("--resume", tmp_path / "run"), f"another process is training in {tmp_path / 'run'}")
        assert listing(tmp_path / "run") == before


class Stub:
    """A trainer: every epoch is like the other, until the parameters of one are not finite."""

    rank, world_size = 0, 1

    def __init__(self, config, bad):
        self.config, self.bad, self.passes = config, bad, 0

    def loader(self, dataset, batches):
        return Loader(dataset, self.config, batches)

    def train_step(self, images, targets, learning_rate):
        self.passes += 1
        return lambda: Score(1.0, 1, len(images))

    def sync_batch_norm(self):
        pass

    def evaluate(self, dataset):
        return Score(1.0, 1, len(dataset))

    def all_reduce(self, values):
        return values

    def close(self):
        pass

    def state(self):
        return {"w": np.array([np.nan if self.passes >= self.bad else self.passes], np.float32)}, {}


def test_an_epoch_whose_parameters_are_not_finite_leaves_no_trace(tmp_path, quick):
    images = np.zeros((8, 3, 32, 32), np.uint8)
    dataset = Dataset(get_task("digits"), "train", images, np.zeros(8, int), False, "nowhere")
    made = config.make({**config.read(DIGITS), "model": MODEL, "epochs": 5, "batch_size": 4})
    splits, progress = Splits(dataset, None, dataset), loop.Progress()
    state = State({"w": np.zeros(1, np.float32)}, {}, progress.to_dict())
    run = Run.create(tmp_path / "run", config.text(made), state, {"model": MODEL, "dataset": "digits"})
    training = loop.Loop(Stub(made, bad=5), splits, progress, run.directory, run)
    with pytest.raises(loop.Diverged, match="a parameter is no longer finite in epoch 3; the last checkpoint is kept"):
        training.run()
    assert state_of(run).progress["epochs"] == 2
    assert state_of(run).parameters["w"] == 4
    assert formats.read_params(run.directory / "last.params")["w"] == 4
    assert len(rows(run.directory / "history.csv")) == 2  # what it says is what there is
