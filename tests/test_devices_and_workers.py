"""Several devices and several workers learn what one device learns."""

import functools

import mxnet as mx
import numpy as np
import pytest
from helpers import ROOT, ended, free_port, machines, started, until
from mxnet.gluon import nn

from pydmobilenet.data import batches, get_dataset
from pydmobilenet.errors import InvalidValueError
from pydmobilenet.gluon.network import build_for
from pydmobilenet.gluon.trainer import GluonTrainer, initialize, make
from pydmobilenet.gluon.workers import Workers
from pydmobilenet.training import config, mixup, prepare
from pydmobilenet.training.checkpoint import State
from pydmobilenet.training.trainer import check_split

FAMILIES = ("resnet-11-0.5", "mobilenet-11-0.5", "pyd-add-11-0.25", "pyd-concat-11-0.25")
ONE, TWO = [mx.cpu()], [mx.cpu(0), mx.cpu(1)]
DIGITS = config.read(ROOT / "configs" / "digits.yaml")
PLAIN = {"model": "pyd-add-11-0.25", "warmup_epochs": 0.5, "mixup": 0, "mixup_off_epochs": 0, "label_smoothing": 0}
WORKER = ["train.py", "-d", "digits", "--kvstore", "dist_sync", "--device", "cpu"]


# Gradients


def made(model, contexts, workers, frozen, batch_size, accumulate):
    """A trainer whose momentum after one update at a learning rate of 1 is minus the mean gradient."""
    values = {"model": model, "batch_size": batch_size, "accumulation_steps": accumulate, "weight_decay": 0}
    recipe = config.make({**DIGITS, **values})
    net = build_for(model, "digits")
    if frozen:  # over the moving statistics, as the images of a device depend on each other otherwise
        net.apply(lambda block: isinstance(block, nn.BatchNorm) and block._kwargs.update(use_global_stats=True))
    initialize(net, recipe, contexts)
    return GluonTrainer(net, recipe, contexts, workers or Workers())


def first_step(model, contexts=ONE, workers=None, accumulate=1):
    """Parameters and momentum after the update by the same 16 digits, however they are shared out."""
    trainer = made(model, contexts, workers, True, 16 // accumulate, accumulate)
    parts = {"part": trainer.rank, "parts": trainer.world_size}
    source = batches(get_dataset("digits"), 16 // accumulate // trainer.world_size, train=True, **parts)
    for _ in range(accumulate):
        images, labels = next(source)
        trainer.train_step(images, mixup.targets(labels, 10), 1.0)
    parameters, momentum = trainer.state()
    return {**parameters, **{f"gradient of {name}": array for name, array in momentum.items()}}


one_step = functools.lru_cache(first_step)  # that of one device, compared with several times


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    gradients = [name for name in expected if name.startswith("gradient")]
    assert len(gradients) > 40
    assert min(np.abs(expected[name]).max() for name in gradients) > 1e-3
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", FAMILIES)
def test_two_devices_take_the_first_step_of_one(model):
    assert_close(first_step(model, TWO), one_step(model))


@pytest.mark.parametrize("model", FAMILIES)
def test_two_passes_of_half_the_size_take_the_first_step_of_one(model):
    assert_close(first_step(model, accumulate=2), one_step(model))


@pytest.mark.parametrize("model", FAMILIES)
def test_two_workers_take_the_first_step_of_one(model, two_machines):
    directory, *_ = two_machines
    for rank in (0, 1):
        with np.load(directory / f"{model}-{rank}.npz") as found:
            assert_close(dict(found), one_step(model))


def test_two_devices_get_the_mean_of_their_moving_statistics():
    trainer = made("pyd-concat-11-0.25", TWO, None, False, 16, 1)
    images, labels = next(batches(get_dataset("digits"), 16, train=True))
    trainer.train_step(images, mixup.targets(labels, 10), 1.0)()
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


# What two workers run

FIRST_STEPS = """
import sys
from pathlib import Path
import numpy as np
import pydmobilenet  # before mxnet
sys.path.insert(0, "tests")
from test_devices_and_workers import FAMILIES, Workers, first_step

workers = Workers("dist_sync")
broadcast, pushpull = workers.kvstore.broadcast, workers.kvstore.pushpull
for number, model in enumerate(FAMILIES):
    # Each network's parameters are numbered from 0, and the server takes a number for one parameter alone.
    workers.kvstore.broadcast = lambda key, *rest: broadcast(1000 * number + key, *rest)
    workers.kvstore.pushpull = lambda key, *rest, **options: pushpull(1000 * number + key, *rest, **options)
    np.savez(Path(sys.argv[1]) / f"{model}-{workers.rank}", **first_step(model, workers=workers))
if workers.rank == 1:
    sys.exit(5)
del workers.kvstore.pushpull
workers.sum(np.ones(1))  # waits for the other one
"""


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory):
    """Two launchers with a worker each, both on this machine: what the workers wrote, and how the launchers ended."""
    directory = tmp_path_factory.mktemp("steps")
    first, second = machines(2, free_port())
    with started(*second, "-c", FIRST_STEPS, directory) as joined, started(*first, "-c", FIRST_STEPS, directory) as led:
        return directory, ended(led), ended(joined)


def test_a_worker_that_fails_ends_those_on_all_machines_that_wait_for_its_gradients(two_machines):
    _, (code, _, err), (other, _, _) = two_machines
    assert (code, other) == (5, 5), err
    assert "1 worker(s) at 127.0.0.1, 0 more to come" in err
    assert "Traceback" not in err


# Runs


def on(contexts):
    return prepare.RunOptions(functools.partial(make, contexts=contexts))


def options(values):
    return [text for key, value in values.items() for text in (f"--{key.replace('_', '-')}", str(value))]


def last_error(directory):
    return State.read(directory / "last.state").progress["history"][-1]["test_error"]


def test_two_devices_and_two_workers_reach_the_error_of_one_device(tmp_path):
    # All go on from the same weights, in large batches at a small learning rate. From the first step on and in small
    # ones, a run ends a point or two from another in any case: 360 test images are few, and batch normalisation over
    # half a batch is as good as another seed.
    wild = {**PLAIN, "epochs": 2, "batch_size": 16, "schedule": "step", "learning_rate": 0.1}
    calm = {**PLAIN, "epochs": 2, "batch_size": 64, "schedule": "cosine", "learning_rate": 0.03}
    weights = tmp_path / "start" / "last.params"

    def train(name, contexts, recipe, init=None):
        loop = prepare.start(config.make({**DIGITS, **recipe}), tmp_path / name, on(contexts), init)
        assert loop.run() == 0
        return last_error(tmp_path / name)

    start = train("start", ONE, wild)
    one, two = train("one", ONE, calm, weights), train("two", TWO, calm, weights)
    arguments = [*WORKER, *options(calm), "--init", weights, "--output", tmp_path / "workers"]
    with started("--workers", 2, "--", *arguments) as process:
        code, _, err = ended(process)
        assert code == 0, err
    assert one < start / 2
    assert two == pytest.approx(one, abs=1.0)
    assert last_error(tmp_path / "workers") == pytest.approx(one, abs=1.0)


def test_a_run_of_two_workers_is_interrupted_as_a_whole_and_goes_on_elsewhere(tmp_path):
    run = tmp_path / "run"
    begin = [*WORKER, *options({**PLAIN, "model": "resnet-11-0.125", "batch_size": 64, "epochs": 2}), "--output", run]
    first, second = machines(2, free_port())
    with started(*first, *begin) as led, started(*second, *begin) as joined:
        until((run / "history.csv").exists)
        led.terminate()  # which the workers of the other machine come to know from those of this one
        for process in (led, joined):
            code, _, err = ended(process)
            assert code == 143, err
            assert f"to go on: python train.py --resume {run}" in err
    loop = prepare.resume(run, on(TWO))
    assert loop.progress.epochs == 1
    assert 0 < loop.progress.batches < loop.batches
    assert loop.run() == 0
    assert [row.epoch for row in loop.progress.history.rows] == [1, 2]
