"""Several devices learn what one device learns."""

import functools

import mxnet as mx
import numpy as np
import pytest
from helpers import ROOT
from mxnet.gluon import nn

from pydmobilenet.data import batches, get_dataset
from pydmobilenet.errors import InvalidValueError
from pydmobilenet.gluon.network import build_for
from pydmobilenet.gluon.trainer import GluonTrainer, initialize, make
from pydmobilenet.training import config, session
from pydmobilenet.training.checkpoint import State
from pydmobilenet.training.loader import make_targets
from pydmobilenet.training.trainer import check_split

FAMILIES = ("resnet-11-0.5", "mobilenet-11-0.5", "pyd-add-11-0.25", "pyd-concat-11-0.25")
ONE, TWO = (mx.cpu(),), (mx.cpu(0), mx.cpu(1))
DIGITS = config.read(ROOT / "configs" / "digits.yaml")
PLAIN = {"model": "pyd-add-11-0.25", "warmup_epochs": 0.5, "mixup": 0, "mixup_off_epochs": 0, "label_smoothing": 0}


# Gradients


def made(model, contexts, frozen, batch_size, accumulate):
    """A trainer whose momentum after one update is the mean gradient."""
    values = {"model": model, "batch_size": batch_size, "accumulation_steps": accumulate, "weight_decay": 0}
    recipe = config.make({**DIGITS, **values})
    net = build_for(model, "digits")
    if frozen:  # over the moving statistics, as the images of a device depend on each other otherwise
        net.apply(lambda block: isinstance(block, nn.BatchNorm) and block._kwargs.update(use_global_stats=True))
    initialize(net, recipe, contexts)
    return GluonTrainer(net, recipe, contexts)


@functools.lru_cache
def first_step(model, contexts=ONE, accumulate=1):
    """Parameters and momentum after the update by the same 16 digits, however they are shared out."""
    trainer = made(model, contexts, True, 16 // accumulate, accumulate)
    source = batches(get_dataset("digits"), 16 // accumulate, train=True)
    for _ in range(accumulate):
        images, labels = next(source)
        trainer.train_step(images, make_targets(labels, 10), 1.0)
    parameters, momentum = trainer.state()
    return {**parameters, **{f"gradient of {name}": array for name, array in momentum.items()}}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    gradients = [name for name in expected if name.startswith("gradient")]
    assert len(gradients) > 40
    assert min(np.abs(expected[name]).max() for name in gradients) > 1e-3
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", FAMILIES)
def test_two_devices_take_the_first_step_of_one(model):
    assert_close(first_step(model, TWO), first_step(model))


@pytest.mark.parametrize("model", FAMILIES)
def test_two_passes_of_half_the_size_take_the_first_step_of_one(model):
    assert_close(first_step(model, accumulate=2), first_step(model))


def test_two_devices_get_the_mean_of_their_moving_statistics():
    trainer = made("pyd-concat-11-0.25", TWO, False, 16, 1)
    images, labels = next(batches(get_dataset("digits"), 16, train=True))
    trainer.train_step(images, make_targets(labels, 10), 1.0)()
    mx.nd.waitall()
    moving = {name: each for name, each in trainer.parameters.items() if "running" in name}
    before = {name: [array.asnumpy() for array in each.list_data()] for name, each in moving.items()}
    assert any((one != other).any() for one, other in before.values())
    trainer.sync_batch_norm()
    for name, each in moving.items():
        for array in each.list_data():
            np.testing.assert_allclose(array.asnumpy(), np.mean(before[name], axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("size", "devices", "workers", "near"), [(30, 2, 2, 32), (1, 1, 2, 2), (9, 2, 1, 8)])
def test_a_batch_that_cannot_be_shared_out_names_the_nearest(size, devices, workers, near):
    recipe = config.make({**DIGITS, "model": FAMILIES[0], "batch_size": size})
    shares = f"{workers} worker.* with {devices} device"
    with pytest.raises(InvalidValueError, match=f"batch_size is {size} .*{shares}.*nearest: {near}"):
        check_split(recipe, devices, workers)


# Runs


def last_error(directory):
    return State.read(directory / "last.state").progress["history"][-1]["test_error"]


@pytest.mark.fuzz
def test_two_devices_reach_the_error_of_one_device(tmp_path):
    # All go on from the same weights, in large batches at a small learning rate. From the first step on and in small
    # ones, a run ends a point or two from another in any case: 360 test images are few, and batch normalisation over
    # half a batch is as good as another seed.
    wild = {**PLAIN, "epochs": 2, "batch_size": 16, "schedule": "step", "learning_rate": 0.1}
    calm = {**PLAIN, "epochs": 2, "batch_size": 64, "schedule": "cosine", "learning_rate": 0.03}
    weights = tmp_path / "start" / "last.params"

    def train(name, contexts, recipe, init=None):
        begun = session.Session(config.make({**DIGITS, **recipe}), tmp_path / name, weights=init)
        with session.opened(begun, functools.partial(make, contexts=contexts)) as loop:
            assert loop.run() == 0
        return last_error(tmp_path / name)

    start = train("start", ONE, wild)
    one, two = train("one", ONE, calm, weights), train("two", TWO, calm, weights)
    assert one < start / 2
    assert two == pytest.approx(one, abs=1.0)
