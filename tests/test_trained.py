"""Checkpoints that were trained with this project: bundled with the checkout, or in a run's directory."""

import importlib.util
import json
import shutil
import sys

import mxnet as mx
import numpy as np
import pytest
from helpers import ROOT

import pydmobilenet
from pydmobilenet import catalog, checkpoints, fetching, machine
from pydmobilenet.checkpoints import formats, weights
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError
from pydmobilenet.gluon.inference import GluonEngine
from pydmobilenet.validation import exit_code, validate

BUNDLED = checkpoints.bundled()
NAMES = ["resnet-29-0.5", "mobilenet-29-0.5", "pyd-add-29-0.25", "pyd-concat-29-0.25"]
MODEL = "pyd-add-11-0.25"


@pytest.fixture
def run(tmp_path):
    """What a run leaves for others, of parameters that were never trained."""
    directory = tmp_path / "run"
    directory.mkdir()
    checkpoints = {}
    for seed, name in enumerate(("best.params", "last.params")):
        mx.random.seed(seed)
        net = pydmobilenet.get_model(MODEL, "digits")
        arrays = {key: each.data().asnumpy() for key, each in net._collect_params_with_prefix().items()}
        (directory / name).write_bytes(formats.dump_params(arrays))
        sha256 = fetching.digest(directory / name, "sha256").removeprefix("sha256:")
        checkpoints[name] = {"epoch": 3 + seed, "test_error": 50.0, "sha256": sha256}
    metadata = {"model": MODEL, "dataset": "digits", "outputs": 10, "classes": list("0123456789")}
    (directory / "run.json").write_text(json.dumps({**metadata, "checkpoints": checkpoints}))
    return directory


def dense(net):
    return net.head.dense.weight.data().asnumpy()


def stored(path):
    return formats.read_params(path)["head.dense.weight"]


def test_the_smallest_network_of_each_family_is_bundled_in_about_two_megabytes():
    assert sorted(record.model for record in BUNDLED) == sorted(NAMES)
    assert {record.dataset for record in BUNDLED} == {"digits"}
    assert sum(record.path.stat().st_size for record in BUNDLED) < 2.1e6
    smallest = {}
    for name in catalog.list_models(dataset="cifar10"):
        family = catalog.parse_name(name).family
        smallest.setdefault(family, name)
    assert sorted(smallest.values()) == sorted(NAMES)


@pytest.mark.parametrize("record", BUNDLED, ids=lambda record: record.model)
def test_a_bundled_checkpoint_is_what_the_manifest_says(record):
    assert record.locate() == record.path
    entries = json.loads((ROOT / "pretrained" / "manifest.json").read_text())
    entry = next(entry for entry in entries if entry["file"] == record.path.name)
    assert entry["test_error"] <= 2.5
    assert f"--model {record.model}" in entry["command"]
    assert entry["bytes"] == record.path.stat().st_size


def test_bundled_checkpoints_give_their_recorded_errors():
    ((dataset, results),) = validate(BUNDLED, GluonEngine("cpu"))
    assert dataset.official
    assert [result.verdict for result in results] == ["match"] * 4
    assert exit_code(results) == 0


@pytest.mark.parametrize("name", NAMES)
def test_get_model_finds_a_bundled_checkpoint(name):
    net = pydmobilenet.get_model(name, "digits", pretrained=True)
    file = next(record.path for record in BUNDLED if record.model == name)
    np.testing.assert_array_equal(dense(net), stored(file))


def test_a_run_stands_for_its_best_parameters_and_each_file_for_itself(run):
    assert checkpoints.inspect(run).path.name == "best.params"
    np.testing.assert_array_equal(
        dense(pydmobilenet.get_model(MODEL, "digits", weights=run)), stored(run / "best.params")
    )
    for name in ("best.params", "last.params"):
        net = pydmobilenet.get_model(MODEL, "digits", weights=str(run / name))
        np.testing.assert_array_equal(dense(net), stored(run / name))


def test_a_lone_file_needs_no_run(run, tmp_path):
    shutil.copy(run / "last.params", tmp_path / "mine.params")
    net = pydmobilenet.get_model(MODEL, "digits", weights=tmp_path / "mine.params")
    np.testing.assert_array_equal(dense(net), stored(run / "last.params"))


def test_what_is_asked_for_has_to_be_what_the_run_is(run):
    with pytest.raises(InvalidValueError, match=r"was trained on digits \(classes: .*\), not cifar10; nearest: digits"):
        pydmobilenet.get_model(MODEL, "cifar10", weights=run)
    with pytest.raises(InvalidValueError, match=r"is of pyd-add-11-0.25, not of resnet-11-0.5"):
        pydmobilenet.get_model("resnet-11-0.5", "digits", weights=run)
    assert dense(pydmobilenet.get_model(MODEL, "digits", classes=7, weights=run)).shape == (7, 128)  # a fresh head
    shutil.copy(run / "last.params", run.parent / "mine.params")  # of which nothing tells that this is meant
    with pytest.raises(BadFileError, match=r"the file is of pyd-add-11-0.25 with 10 classes"):
        pydmobilenet.get_model(MODEL, "digits", classes=7, weights=run.parent / "mine.params")


def test_a_changed_checkpoint_is_refused(run):
    shutil.copy(run / "last.params", run / "best.params")
    with pytest.raises(BadFileError, match="is not the published file"):
        pydmobilenet.get_model(MODEL, "digits", weights=run)


def test_what_is_no_run_is_refused_and_what_is_no_checkpoint_of_it_named(run, tmp_path):
    with pytest.raises(MissingFileError, match="no such parameter file or run"):
        checkpoints.inspect(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="holds no checkpoint of a run"):
        checkpoints.inspect(tmp_path)
    shutil.copy(run / "last.params", run / "lost.params")
    with pytest.raises(InvalidValueError, match=r"unknown checkpoint 'lost.params'; nearest: last.params"):
        checkpoints.inspect(run / "lost.params")
    (run / "run.json").write_text('{"model": "resnet-29-0.5"')
    with pytest.raises(BadFileError, match="does not describe a run"):
        checkpoints.inspect(run)


def test_a_run_is_validated_like_a_row_of_the_tables(run):
    records = [checkpoints.inspect(run), checkpoints.inspect(run / "last.params")]
    ((_, results),) = validate(records, GluonEngine("cpu"))
    assert [result.counts.images for result in results] == [360, 360]
    assert {result.verdict for result in results} == {"differs"}  # untrained: not the error that was recorded
    assert exit_code(results) == 1


@pytest.mark.parametrize("name", ["resnet-11-0.5", "pyd-concat-11-0.25"])
def test_parameter_files_are_written_as_mxnet_reads_them(name, tmp_path):
    net = pydmobilenet.get_model(name, "digits")
    arrays = {key: each.data().asnumpy() for key, each in net._collect_params_with_prefix().items()}
    (tmp_path / "ours.params").write_bytes(formats.dump_params(arrays))
    net.save_parameters(str(tmp_path / "mxnet.params"))
    assert (tmp_path / "ours.params").read_bytes() == (tmp_path / "mxnet.params").read_bytes()
    other = pydmobilenet.get_model(name, "digits")
    other.load_parameters(str(tmp_path / "ours.params"))
    np.testing.assert_array_equal(dense(other), dense(net))
    assert weights.read(tmp_path / "ours.params").keys() == arrays.keys()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int32", "int8", "int64"])
def test_arrays_of_every_type_survive(dtype, tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.zeros((0, 4), dtype), "ü": np.ones(1, dtype)}
    (tmp_path / "x.params").write_bytes(formats.dump_params(arrays))
    back = formats.read_params(tmp_path / "x.params")
    assert list(back) == list(arrays)
    for name in arrays:
        np.testing.assert_array_equal(back[name], arrays[name])
        assert back[name].dtype == dtype


@pytest.fixture
def reproduce(monkeypatch):
    """The script that trains the bundled networks again."""
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "pretrained" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--model", "mobilenet-*"])
    return module


@pytest.mark.parametrize(("changed", "words", "code"), [(False, "the same bit for bit", 0), (True, "other bits", 1)])
def test_a_bundled_network_is_compared_bit_for_bit_with_the_one_trained_again(
    changed, words, code, reproduce, monkeypatch, capsys
):
    (record,) = [each for each in BUNDLED if each.model == "mobilenet-29-0.5"]
    sha256 = "0" * 64 if changed else record.sha256
    run = {
        "checkpoints": {"last.params": {"sha256": sha256, "test_error": 1.5}},
        "sessions": [{"environment": {"processor": "some CPU", "instruction_set": "AVX2"}}],
    }
    monkeypatch.setattr(reproduce, "train", lambda command, directory: run)
    assert reproduce.main() == code
    line = f"digits-mobilenet-29-0.5.params: {words}; error 1.50 %, recorded 1.11 % (some CPU, AVX2)\n"
    assert capsys.readouterr().out == line


@pytest.mark.slow
def test_a_bundled_network_is_trained_again(reproduce, tmp_path):
    command = "OMP_NUM_THREADS=1 python train.py --dataset digits --model mobilenet-11-0.125 --epochs 1 --device cpu"
    run = reproduce.train(command, tmp_path / "run")
    assert fetching.digest(tmp_path / "run" / "last.params", "sha256").endswith(
        run["checkpoints"]["last.params"]["sha256"]
    )
    (session,) = run["sessions"]
    assert session["environment"]["threads"] == "1"
    assert session["environment"]["instruction_set"] == machine.instruction_set()
