"""train.py, run as a user runs it: what it refuses, what it leaves behind, what it starts from."""

import csv
import json
import re
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
import yaml
from helpers import DIGITS, MODEL, ROOT, TINY, assert_mistake, make_folder, options, runner, train, train_inside

import pydmobilenet
from pydmobilenet.checkpoints import formats, weights
from pydmobilenet.data import get_dataset
from pydmobilenet.errors import UnusableError
from pydmobilenet.training import config, loop, session
from pydmobilenet.training.checkpoint import State
from pydmobilenet.training.loop import Loop


@pytest.fixture
def inside(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder):
    """A run that was trained to its end, and what it printed."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    values = options({**TINY, "keep_every": 2, "model": MODEL, "dataset": folder, "seed": 1})
    return directory, train_inside("--config", DIGITS, *values, "--output", directory)


def test_help_fits_two_screens_and_names_every_option(inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    answer = inside("--help")
    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100
    for key in config.FIELDS:
        assert f"--{key.replace('_', '-')} " in answer.stdout
    for option in (
        *("config", "device", "data-dir", "output", "resume", "pretrained", "init", "tensorboard"),
        *("quiet", "verbose", "skip-bad"),
    ):
        assert f"--{option} " in answer.stdout
    assert {"0", "1", "2", "130", "143"} <= set(answer.stdout.split("exit code:")[1].split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model is given: add --model NAME"),
        (["-m", "pyd-cat-56-0.5"], "unknown model 'pyd-cat-56-0.5'; nearest: pyd-concat-56-0.5"),
        (["-m", MODEL, "-d", "cifar11"], "unknown data set 'cifar11'; nearest: cifar10"),
        (["-m", MODEL, "-d", "folder:/nowhere"], "no such folder: /nowhere"),
        (["-m", MODEL, "--epochs", "0"], "epochs: '0' (allowed: a whole number from 1 to "),
        (["-m", MODEL, "--epochs", "5", "--warmup-epochs", "5"], "warmup_epochs: '5' (allowed: a number below the 5"),
        (["-m", MODEL, "--config", "configs/digit.yaml"], "no such file: configs/digit.yaml; nearest: digits.yaml"),
        (["-m", MODEL, "--config", "bad.yaml"], "bad.yaml: unknown key 'epoch'; nearest: epochs"),
        (
            ["-m", MODEL, "--config", "digits", "--warmup-epochs", "20"],
            "warmup_epochs: '20' (allowed: a number below the 20",
        ),
        (["-m", MODEL, "--config", "train.py"], "train.py: no valid YAML: "),
        (["-m", MODEL, "--data-dir", "/nowhere"], "argument --data-dir: no such directory: /nowhere"),
        (["-m", MODEL, "--output", "configs"], "configs exists already: pass --resume configs, or another --output"),
        (["--resume", "x", "--output", "y"], "--resume reads the run's own settings: leave out --output, --config"),
        (["--resume", "x", "--pretrained"], "--resume reads the run's own settings: leave out --output, --config"),
        (["--pretrained", "--init", "x"], "argument --weights/--init: not allowed with argument --pretrained"),
        (
            ["--weights-dir", ".", "-m", MODEL],
            "--weights-dir is only used with --weights published",
        ),
        (["--modle", MODEL], "unrecognized arguments: --modle; nearest: --model"),
        (["--lr", "0.1"], "unrecognized arguments: --lr; nearest: --learning-rate"),
        (["--num_classes=10"], "unrecognized arguments: --num_classes=10; nearest: --dataset"),
        (["--ctx", "gpu"], "unrecognized arguments: --ctx; nearest: --device"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, tmp_path, inside, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    arguments = [tmp_path / "bad.yaml" if argument == "bad.yaml" else argument for argument in arguments]
    answer = inside(*arguments)
    assert_mistake(answer, words)
    assert len(answer.stderr.splitlines()) == 1  # nothing is computed that far


def damaged(tmp_path):
    (tmp_path / "damaged.params").write_bytes(b"\x12\x01" + bytes(6) + b"and so on")
    return tmp_path / "damaged.params"


def of_another_model(tmp_path):
    net = pydmobilenet.get_model("resnet-11-0.125", "digits")
    net.save_parameters(str(tmp_path / "other.params"))
    return tmp_path / "other.params"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "gpu:99"], "device 'gpu:99': "),
        (["--device", "tpu"], "unknown device 'tpu'; nearest: gpu, cpu (allowed: auto, cpu, gpu, gpu:N, mps)"),
        (["--device", "cpu:0,0"], "device 'cpu:0,0' repeats a number; nearest: cpu:0"),
        (["--device", "cpu:0,1,2"], "batch_size is 32 (allowed: a multiple of 3"),
        (["--dtype", "float16", "--device", "cpu"], "dtype 'float16' needs a GPU (allowed on a CPU: float32)"),
        (["--batch-size", "2000"], "is more than the 1437 training images; nearest: batch_size 1437"),
        (["--batch-size", "200", "--accumulation-steps", "8"], "1437 training images; nearest: batch_size 179"),
        (["-d", "cifar10"], "the train images of CIFAR-10 are not in "),
        (["-d", "imagenet32"], "no free address"),
        (
            ["-d", "cifar10", "--pretrained"],
            f"no weights of {MODEL} are published for cifar10; pass others by --weights FILE",
        ),
        (["--init", "/nowhere.params"], "no such parameter file or run: /nowhere.params"),
        (["--init", damaged], "damaged.params is no MXNet parameter file, or a damaged one"),
        (["--init", of_another_model], "the file is of resnet-11-0.125 with 10 classes"),
        (["--output", "/proc/nowhere/run"], "cannot make the directory /proc/nowhere/run: "),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_line_and_exit_code_2(arguments, words, tmp_path, inside):
    (tmp_path / "data").mkdir()
    output = tmp_path / "runs" / "run"
    arguments = [argument(tmp_path) if callable(argument) else argument for argument in arguments]
    standard = ["-m", MODEL, "-d", "digits", "--data-dir", tmp_path / "data", "--output", output]
    assert_mistake(inside(*standard, *arguments), words)
    assert not output.parent.exists()


def test_events_without_tensorboardx_are_refused_before_anything_is_written(tmp_path, inside, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    answer = inside("-m", MODEL, "-d", "digits", "--output", tmp_path / "run", "--tensorboard")
    assert_mistake(answer, "pip install 'pydmobilenet[tensorboard]'")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_that_is_to_use_a_gpu_where_there_is_none_ends_alike(tmp_path):
    answer = train("-m", MODEL, "-d", "digits", "--device", "gpu:99", cwd=tmp_path)
    assert_mistake(answer, "device 'gpu:99': ")
    assert not list(tmp_path.iterdir())


def test_a_run_s_configuration_is_the_recipe_and_what_was_given(finished, folder):
    directory, answer = finished
    assert answer.returncode == 0, answer.stderr
    given = {**TINY, "keep_every": 2, "model": MODEL, "dataset": folder, "seed": 1}
    saved = config.read(directory / "config.yaml")
    assert saved == vars(config.make({**config.read(DIGITS), **given}))
    assert list(yaml.safe_load((directory / "config.yaml").read_text())) == list(config.FIELDS)


def test_last_and_best_and_every_second_epoch_are_kept(finished):
    directory, _ = finished
    assert sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")) == [
        "best.params",
        "config.yaml",
        "curves.png",
        "epoch-0002.params",
        "epoch-0004.params",
        "history.csv",
        "last.params",
        "last.state",
        "run.json",
    ]
    state = State.read(directory / "last.state")
    rows = state.progress["history"]
    best = min(rows, key=lambda row: row["test_error"])
    metadata = json.loads((directory / "run.json").read_text())
    kept = {"last.params": 4, "best.params": best["epoch"], "epoch-0002.params": 2, "epoch-0004.params": 4}
    assert {name: known["epoch"] for name, known in metadata["checkpoints"].items()} == kept
    for name, epoch in kept.items():
        assert metadata["checkpoints"][name]["test_error"] == rows[epoch - 1]["test_error"]
    last = formats.read_params(directory / "last.params")
    assert last.keys() == state.parameters.keys()
    assert all(last[name].tobytes() == state.parameters[name].tobytes() for name in last)
    assert (directory / "epoch-0004.params").read_bytes() == (directory / "last.params").read_bytes()
    assert (directory / "epoch-0002.params").read_bytes() != (directory / "last.params").read_bytes()


@pytest.mark.parametrize("file", ["best.params", "last.params", "epoch-0002.params"])
def test_a_checkpoint_loads_into_a_fresh_network_and_has_its_recorded_error(finished, file):
    directory, _ = finished
    metadata = json.loads((directory / "run.json").read_text())
    net = pydmobilenet.get_model(metadata["model"], metadata["dataset"])
    net.load_parameters(str(directory / file))
    test = get_dataset(metadata["dataset"], "test")
    answers = net(mx.nd.array(test.normalised())).asnumpy().argmax(axis=1)
    assert 100 * (answers != test.labels).mean() == pytest.approx(metadata["checkpoints"][file]["test_error"])
    assert metadata["classes"] == list(test.task.classes)


def test_what_is_printed_is_lines_for_people_and_nothing_for_terminals(finished):
    directory, answer = finished
    assert "\x1b" not in answer.stdout + answer.stderr
    assert "\r" not in answer.stdout + answer.stderr
    rows = list(csv.DictReader((directory / "history.csv").open()))
    lines = answer.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [f"epoch {epoch}/4" for epoch in range(1, 5)]
    for line, row in zip(lines, rows):
        assert f"test {float(row['test_error']):5.2f} %" in line
    best = min(rows, key=lambda row: float(row["test_error"]))
    assert lines[4] == (
        f"Test error after the last epoch (4): {float(rows[3]['test_error']):.2f} %; "
        f"the best, after epoch {best['epoch']}: {float(best['test_error']):.2f} %."
    )
    assert [re.split(": | ", line)[0] for line in answer.stderr.splitlines()] == ["Training", "weights", "data", "data"]


@pytest.mark.parametrize("rate", ["1e8", "1e38"])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_state(rate, folder, tmp_path, inside, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "learning_rates", lambda *_: lambda update: float(rate))  # which no recipe may ask for
    recipe = options({**TINY, "warmup_epochs": 0, "model": MODEL, "dataset": folder})
    answer = inside("--config", DIGITS, *recipe, "--output", run)
    assert answer.returncode == 1, answer
    *_, line = answer.stderr.splitlines()
    assert line.startswith("train.py: error: the loss became ") or "a parameter is no longer finite" in line
    assert "the last checkpoint is kept" in line
    assert all(
        line.startswith(("Training on ", "data: ", "weights: ", "train.py: ")) for line in answer.stderr.splitlines()
    )
    state = State.read(run / "last.state")
    arrays = [*state.parameters.values(), *state.momentum.values()]
    assert all(np.isfinite(array).all() for array in arrays)
    assert not list(run.glob("*.part"))
    again = inside("--resume", run)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (1, line)


def test_no_run_starts_from_weights_that_are_not_finite(finished, folder, tmp_path, inside):
    arrays = {name: array.copy() for name, array in formats.read_params(finished[0] / "last.params").items()}
    arrays["stem.conv.weight"][0, 0, 0, 0] = np.nan
    (tmp_path / "nan.params").write_bytes(formats.dump_params(arrays))
    recipe = options({**TINY, "model": MODEL, "dataset": folder})
    answer = inside("--config", DIGITS, *recipe, "--init", tmp_path / "nan.params", "--output", tmp_path / "run")
    assert_mistake(answer, "nan.params holds numbers that are not finite: in 'stem.conv.weight'")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def begun(monkeypatch, inside):
    """train.py, which ends before its first step: what it says, and the parameters that it would start from."""

    def begin(directory, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "run", lambda self: 143)
            answer = inside(*arguments, "--output", directory)
        assert answer.returncode == 143, answer.stderr
        return answer, State.read(directory / "last.state").parameters

    return begin


def head(name):
    return name.startswith("head.dense.")


def test_a_run_starts_from_the_weights_of_a_file(finished, folder, tmp_path, begun):
    file = finished[0] / "best.params"
    answer, parameters = begun(tmp_path / "run", "-m", MODEL, "-d", folder, "--batch-size", 8, "--init", file)
    given = formats.read_params(file)
    assert parameters.keys() == given.keys()
    assert all(parameters[name].tobytes() == given[name].tobytes() for name in given)
    assert "anew" not in answer.stderr


def test_a_head_of_another_size_is_made_anew_which_is_said(finished, tmp_path, begun):
    file = finished[0] / "best.params"
    answer, parameters = begun(tmp_path / "run", "-m", MODEL, "-d", "digits", "--init", file)
    assert "The last layer is new, for your 10 classes." in answer.stderr
    given = formats.read_params(file)
    assert all(parameters[name].tobytes() == given[name].tobytes() for name in given if not head(name))
    assert parameters["head.dense.weight"].shape == (10, 128)
    assert parameters["head.dense.weight"].std() > 0.01


def test_a_head_of_as_many_but_other_classes_is_made_anew(finished, tmp_path, begun):
    other = make_folder(tmp_path / "other", classes="wxyz")
    file = finished[0] / "best.params"
    answer, parameters = begun(tmp_path / "run", "-d", other, "--batch-size", 8, "--weights", finished[0])
    assert "The last layer is new, for your 4 classes." in answer.stderr
    given = formats.read_params(file)  # whose network is taken, as no other is given
    assert parameters.keys() == given.keys()
    assert all((parameters[name].tobytes() == given[name].tobytes()) != head(name) for name in given)


def test_a_run_starts_from_the_authors_weights_with_a_head_of_its_own(shared, folder, tmp_path, begun):
    start = ("--pretrained", "--weights-dir", shared / "weights")
    with pytest.warns(UserWarning, match=r"Starting from the authors' CIFAR-10 weights\."):
        answer, parameters = begun(tmp_path / "run", "-m", "resnet-29-0.5", "-d", folder, "--batch-size", 8, *start)
    assert "The last layer is new, for your 4 classes." in answer.stderr
    given = weights.read(shared / "weights" / "resnet" / "cifar10_resnet29-0000.params")
    assert parameters.keys() == given.keys()
    assert all(parameters[name].tobytes() == given[name].tobytes() for name in given if not head(name))
    assert parameters["head.dense.weight"].shape == (4, 128)


def test_a_run_is_put_below_the_working_directory_by_default(folder, tmp_path, monkeypatch, inside):
    monkeypatch.setattr(Loop, "run", lambda self: 143)
    monkeypatch.chdir(tmp_path)
    assert inside("-m", MODEL, "-d", "digits").returncode == 143
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"{MODEL}-digits"]
    again = inside("-m", MODEL, "-d", "digits")
    assert_mistake(again, f"runs/{MODEL}-digits exists already: pass --resume runs/{MODEL}-digits, or another --output")
    assert inside("-m", MODEL, "-d", folder, "--batch-size", 8).returncode == 143
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("path", ["photos", "photos/", "./photos", "../here/photos", "/photos", "."])
def test_a_run_on_a_folder_is_put_into_a_directory_of_the_folder_s_own_name(path, tmp_path, monkeypatch):
    (tmp_path / "here" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / ("photos" if path == "." else ""))
    made = config.Config(MODEL, f"folder:{path}")
    assert session.default_directory(made) == Path("runs") / f"{MODEL}-folder-photos"


@pytest.mark.parametrize(
    ("path", "name"),
    [(r"C:\photos", "C--photos"), ('a*b?"<c>|d', "a-b---c--d"), ("dots. .", "dots")],
)
def test_a_default_directory_is_a_valid_name_on_windows(path, name):
    made = config.Config(MODEL, f"folder:{path}")
    assert session.default_directory(made) == Path("runs") / f"{MODEL}-folder-{name}"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 120, "a" + "é" * 120], ids=len)
def test_the_directory_of_a_folder_with_a_long_name_can_be_made(name, tmp_path, monkeypatch, inside):
    monkeypatch.setattr(Loop, "run", lambda self: 143)
    monkeypatch.chdir(tmp_path)
    place = tmp_path / ("deep" * 50) / name
    make_folder(place)
    assert inside("-m", MODEL, "-d", place, "--batch-size", 8).returncode == 143
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith(f"{MODEL}-folder-{name[:20]}")


def test_a_directory_that_cannot_be_made_is_named_before_any_picture_is_read(folder, tmp_path, monkeypatch, inside):
    monkeypatch.setattr(session, "get_splits", None)
    with pytest.raises(UnusableError, match=r"cannot make .*: .*File name too long"):
        pydmobilenet.train(MODEL, folder, output=tmp_path / ("x" * 256))
    assert_mistake(inside("-m", MODEL, "-d", folder, "--output", tmp_path / ("x" * 256)), "File name too long")


@pytest.mark.slow
def test_when_what_is_printed_finds_no_room_the_epoch_is_saved_all_the_same(folder, tmp_path):
    recipe = options({**TINY, "model": MODEL, "dataset": folder})
    with open("/dev/full", "w") as full:
        answer = train("--config", DIGITS, *recipe, "--output", tmp_path / "run", stdout=full)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1] == "train.py: error: [Errno 28] No space left on device"
    assert State.read(tmp_path / "run" / "last.state").progress["epochs"] == 1


def test_a_quiet_run_prints_its_errors_alone_and_a_verbose_one_its_configuration(folder, tmp_path, inside):
    values = options({**TINY, "epochs": 2, "model": MODEL, "dataset": folder, "seed": 1})
    quiet = inside("--config", DIGITS, *values, "--quiet", "--output", tmp_path / "quiet")
    assert quiet.returncode == 0, quiet.stderr
    assert quiet.stdout.startswith("Test error after the last epoch (2): ")
    assert quiet.stderr == ""
    verbose = inside("--config", DIGITS, *values, "--verbose", "--output", tmp_path / "verbose")
    assert (tmp_path / "verbose" / "config.yaml").read_text().rstrip() in verbose.stderr
    assert verbose.stdout.splitlines()[2:] == quiet.stdout.splitlines()


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["resnet-11-0.25", "pyd-add-11-0.25", "pyd-concat-11-0.25"])
def test_half_precision_learns_on_a_gpu_and_goes_on(model, tmp_path):
    values = {"model": model, "dataset": "digits", "dtype": "float16", "epochs": 3, "device": "gpu"}
    answer = train("--config", DIGITS, *options(values), "--output", tmp_path / "run")
    assert answer.returncode == 0, answer.stderr
    assert State.read(tmp_path / "run" / "last.state").progress["history"][-1]["test_error"] < 40
    assert train("--resume", tmp_path / "run", "--device", "gpu").returncode == 0
