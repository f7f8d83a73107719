"""A session of training: what it refuses before it reads, what it leaves behind, and how it goes on by itself."""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import MODEL, TRAINERS, assert_mistake, listing, make_classes, make_folder, options, rows, runner

import pydmobilenet
from pydmobilenet import processes
from pydmobilenet.data import images
from pydmobilenet.errors import InvalidValueError, UnusableError
from pydmobilenet.training import checkpoint, config, loop, session

pytestmark = pytest.mark.trains

TINY = {"model": MODEL, "epochs": 2, "batch_size": 4, "warmup_epochs": 0, "seed": 5}
ONCE = {**TINY, "mixup_off_epochs": 0, "device": "cpu", "progress": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No curves: they take longer than the training of such small runs."""
    monkeypatch.setattr(loop, "draw", lambda *_: None)


@pytest.fixture
def inside(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("few"), train=6, test=2)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run that has come to its end; each test copies it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw", lambda *_: None)
        return pydmobilenet.train(dataset=folder, output=tmp_path_factory.mktemp("runs") / "run", **ONCE).directory


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unread(monkeypatch):
    """No picture may be decoded."""

    def to_picture(content, name, *_):
        raise AssertionError(f"{name} is decoded")

    monkeypatch.setattr(images, "to_picture", to_picture)


def trainer_class(engine):
    if engine == "gluon":
        from pydmobilenet.gluon.trainer import GluonTrainer

        return GluonTrainer
    from pydmobilenet.pytorch.trainer import PyTorchTrainer

    return PyTorchTrainer


# Threads, and what is left behind.


@pytest.mark.parametrize("engine", TRAINERS)
def test_a_thread_trains_and_leaves_signals_alone(engine, folder, tmp_path, monkeypatch):
    found, before = [], [signal.getsignal(number) for number in processes.STOP_SIGNALS]
    seen = []
    monkeypatch.setattr(loop, "draw", lambda *_: seen.append([signal.getsignal(n) for n in processes.STOP_SIGNALS]))

    def work():
        found.append(pydmobilenet.train(dataset=folder, engine=engine, output=tmp_path / "run", **ONCE))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [row.epoch for row in found[0].history.rows] == [1, 2]
    assert seen == [before] * 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("engine", TRAINERS)
def test_whatever_fails_in_the_first_batch_leaves_nothing_behind(engine, error, folder, tmp_path, monkeypatch):
    def broken(*_):
        raise error("broken")

    arguments = {**ONCE, "dataset": folder, "engine": engine, "output": tmp_path / "run", "epochs": 1}
    with monkeypatch.context() as patch:
        patch.setattr(trainer_class(engine), "train_step", broken)
        with pytest.raises(BaseException, match="broken"):
            pydmobilenet.train(**arguments)
    assert list(tmp_path.iterdir()) == []
    assert len(pydmobilenet.train(**arguments).history.rows) == 1  # nothing blocks the next try


def test_what_fails_between_the_directory_and_the_first_batch_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def broken(*_):
        raise UnusableError("no room for events")

    monkeypatch.setattr(session, "Loop", broken)
    with pytest.raises(UnusableError, match="no room for events"):
        pydmobilenet.train(dataset=folder, output=tmp_path / "run", **ONCE)
    assert list(tmp_path.iterdir()) == []


def test_after_its_first_batch_a_run_stays_whatever_happens(folder, tmp_path, monkeypatch):
    def broken(self):
        raise OSError("broken")

    monkeypatch.setattr(loop.Loop, "_finish_epoch", broken)
    with pytest.raises(OSError, match="broken"):
        pydmobilenet.train(dataset=folder, output=tmp_path / "run", **ONCE)
    assert (tmp_path / "run" / "last.state").is_file()
    checkpoint.Run(tmp_path / "run").lock.release()  # nobody has it


def test_a_loss_that_is_not_finite_at_once_claims_no_checkpoint(folder, tmp_path, monkeypatch, inside):
    monkeypatch.setattr(loop.Loop, "_add", lambda self, score: add(self, score._replace(loss=np.nan)))
    answer = inside(*options({**TINY, "dataset": folder, "output": tmp_path / "run", "device": "cpu"}))
    assert answer.returncode == 1
    assert answer.stderr.endswith(": try a smaller one\n")
    assert list(tmp_path.iterdir()) == []


add = loop.Loop._add


# What is refused before the images are read.


def other_weights(tmp_path):
    pydmobilenet.get_model("resnet-11-0.125", "digits").save_parameters(str(tmp_path / "other.params"))
    return tmp_path / "other.params"


def a_file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file" / "run"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", a_file], "/file/run: Not a directory"),
        (["--output", "/proc/nowhere/run"], "cannot make the directory /proc/nowhere/run: "),
        (["--output", lambda tmp_path: tmp_path], " exists already: pass --resume "),
        (["--output", lambda tmp_path: tmp_path / ("x" * 300)], "File name too long"),
        (["--tensorboard"], "pip install 'pydmobilenet[tensorboard]'"),
        (["--engine", "onnxruntime"], "unknown engine for training 'onnxruntime'"),
        (["--engine", "gluon", "--dtype", "float16"], "dtype 'float16' needs a GPU"),
        (["--batch-size", "25"], "batch_size 25 times accumulation_steps 1 is more than the 24 training images"),
        (["--accumulation-steps", "7"], "is more than the 24 training images; nearest: batch_size 3"),
        (["--weights", other_weights], "the file is of resnet-11-0.125 with 10 classes"),
        (["--weights", "/nowhere.params"], "no such parameter file or run: /nowhere.params"),
    ],
)
@pytest.mark.gluon
def test_a_new_run_is_refused_before_a_picture_is_decoded(
    arguments, words, folder, tmp_path, inside, unread, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    arguments = [argument(tmp_path) if callable(argument) else argument for argument in arguments]
    before = sorted(tmp_path.iterdir())
    standard = options({**TINY, "dataset": folder, "output": tmp_path / "runs" / "run", "device": "cpu"})
    assert_mistake(inside(*standard, *arguments), words)
    assert sorted(tmp_path.iterdir()) == before


def test_an_unknown_class_among_the_test_images_is_refused_before_a_picture_is_decoded(tmp_path, inside, unread):
    make_classes(tmp_path / "photos", "ab", {"train": 4})
    make_classes(tmp_path / "photos", "abc", {"test": 2})
    answer = inside(*options({**TINY, "output": tmp_path / "run", "dataset": tmp_path / "photos", "device": "cpu"}))
    assert_mistake(answer, "/photos/test/c: unknown class 'c'")


def test_pictures_are_decoded_once_all_else_fits(folder, tmp_path, unread):
    with pytest.raises(AssertionError, match="is decoded"):
        pydmobilenet.train(dataset=folder, output=tmp_path / "run", **ONCE)


ALONE = {**ONCE, "epochs": 1, "val_fraction": 0.2, "test_fraction": 0.2}


def begun(photos, output, skip_bad=False):
    pydmobilenet.train(dataset=photos, output=output, skip_bad=skip_bad, **ALONE)


@pytest.mark.parametrize("layout", [{".": 10}, {"train": 10, "test": 3}, {"train": 6, "val": 2, "test": 2}])
def test_other_numbers_of_files_are_refused_before_a_picture_is_decoded(layout, tmp_path, inside, monkeypatch):
    photos = make_classes(tmp_path / "photos", "ab", layout)
    values = dict(ALONE)
    if "." not in layout:
        del values["test_fraction"]
    if "val" in layout:
        del values["val_fraction"]
    pydmobilenet.train(dataset=photos, output=tmp_path / "run", **values)
    monkeypatch.setattr(images, "to_picture", lambda *_: pytest.fail("decoded"))
    for split, number in layout.items():
        folder, count = photos / split / "a", 2 * number
        shutil.copy(folder / "00.png", folder / "more.png")
        if split != "train":  # copies of other splits' images were left out there
            answer = inside("--resume", tmp_path / "run", "--device", "cpu")
            assert_mistake(answer, f": {count + 1} images instead of {count}; --skip-bad skips unreadable ones; to ")
        for name in ("00.png", "01.png"):
            (folder / name).rename(tmp_path / name)
        for more in ([], ["--skip-bad"]):
            answer = inside("--resume", tmp_path / "run", "--device", "cpu", *more)
            assert_mistake(answer, f" data has changed since the run began: {count - 1} images instead of {count}; to ")
        for name in ("00.png", "01.png"):
            (tmp_path / name).rename(folder / name)
        (folder / "more.png").unlink()


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_a_run_that_has_passed_over_pictures_goes_on(tmp_path, inside):
    photos = make_classes(tmp_path / "photos", "ab", {".": 10})
    (photos / "a" / "bad.png").write_bytes(b"no picture")
    (photos / "a" / "bad.png").rename(tmp_path / "bad.png")
    begun(photos, tmp_path / "run")
    (tmp_path / "bad.png").rename(photos / "a" / "bad.png")
    answer = inside("--resume", tmp_path / "run", "--device", "cpu")
    assert_mistake(answer, "21 images instead of 20; --skip-bad skips unreadable ones")
    answer = inside("--resume", tmp_path / "run", "--device", "cpu", "--skip-bad")
    assert answer.returncode == 0, answer.stderr


# Going on by itself.


@pytest.fixture
def unhandled():
    """SIGHUP and SIGUSR1 are nobody's, even where nohup has started the tests."""
    earlier = {number: signal.signal(number, signal.SIG_DFL) for number in processes.POLITE}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("unhandled")
@pytest.mark.parametrize(("number", "code"), [("SIGUSR1", 138), ("SIGTERM", 143)])
def test_with_resume_auto_one_command_begins_goes_on_and_ends(
    number, code, folder, tmp_path, inside, at_update, finished
):
    def twice():
        for _ in range(2 if number != "SIGTERM" else 1):  # a terminal that is closed sends more than one
            os.kill(os.getpid(), getattr(signal, number))

    at_update(3, twice)
    command = [*options({**TINY, "dataset": folder, "output": tmp_path / "run", "resume": "auto", "device": "cpu"})]
    assert inside(*command).returncode == code
    assert json.loads((tmp_path / "run" / "run.json").read_text())["checkpoints"] == {}  # in the first epoch
    answer = inside(*command)
    assert answer.returncode == 0, answer.stderr
    assert f"resuming {tmp_path / 'run'} after 0 of 2 epochs" in answer.stderr
    assert (tmp_path / "run" / "last.params").read_bytes() == (finished / "last.params").read_bytes()
    before = listing(tmp_path / "run")
    answer = inside(*command)  # of a finished run
    assert answer.returncode == 0
    assert answer.stdout.startswith("Validation error after the last epoch (2): ")
    assert listing(tmp_path / "run") == before


def test_a_finished_run_with_validation_images_stays_as_it_is(tmp_path):
    photos = make_classes(tmp_path / "photos", "ab", {".": 10})
    begun(photos, tmp_path / "run")
    before = listing(tmp_path / "run")
    assert pydmobilenet.train(dataset=photos, output=tmp_path / "run", resume="auto", **ALONE).test_error is not None
    assert listing(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 3}, "epochs is 3, but the run began with 2"),
        ({"model": "resnet-11-0.125"}, "model is 'resnet-11-0.125', but the run began with "),
        ({"config": "digits"}, r"\w+ is .*, but the run began with "),
        ({"weights": "itself"}, "began from msra, seed 5, not from the weights "),
    ],
)
def test_resume_auto_goes_on_with_the_same_recipe_alone(change, words, run, folder):
    if "weights" in change:
        change = {"weights": run / "last.params", "config": "folder"}
    before = listing(run)
    with pytest.raises(InvalidValueError, match=words):
        pydmobilenet.train(**{**ONCE, "dataset": folder, "output": run, "resume": "auto", **change})
    assert listing(run) == before


def test_resume_auto_knows_the_weights_that_a_run_began_from(run, folder, tmp_path):
    arguments = {**ONCE, "dataset": folder, "epochs": 1, "body_rate": 1, "resume": "auto", "output": tmp_path / "tuned"}
    pydmobilenet.train(weights=run, **arguments)
    assert len(pydmobilenet.train(weights=run, **arguments).history.rows) == 1
    with pytest.raises(InvalidValueError, match=r"began from .*best\.params, not from the weights .*last\.params"):
        pydmobilenet.train(weights=run / "last.params", **arguments)


def test_resume_auto_takes_the_place_of_nothing_else(folder, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UnusableError, match="exists already"):
        pydmobilenet.train(dataset=folder, output=tmp_path / "run", resume="auto", **ONCE)


def test_a_directory_may_be_called_auto(tmp_path, monkeypatch, inside):
    monkeypatch.chdir(tmp_path)
    assert_mistake(inside("--resume", "./auto"), "auto holds no run")


@pytest.mark.parametrize(("count", "resumed"), [("0", False), ("1", True)])
def test_a_process_that_torchrun_has_started_again_goes_on_by_itself(count, resumed, run, folder, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "TORCHELASTIC_RESTART_COUNT": count}.items():
        monkeypatch.setenv(name, value)
    given = config.parse({**TINY, "dataset": folder})
    if resumed:
        assert session.plan(given, output=run).resumed
        return
    with pytest.raises(UnusableError, match="exists already"):
        session.plan(given, output=run)


def test_processes_that_see_different_states_do_not_train(folder, tmp_path, monkeypatch):
    pytest.importorskip("mxnet", exc_type=ImportError)
    monkeypatch.setattr(trainer_class("gluon"), "all_reduce", lambda self, values: values + 1)
    with pytest.raises(UnusableError, match=r"see \S+ in different states"):
        pydmobilenet.train(dataset=folder, output=tmp_path / "run", engine="gluon", **ONCE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unhandled")
def test_a_signal_that_somebody_ignores_is_left_to_them():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    stopped = []
    with processes.handle_signals(stopped.append):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stopped == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


# What is recorded.


def test_a_call_in_python_is_recorded_as_it_can_be_typed_again(folder, run):
    (recorded,) = json.loads((run / "run.json").read_text())["sessions"]
    command = recorded["command"]
    assert command.startswith(f"pydmobilenet.train({MODEL!r}, {folder!r}, output='")
    call = []
    eval(command, {"pydmobilenet": type("", (), {"train": lambda *args, **named: call.append((args, named))})})
    ((args, named),) = call
    assert args == (MODEL, folder)
    assert {**named, "output": None} == {
        **{key: value for key, value in ONCE.items() if key != "model"},
        "output": None,
    }
    pydmobilenet.train(resume=run, device="cpu")
    assert rows(run / "history.csv")
