"""The commands as functions, as notebooks use them."""

import inspect
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import pydmobilenet
from pydmobilenet import checkpoints
from pydmobilenet import engine as engines
from pydmobilenet.data import get_dataset
from pydmobilenet.errors import InvalidValueError, MissingFileError, UnusableError, UserError

MODEL = "pyd-add-11-0.125"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("mxnet", exc_type=ImportError)
    output = tmp_path_factory.mktemp("api") / "run"
    return pydmobilenet.train(MODEL, "digits", epochs=1, warmup_epochs=0, output=output, device="cpu", progress=False)


def test_a_run_has_its_history_its_model_and_its_directory(run):
    assert [row.epoch for row in run.history.rows] == [1]
    assert (run.directory / "best.params").is_file()
    assert run.model().head.dense.weight.shape == (10, 128)


def test_a_run_can_be_validated_used_and_exported(run, tmp_path):
    (result,) = pydmobilenet.validate(run, progress=False)
    best = min(row.test_error for row in run.history.rows)
    assert result.error == pytest.approx(best)
    assert str(result).startswith(f"{MODEL} on digits: {best:.2f} % (")
    test = get_dataset("digits", "test").head(3)
    pixels = test.images.transpose(0, 2, 3, 1)
    answers = pydmobilenet.predict(pixels, weights=run, top=1)
    assert [each.image for each in answers] == ["image 0", "image 1", "image 2"]
    found = pydmobilenet.export(None, tmp_path / "net.onnx", weights=run.directory)
    assert found.logits < 1e-5
    assert (tmp_path / "net.onnx").is_file()


def test_a_report_is_written_and_each_data_set_shown_as_it_comes(run, tmp_path):
    shown = []
    results = pydmobilenet.validate(
        weights=[run, run.directory / "last.params"],
        output=tmp_path / "report",
        show=lambda dataset, rows: shown.append((dataset.task.name, rows)),
        progress=False,
    )
    assert [name for name, _ in shown] == ["digits"]
    assert shown[0][1] == results
    assert len(json.loads((tmp_path / "report" / "validation.json").read_text())) == len(results) == 2
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("measure", [False, True])
def test_what_is_exported_is_said(measure, run, tmp_path):
    said = []
    pydmobilenet.export(None, tmp_path / "net.onnx", weights=run, measure=measure, say=said.append)
    assert said[0].startswith(f"wrote {tmp_path / 'net.onnx'}: {MODEL} for Digits, ")
    assert len(said) == 1 + measure


def test_a_measurement_that_fails_after_an_export_is_a_warning(run, tmp_path, monkeypatch):
    from pydmobilenet.onnx import export

    def broken(path):
        raise UnusableError(f"{path} could not be run to measure it")

    monkeypatch.setattr(export, "measure_cost", broken)
    with pytest.warns(UserWarning, match="could not be run to measure it"):
        assert pydmobilenet.export(None, tmp_path / "net.onnx", weights=run, measure=True).classes == 0
    assert (tmp_path / "net.onnx").is_file()


def test_a_signal_ends_training_with_its_exit_code_and_the_directory(tmp_path, at_update):
    pytest.importorskip("mxnet", exc_type=ImportError)
    at_update(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt, match="the run is saved: continue it with resume=") as stopped:
        pydmobilenet.train(MODEL, "digits", output=tmp_path / "run", device="cpu", progress=False)
    assert (stopped.value.exit_code, stopped.value.directory) == (143, tmp_path / "run")


def test_a_run_goes_on(run):
    again = pydmobilenet.train(resume=run, device="cpu", progress=False)
    assert [row.epoch for row in again.history.rows] == [1]
    with pytest.raises(InvalidValueError, match="epochs is 3, but the run began with 1"):
        pydmobilenet.train(resume=run.directory, epochs=3, progress=False)


def test_progress_is_shown_where_it_is_wanted_and_nowhere_else(run, capsys):
    pydmobilenet.validate(run, progress=True)
    assert "images/s" in capsys.readouterr().err
    pydmobilenet.validate(run, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("gluon", marks=pytest.mark.gluon),
        pytest.param("pytorch", marks=pytest.mark.pytorch),
        "onnxruntime",
    ],
)
def test_the_bundled_networks_are_right_by_every_engine(engine):
    results = pydmobilenet.validate("*", "digits", engine=engine, progress=False)
    assert [result.verdict for result in results] == ["match"] * 4


def test_pixels_of_any_size_are_classified_as_files_are(tmp_path):
    from PIL import Image

    pixels = get_dataset("digits", "test").images[:1].transpose(0, 2, 3, 1).repeat(3, axis=1).repeat(3, axis=2)
    Image.fromarray(pixels[0]).save(tmp_path / "digit.png")
    options = {"model": "pyd-add-29-0.25", "dataset": "digits", "engine": "onnxruntime"}
    (one,) = pydmobilenet.predict(pixels, **options)
    (other,) = pydmobilenet.predict(tmp_path / "digit.png", **options)
    assert one.classes == other.classes
    assert one.size == (96, 96)
    opened = Image.open(tmp_path / "digit.png")
    for given in (
        opened,
        pixels[0],
        [opened, opened],
        [pixels[0]],
        (pixels[0], opened, tmp_path / "digit.png"),
        tmp_path.glob("*.png"),
        [pixels[0], pixels[0][::2, ::3]],
    ):
        found = pydmobilenet.predict(given, **options)
        assert found[0].classes == other.classes
    assert [each.size for each in found] == [(96, 96), (32, 48)]
    assert [each.image for each in found] == ["image 0", "image 1"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4), np.uint8), r"image 0 is \(4, 4\) in uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"image 0 is \(4, 4, 4\) in uint8"),
        ([np.zeros((4, 4, 3))], r"image 0 is \(4, 4, 3\) in float64"),
        (np.zeros((2, 4, 4, 3), np.float32), r"image 0 is \(4, 4, 3\) in float32"),
        (["x.png", 3], "no such image: x.png"),
        ([b"x"], "image 0 is a bytes"),
        (3, "image 0 is a int"),
        ([], "none of the 0 images can be read"),
    ],
)
def test_what_is_no_image_is_named_with_what_is(given, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as refused:
        pydmobilenet.predict(given, "pyd-add-29-0.25", "digits", engine="onnxruntime")
    if "image 0" in words:
        assert "(allowed: a path, an image of Pillow's, an array (height, width, 3) in uint8)" in str(refused.value)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: pydmobilenet.get_model(MODEL, num_classes=3),
            TypeError,
            "no argument 'num_classes'; nearest: classes",
        ),
        (lambda: pydmobilenet.get_model(MODEL, ctx="gpu"), TypeError, "no argument 'ctx'; nearest: device"),
        (lambda: pydmobilenet.get_model(MODEL, pretraned=True), TypeError, "nearest: pretrained"),
        (lambda: pydmobilenet.create_model, AttributeError, "nearest: get_model"),
        (lambda: pydmobilenet.validat, AttributeError, "nearest: validate"),
        (lambda: pydmobilenet.predict([], MODEL, net=3), TypeError, "predict has no argument 'net'"),
        (lambda: pydmobilenet.validate("PydMobileNet-Add-29-0.25"), ValueError, "nearest: pyd-add-29-0.25"),
        (lambda: pydmobilenet.validate("pyd-*", "digit"), ValueError, "nearest: digits"),
        (lambda: pydmobilenet.predict("/nowhere.png", MODEL), FileNotFoundError, "no such image|no weights"),
        (
            lambda: pydmobilenet.predict(np.zeros((1, 4, 4)), "pyd-add-29-0.25", "digits"),
            ValueError,
            r"image 0 is \(1, 4, 4\) in",
        ),
        (lambda: pydmobilenet.predict(np.zeros((1, 4, 4, 3), np.uint8)), UserError, "no network is named"),
        (lambda: pydmobilenet.validate(os.path.dirname(__file__)), MissingFileError, "holds no checkpoint of a run"),
    ],
)
def test_a_mistake_names_what_is_right(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"lr": 0.1}, "unknown key 'lr'; nearest: learning_rate"),
        ({"num_classes": 10}, "unknown key 'num_classes'; nearest: dataset"),
        ({"epochs": 0}, "epochs: '0'"),
        ({"dataset": "digit"}, "nearest: digits"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(recipe, words, tmp_path):
    pytest.importorskip("mxnet", exc_type=ImportError)
    with pytest.raises(InvalidValueError, match=words):
        pydmobilenet.train(**{"model": MODEL, "dataset": "digits", "output": tmp_path / "run", **recipe})
    assert not (tmp_path / "run").exists()


@pytest.mark.gluon
def test_two_places_of_the_data_are_refused():
    with pytest.raises(UserError, match="pass either a folder or --data-dir, not both"):
        pydmobilenet.train(MODEL, "folder:photos", data_dir="elsewhere")


def test_an_old_python_is_refused_at_once():
    code = "import sys; sys.version_info = (3, 8, 18); import pydmobilenet"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].endswith("is too old for pydmobilenet (allowed: 3.9 and newer)")


def test_everything_that_is_offered_is_there_with_its_signature():
    for name in pydmobilenet.__all__:
        function = getattr(pydmobilenet, name)
        assert function.__doc__
        assert isinstance(function, type) or inspect.signature(function).parameters


def test_the_package_imports_no_engine():
    code = "import pydmobilenet, sys; pydmobilenet.validate; pydmobilenet.list_models(); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("'mxnet'", "'onnx'", "'onnxruntime'", "'torch'") if name in modules]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"weights": "runs/typo"}, MissingFileError, "no such parameter file or run: .*runs/typo"),
        ({"weights": "typo.params"}, MissingFileError, r"no such parameter file or run: .*typo\.params"),
        ({"weights": "."}, MissingFileError, r"holds no checkpoint of a run: .*run\.json"),
        ({"weights": ".", "pretrained": True}, UserError, "pass either weights or pretrained"),
        ({"weights_dir": "."}, UserError, "it needs pretrained=True"),
        ({"weights_dir": "typo", "pretrained": True}, MissingFileError, "no such directory: typo"),
    ],
)
def test_a_path_that_is_not_there_is_no_reason_for_random_weights(given, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        pydmobilenet.get_model("mobilenet-29-0.5", **given)


@pytest.mark.parametrize(
    ("engine", "words"), [("torch", "unknown engine for networks 'torch'"), ("pytorch", "'pytorch': not installed")]
)
def test_an_unusable_engine_is_told_before_weights_are_loaded(engine, words, monkeypatch):
    monkeypatch.setattr(checkpoints.Checkpoint, "arrays", lambda source: pytest.fail("loaded"))
    monkeypatch.setattr(engines, "obstacle", lambda name: "not installed")
    with pytest.raises(UserError, match=words):
        pydmobilenet.get_model("pyd-add-29-0.25", pretrained=True, engine=engine)
