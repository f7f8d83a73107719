"""The best epoch is chosen by validation images, where there are any; the test error is measured once, at the end."""

import csv
import gc
import json
import re
import shutil

import numpy as np
import pytest
from helpers import MODEL, TRAINERS, assert_mistake, make_classes, options, runner
from PIL import Image

import pydmobilenet
from pydmobilenet import checkpoints
from pydmobilenet.data import datasets, get_splits, get_task
from pydmobilenet.data.splits import DEFAULT
from pydmobilenet.training import loop as loops
from pydmobilenet.training.checkpoint import read_history
from pydmobilenet.training.history import Epoch, History
from pydmobilenet.training.loader import class_weights
from pydmobilenet.training.loop import Loop
from pydmobilenet.training.recipe import configure

pytestmark = pytest.mark.trains

RECIPE = {"model": MODEL, "batch_size": 8, "epochs": 3, "warmup_epochs": 1, "learning_rate": 0.05, "device": "cpu"}


@pytest.fixture
def train(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders alone, of ten images each."""
    return make_classes(tmp_path_factory.mktemp("own") / "photos", "abc", {".": 10})


@pytest.mark.parametrize("engine", TRAINERS)
def test_a_plain_folder_is_split_trained_and_tested_once(engine, photos, train, tmp_path, monkeypatch):
    tested = []
    measure = Loop._measure_test_error
    monkeypatch.setattr(Loop, "_measure_test_error", lambda self, test: (tested.append(test), measure(self, test)))
    answer = train(photos, "--output", tmp_path / "run", "--engine", engine, *options(RECIPE))
    assert answer.returncode == 0, answer.stderr
    splits = get_splits(photos, DEFAULT)
    for split in splits:
        assert f"data: {split.note}" in answer.stderr
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())
    best, last = (metadata["checkpoints"][f"{name}.params"] for name in ("best", "last"))
    assert best["val_error"] <= last["val_error"]
    assert "test_error" not in last
    error = f"{best['test_error']:.2f} %"
    assert re.search(
        rf"^Test error of epoch {best['epoch']}, measured once: {error} \(\d of {len(splits.test)} images; 95 %",
        answer.stdout,
        re.MULTILINE,
    )
    assert "optimistic" not in answer.stdout
    assert len(tested) == 1
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert [float(row["val_error"]) for row in rows] == [row.error for row in read_history(tmp_path / "run").rows]
    assert "test_error" not in rows[0]
    (result,) = pydmobilenet.validate(tmp_path / "run", progress=False)
    assert (result.verdict, result.error) == ("match", pytest.approx(best["test_error"]))
    (result,) = pydmobilenet.validate(tmp_path / "run" / "last.params", progress=False)
    assert (result.verdict, result.error) == ("match", pytest.approx(last["val_error"]))


def test_test_the_best_epoch(photos, train, tmp_path, monkeypatch):
    errors = iter([30.0, 10.0, 20.0])
    real = Loop._finish_epoch

    def finish(self):
        evaluate = self.trainer.evaluate
        self.trainer.evaluate = lambda dataset: loops.Score(1.0, round(next(errors) * 60), 6000)
        try:
            real(self)
        finally:
            self.trainer.evaluate = evaluate

    monkeypatch.setattr(Loop, "_finish_epoch", finish)
    answer = train(photos, "--output", tmp_path / "run", *options(RECIPE))
    assert "Test error of epoch 2, measured once" in answer.stdout
    record = checkpoints.inspect(tmp_path / "run")
    (result,) = pydmobilenet.validate(tmp_path / "run", progress=False)
    assert result.error == pytest.approx(record.top1_error)


def test_stop_early_with_patience(photos, train, tmp_path, monkeypatch):
    monkeypatch.setattr(Loop, "_add", lambda self, score: self.progress.add(score))
    values = {**RECIPE, "epochs": 50, "learning_rate": 1e-30, "patience": 2}
    answer = train(photos, "--output", tmp_path / "run", *options(values))
    assert answer.returncode == 0, answer.stderr
    history = read_history(tmp_path / "run")
    assert history.epochs_since_best == 2
    assert len(history.rows) < 10
    assert answer.stdout.count("\n") == len(history.rows) + 3
    assert "At most 50 epochs: training stops if 2 in a row bring no lower validation error" in answer.stderr
    why = f"Stopped early, after {len(history.rows)} of at most 50 epochs: 2 epochs without a lower validation error"
    assert why in answer.stdout
    before = (tmp_path / "run" / "last.state").read_bytes()
    gc.collect()  # the error that ended the command still held the run's lock
    again = train("--resume", tmp_path / "run")
    assert again.returncode == 0
    assert "Test error of epoch" in again.stdout
    assert (tmp_path / "run" / "last.state").read_bytes() == before


def test_return_the_test_error_of_the_best_epoch(photos, tmp_path, capsys):
    values = {**RECIPE, "epochs": 1, "warmup_epochs": 0}
    run = pydmobilenet.train(dataset=photos, output=tmp_path / "run", **values)
    out = capsys.readouterr().out
    assert f"Test error of epoch 1, measured once: {run.test_error:.2f} %" in out
    assert run.history.split == "val"
    run = pydmobilenet.train(
        dataset=photos, output=tmp_path / "other", test_fraction=0, progress=False, **{**values, "seed": 1}
    )
    assert run.test_error is None
    assert capsys.readouterr().out == ""


def test_say_that_test_images_are_missing(train, tmp_path):
    make_classes(tmp_path / "photos", "ab", {"train": 8, "val": 4})
    answer = train(tmp_path / "photos", "--output", tmp_path / "run", *options({**RECIPE, "epochs": 2}))
    assert answer.returncode == 0, answer.stderr
    assert "There are no test images: the best validation error leans optimistic." in answer.stdout
    record = checkpoints.inspect(tmp_path / "run")
    assert record.split == "val"
    (result,) = pydmobilenet.validate(tmp_path / "run", progress=False)
    assert result.verdict == "match"


def test_the_authors_way_stays_the_default_of_other_data_sets(train, tmp_path, monkeypatch):
    read = datasets._read_digits
    monkeypatch.setattr(datasets, "_read_digits", lambda task, split: read(task, split).head(100))
    values = {**RECIPE, "epochs": 1, "warmup_epochs": 0}
    answer = train("digits", "--output", tmp_path / "run", *options(values))
    assert "The best epoch is chosen by the test set" in answer.stdout
    answer = train("digits", "--output", tmp_path / "val", *options({**values, "val_fraction": 0.1}))
    assert "Test error of epoch 1, measured once: " in answer.stdout
    assert "of 100 images" in answer.stdout
    assert pydmobilenet.validate(tmp_path / "val", progress=False)[0].verdict == "match"


@pytest.mark.parametrize(
    ("data", "given", "words"),
    [
        ("digits", ["--test-fraction", 0.2], "test_fraction 0.2 cannot be used: only class folders are split"),
        ("digits", ["--patience", 3], "patience 3 cannot be used: there is no validation error"),
        ("digits", ["--body-rate", 0.5], "body_rate 0.5 cannot be used: no weights are loaded"),
        ("digits", ["--image-size", 64], "image_size is 64 (allowed: 32, as digits has"),
        ("digits", ["--dataset", "cifar10"], "digits and --dataset cifar10 are two data sets"),
        ("phtos", [], "unknown data set 'phtos'"),
        ("./phtos", [], "no such folder: phtos"),
        ("photos", ["--data-dir", "."], "pass either a folder or --data-dir, not both"),
        ("three", ["--val-fraction", 0.2], "val_fraction 0.2 cannot be used: the data has validation images"),
        ("photos", ["--val-fraction", 0, "--test-fraction", 0], "has no images to choose the best epoch"),
        ("photos", ["--val-fraction", 0, "--patience", 3], "patience 3 cannot be used"),
        ("photos", ["--val-fraction", 0.6], "val_fraction: '0.6' (allowed: a number from 0 to 0.5)"),
        ("photos", ["--image-size", 30], "image_size: '30' (allowed: a multiple of 4 from 8 to 1024)"),
    ],
)
def test_refuse_unusable_arguments(data, given, words, photos, train, tmp_path):
    make_classes(tmp_path / "three", "ab", {"train": 4, "val": 2, "test": 2})
    place = {"photos": photos, "three": tmp_path / "three"}.get(data, data)
    assert_mistake(train(place, "--model", MODEL, "--output", tmp_path / "run", *given), words)
    assert not (tmp_path / "run").exists()


def test_record_no_unusable_value_of_a_recipe(train, tmp_path):
    make_classes(tmp_path / "three", "ab", {"train": 8, "val": 2, "test": 2})
    answer = train(
        tmp_path / "three", "--output", tmp_path / "run", *options({**RECIPE, "epochs": 1, "warmup_epochs": 0})
    )
    assert answer.returncode == 0, answer.stderr
    assert "val: 4 images" in answer.stderr
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [metadata["config"][f"{split}_fraction"] for split in ("val", "test")] == [0, 0]
    assert {split: data["images"] for split, data in metadata["data"].items()} == {"train": 16, "val": 4, "test": 4}


def finished(photos, train, directory):
    answer = train(photos, "--output", directory, *options({**RECIPE, "epochs": 1, "warmup_epochs": 0}))
    assert answer.returncode == 0, answer.stderr
    return directory


def test_measure_a_run_on_its_test_images(photos, train, tmp_path):
    run = finished(photos, train, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "moved")
    (result,) = pydmobilenet.validate(run, data_dir=tmp_path / "moved", progress=False)
    test = get_splits(photos, DEFAULT).test
    assert (result.verdict, result.counts.images) == ("match", len(test))
    Image.new("RGB", (40, 40)).save(tmp_path / "moved" / test.files[0])
    known = 30 - len(test)
    with pytest.warns(UserWarning, match=f"{known} of 30 images have trained the run {run} or chosen"):
        (result,) = pydmobilenet.validate(run, data_dir=tmp_path / "moved", progress=False)
    assert (result.complete, result.counts.images) == (False, len(test))
    make_classes(tmp_path / "other", "abc", {"test": 3}, side=40)
    (result,) = pydmobilenet.validate(run, data_dir=tmp_path / "other", progress=False)
    assert (result.complete, result.counts.images) == (False, 9)


def test_refuse_to_resume_with_changed_validation_images(photos, train, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    run = finished(tmp_path / "photos", train, tmp_path / "run")
    val = get_splits(tmp_path / "photos", DEFAULT).val
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / val.files[0])
    assert_mistake(train("--resume", run, "--quiet"), "the val data has changed since the run began: other pixels")


def test_balanced_weights_are_scikit_learns(photos):
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.repeat([0, 1, 2], [2, 5, 13])
    dataset = pydmobilenet.data.Dataset(
        get_task(photos), "train", np.zeros((20, 3, 32, 32), np.uint8), labels, False, ""
    )
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(dataset), expected, rtol=1e-6)
    assert class_weights(dataset)[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("engine", TRAINERS)
def test_class_weights_scale_the_losses_of_their_images(engine, tmp_path, train, monkeypatch):
    make_classes(tmp_path / "photos", "ab", {"train": 8, "test": 2})
    for path in sorted((tmp_path / "photos" / "train" / "b").iterdir())[2:]:
        path.unlink()
    seen = []

    def watch(self, images, targets, rate):
        seen.append(targets.copy())
        raise KeyboardInterrupt

    trainer = {
        "gluon": "pydmobilenet.gluon.trainer.GluonTrainer",
        "pytorch": "pydmobilenet.pytorch.trainer.PyTorchTrainer",
    }
    monkeypatch.setattr(f"{trainer[engine]}.train_step", watch)
    values = {**RECIPE, "val_fraction": 0, "class_weights": "balanced", "batch_size": 10, "mixup": 0}
    train(tmp_path / "photos", "--engine", engine, "--output", tmp_path / "run", *options(values))
    (targets,) = seen
    assert sorted(targets.max(axis=1).tolist()) == pytest.approx([10 / 16] * 8 + [10 / 4] * 2)


def test_tell_the_selection_split_of_a_history():
    rows = [
        Epoch(n, 0.1, 1.0, 50.0, None, None, 100.0, 1.0, 0.5, error) for n, error in ((1, 30.0), (2, 20.0), (3, 25.0))
    ]
    history = History(3, rows)
    assert (history.split, history.best.epoch, history.epochs_since_best) == ("val", 2, 1)
    assert "val 25.00 %  best 20.00 % (epoch 2)" in history.line(history.last)
    assert history.summary() == (
        "Validation error after the last epoch (3): 25.00 %; the best, after epoch 2: 20.00 %."
    )
    assert History.from_dicts(json.loads(json.dumps(history.to_dicts())), 3) == history
    mixed = [*history.to_dicts()[:2], {**history.to_dicts()[2]}]
    for kind in ("loss", "error"):
        mixed[2][f"test_{kind}"] = mixed[2].pop(f"val_{kind}")
    with pytest.raises(ValueError, match="epoch 3 is missing or damaged"):
        History.from_dicts(mixed)


def test_the_warm_up_of_a_folder_s_recipe_has_room_in_a_single_epoch(tmp_path):
    make_classes(tmp_path, "ab", {".": 5})
    with pytest.warns(
        UserWarning, match=r"--epochs 1 is too short for warmup_epochs 2 of the recipe's 10 epochs: shortened to 0\.2"
    ):
        made = configure({"dataset": str(tmp_path), "epochs": 1})
    assert (made.epochs, made.warmup_epochs) == (1, 0.2)
    assert configure({"model": MODEL, "dataset": "digits", "epochs": "auto"}).warmup_epochs == 3
