"""The moving average of the weights: its values, its file, its errors, and how a run goes on with it."""

import gc
import json

import numpy as np
import pytest
import torch
from helpers import MODEL, TINY, assert_mistake, assert_same, content, make_folder, options, stop_at_look

import pydmobilenet
from pydmobilenet.data import get_task
from pydmobilenet.errors import BadFileError
from pydmobilenet.network import BatchNorm
from pydmobilenet.pytorch import trainer as pytorch_trainer
from pydmobilenet.run import Run
from pydmobilenet.training import config

pytestmark = [pytest.mark.pytorch, pytest.mark.trains]
CPU = torch.device("cpu")
RUN = {**TINY, "epochs": 3, "ema": 0.8, "learning_rate": 0.1, "mixup_off_epochs": 0}


def trainer(**values):
    given = {"model": MODEL, "dataset": "digits", "batch_size": 8, "ema": 0.8, **values}
    return pytorch_trainer.make(config.make(given), get_task("digits"), CPU)


def batch(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((8, 3, 32, 32)).astype(np.float32), np.eye(10, dtype=np.float32)[rng.integers(0, 10, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"), train=6, test=2, val=4)


@pytest.mark.parametrize("decay", [0.5, 0.99])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_average_is_the_mean_over_the_updates_with_exponential_weights(decay, accumulation):
    made, after = trainer(ema=decay, accumulation_steps=accumulation), []
    for number in range(6):
        made.train_step(*batch(number), 0.1)()
        if (number + 1) % accumulation == 0:
            after.append(made.state()[0])
            weights = (1 - decay) * decay ** np.arange(len(after))[::-1]
            for name, found in made.averaged().items():
                expected = sum(weight * arrays[name].astype(float) for weight, arrays in zip(weights, after))
                np.testing.assert_allclose(found, expected / weights.sum(), rtol=2e-5, atol=2e-6, err_msg=name)
    means = [layer.name for layer in made.net.description.layers if isinstance(layer, BatchNorm)]
    assert means
    for name in (f"{means[0]}.running_mean", f"{means[0]}.running_var", "head.dense.weight"):
        assert not np.array_equal(made.averaged()[name], after[-1][name])


def test_training_is_the_same_with_and_without_an_average():
    with_one, without = trainer(), trainer(ema=0)
    for made in (with_one, without):
        for number in range(3):
            made.train_step(*batch(number), 0.1)()
    found, momentum = with_one.state()
    expected, others = without.state()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert {name for name in momentum if not name.startswith("ema/")} == others.keys()


def test_a_frozen_body_is_not_averaged():
    made = trainer(body_rate=0, mixup=0, augment=False)
    before = made.state()[0]
    for number in range(3):
        made.train_step(*batch(number), 0.1)()
    changed = [name for name, array in made.averaged().items() if not np.array_equal(array, before[name])]
    assert changed == ["head.dense.weight", "head.dense.bias"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("ema/head.dense.bias"), "moving average does not fit"),
        (lambda state: state.update({"ema/head.dense.bias": np.zeros(3, np.float32)}), "moving average does not fit"),
        (lambda state: state.update({"ema/weight": np.array([-1], np.float32)}), "weight of its moving average"),
        (lambda state: state.update({"ema/weight": np.array([2], np.float32)}), "weight of its moving average"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, words):
    made = trainer()
    made.train_step(*batch(0), 0.1)()
    parameters, momentum = made.state()
    trainer().load_state(parameters, momentum)
    change(momentum)
    with pytest.raises(BadFileError, match=words):
        trainer().load_state(parameters, momentum)
    with pytest.raises(BadFileError, match="the state is of another network"):
        trainer(ema=0).load_state(*made.state())


def test_a_run_keeps_the_best_average_and_measures_it(folder, train, tmp_path):
    answer = train("--dataset", folder, "--model", MODEL, "--output", tmp_path / "run", *options(RUN))
    assert answer.returncode == 0, answer.stderr
    run = Run(tmp_path / "run")
    rows = run.history.rows
    best = min(rows, key=lambda row: row.ema_error)
    entries = json.loads((run.directory / "run.json").read_text())["checkpoints"]
    assert (entries["ema.params"]["epoch"], entries["ema.params"]["val_error"]) == (best.epoch, best.ema_error)
    assert (run.directory / "history.csv").read_text().splitlines()[0] == (
        "epoch,learning_rate,train_loss,train_error,val_loss,val_error,ema_loss,ema_error,images_per_second,seconds"
    )
    lines = answer.stdout.splitlines()
    assert f"  val {rows[0].val_error:5.2f} %  ema {rows[0].ema_error:5.2f} %  best " in lines[0]
    assert f"Of the moving average: {rows[-1].ema_error:.2f} %; the best, after epoch {best.epoch}: " in answer.stdout
    assert "Test error of epoch" in answer.stdout
    assert f"Test error of the moving average after epoch {best.epoch}, measured once: " in answer.stdout
    errors = [entries[file]["test_error"] for file in ("best.params", "ema.params")]
    for file, error in zip(("best.params", "ema.params"), errors):
        (result,) = pydmobilenet.validate(weights=run.directory / file, progress=False)
        assert (result.verdict, result.record.top1_error) == ("match", error)
    net = pydmobilenet.get_model(weights=run.directory / "ema.params", engine="pytorch")
    last = pydmobilenet.get_model(weights=run.directory / "last.params", engine="pytorch")
    assert not torch.equal(net.state_dict()["head.dense.weight"], last.state_dict()["head.dense.weight"])
    (result,) = pydmobilenet.compare(run.directory)
    assert (result.error, result.errors["ema", "test"]) == tuple(errors)
    before = content(run.directory)
    assert train("--resume", run.directory).returncode == 0  # a finished run stays as it is
    assert_same(content(run.directory), before)


def test_interrupted_in_mid_epoch_a_run_ends_with_the_same_average(folder, train, tmp_path, monkeypatch):
    begin = ["--dataset", folder, "--model", MODEL, "--engine", "pytorch", *options({**RUN, "epochs": 2})]
    assert train(*begin, "--output", tmp_path / "whole").returncode == 0
    stop_at_look(monkeypatch, 3)  # in the second epoch
    assert train(*begin, "--output", tmp_path / "run").returncode > 128
    gc.collect()
    answer = train("--resume", tmp_path / "run")
    assert answer.returncode == 0, answer.stderr
    found = content(tmp_path / "run")
    assert {"ema.params", "momentum ema/weight"} <= found.keys()
    assert_same(found, content(tmp_path / "whole"))


@pytest.mark.gluon
def test_only_pytorch_has_an_average_and_auto_takes_it(folder, train, tmp_path):
    arguments = ["--dataset", folder, "--model", MODEL, "--ema", 0.9, "--epochs", 1, "--warmup-epochs", 0]
    assert_mistake(train(*arguments, "--engine", "gluon"), "engine 'gluon' has no moving average (--ema); nearest: pyt")
    answer = train(*arguments, "--output", tmp_path / "run", "--batch-size", 8, "--device", "cpu")
    assert answer.returncode == 0
    assert "with PyTorch (Gluon has no moving average (--ema))" in answer.stderr
    assert_mistake(train(*arguments[:-6], "--ema", 1), "ema: '1' (allowed: a number from 0 and below 1)")
