"""A frozen body: only the last layer is trained, from features that are computed once, or from augmented images."""

import gc
import os

import numpy as np
import pytest
from helpers import MODEL, TRAINERS, assert_mistake, assert_same, content, make_classes, options, stop_at_look

import pydmobilenet
from pydmobilenet import checkpoints
from pydmobilenet.data import batches, get_dataset
from pydmobilenet.data import dataset as datasets
from pydmobilenet.training import config
from pydmobilenet.training.checkpoint import State
from pydmobilenet.training.recipe import configure
from pydmobilenet.training.session import read_config

pytestmark = pytest.mark.trains

VALUES = {"batch_size": 4, "epochs": 3, "warmup_epochs": 0, "learning_rate": 0.1, "device": "cpu"}
HEAD = "head.dense."
ONCE = "The body is frozen: it runs once"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders alone, of ten images each."""
    return make_classes(tmp_path_factory.mktemp("own") / "photos", "abc", {".": 10})


@pytest.fixture(scope="module")
def weights(photos, tmp_path_factory):
    """A run with statistics of its own, with other classes."""
    others = make_classes(tmp_path_factory.mktemp("others") / "photos", "xyz", {".": 6})
    output = tmp_path_factory.mktemp("weights") / "run"
    values = {**VALUES, "learning_rate": 0.01, "epochs": 1}
    return pydmobilenet.train(MODEL, others, output=output, mixup=0, progress=False, **values).directory


@pytest.mark.parametrize("augment", [None, "true"])
@pytest.mark.parametrize("engine", TRAINERS)
def test_only_the_head_is_trained_and_the_errors_are_those_of_the_whole_network(
    engine, augment, photos, weights, train, tmp_path
):
    output = tmp_path / "run"
    more = ["--augment", augment] if augment else []
    answer = train(
        photos, "--freeze", "--weights", weights, "--output", output, "--engine", engine, *options(VALUES), *more
    )
    assert answer.returncode == 0, answer.stderr
    assert (ONCE in answer.stderr) == (not augment)
    before, state = checkpoints.find(weights=weights).arrays(), State.read(output / "last.state")
    assert state.momentum.keys() == {f"{HEAD}weight", f"{HEAD}bias"}
    saved = [checkpoints.find(weights=output / name).arrays() for name in ("best.params", "last.params")]
    for arrays in (state.parameters, *saved):
        changed = [name for name in before if arrays[name].tobytes() != before[name].tobytes()]
        assert changed == [f"{HEAD}weight", f"{HEAD}bias"]
    for result in pydmobilenet.validate(weights=[output, output / "last.params"], progress=False):
        assert result.verdict == "match"


@pytest.mark.parametrize("engine", TRAINERS)
def test_the_body_sees_each_image_once_without_augmentation_else_in_every_epoch(
    engine, photos, weights, train, tmp_path, monkeypatch
):
    seen = []
    trainer = pytest.importorskip(f"pydmobilenet.{engine}.trainer")
    made = getattr(trainer, {"gluon": "GluonTrainer", "pytorch": "PyTorchTrainer"}[engine])
    extract = made.features
    monkeypatch.setattr(made, "features", lambda self, images: (seen.append(len(images)), extract(self, images))[1])
    arguments = [photos, "--freeze", "--weights", weights, "--engine", engine, *options(VALUES)]
    assert train(*arguments, "--output", tmp_path / "once").returncode == 0
    assert sum(seen) == 30
    seen.clear()
    assert train(*arguments, "--mixup", 0.2, "--output", tmp_path / "mixed").returncode == 0
    assert (len(seen), set(seen)) == (3 * 4, {4})


@pytest.mark.parametrize("engine", TRAINERS)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(engine, photos, weights, train, tmp_path, monkeypatch):
    arguments = [photos, "--freeze", "--weights", weights, "--engine", engine, *options(VALUES)]
    assert train(*arguments, "--output", tmp_path / "whole").returncode == 0
    stop_at_look(monkeypatch, 4)
    assert train(*arguments, "--output", tmp_path / "run").returncode > 128
    gc.collect()
    answer = train("--resume", tmp_path / "run", "--freeze")
    assert answer.returncode == 0, answer.stderr
    assert ONCE in answer.stderr
    assert_same(content(tmp_path / "run"), content(tmp_path / "whole"))


def test_the_defaults_follow_what_is_given(photos, weights, tmp_path):
    def made(recipe=None, **given):
        chosen = configure(config.parse({"dataset": str(photos), **given}), recipe, weights)
        return chosen.augment, chosen.mixup

    assert made() == (True, 0)
    assert made(body_rate=0) == (False, 0)
    assert made(body_rate=0, augment="true") == (True, 0)
    assert made(body_rate=0, mixup=0.5) == (False, 0.5)
    assert made(augment="false") == (False, 0)
    assert made(body_rate=0, dataset="digits") == (False, 0)
    assert made("folder", body_rate=0) == (False, 0.2)
    own = tmp_path / "own.yaml"
    own.write_text("base: finetune\nbody_rate: 0\naugment: true\nmixup: 0.1\n")
    assert made(own) == (True, 0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--freeze", "--body-rate", 0.1], "pass either --freeze or --body-rate 0.1, not both"),
        (["--freeze"], "a last layer alone cannot be trained: no weights are loaded"),
        (["--augment", "maybe"], "augment: 'maybe'"),
    ],
)
def test_mistakes_are_one_line(given, words, photos, train):
    assert_mistake(train(photos, *given), words)


@pytest.mark.pytorch
def test_nothing_is_compiled_for_features(photos, weights, train):
    answer = train(photos, "--freeze", "--weights", weights, "--compile", *options(VALUES))
    assert_mistake(answer, "without the network: leave out --compile")


def test_a_run_from_python_is_frozen_too(photos, weights, tmp_path, capfd):
    run = pydmobilenet.train(dataset=photos, weights=weights, freeze=True, output=tmp_path / "run", **VALUES)
    assert read_config(run.directory).frozen
    out, err = capfd.readouterr()
    assert len([line for line in out.splitlines() if line.startswith("epoch")]) == 3
    assert "\r" not in err  # bars are for terminals


def test_training_without_augmentation_shuffles_whole_images():
    data = get_dataset("digits", "train").head(10)
    images, labels = map(np.concatenate, zip(*((x.copy(), y.copy()) for x, y in batches(data, 5, True, augment=False))))
    order = datasets.draw(10, 0, 0).order
    np.testing.assert_array_equal(images, datasets.normalise(data.images[order], data.task))
    np.testing.assert_array_equal(labels, data.labels[order])


def test_fine_tuning_stops_early_where_an_image_can_tell(photos, weights):
    assert configure({"dataset": str(photos)}, weights=weights).patience == 10
    assert configure({"dataset": str(photos), "val_fraction": 0.0}, weights=weights).patience == 0
    assert configure({"dataset": str(photos), "patience": 0}, weights=weights).patience == 0


def test_a_queue_goes_on_with_the_run_s_own_patience(photos, weights, train, tmp_path):
    arguments = [photos, "--weights", weights, "--output", tmp_path / "run", *options({**VALUES, "epochs": 1})]
    assert train(*arguments, "--patience", 0).returncode == 0  # as by an earlier version's recipe
    gc.collect()
    answer = train(*arguments, "--resume", "auto")
    assert answer.returncode == 0, answer.stderr
    assert_mistake(train(*arguments, "--resume", "auto", "--patience", 3), "patience is 3, but the run began with 0")
    assert os.path.exists(tmp_path / "run" / "last.state")
