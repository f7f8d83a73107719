"""From the same weights, Gluon and PyTorch come to the same parameters."""

import functools
import json
import math
import types

import mxnet as mx
import numpy as np
import pytest
import torch
from helpers import RECIPE, ROOT, assert_mistake, make_folder, options, runner

import pydmobilenet
from pydmobilenet.data import Dataset, batches, get_task
from pydmobilenet.gluon import trainer as gluon_trainer
from pydmobilenet.network import BatchNorm
from pydmobilenet.pytorch import trainer as pytorch_trainer
from pydmobilenet.training import config
from pydmobilenet.training.loader import make_targets

pytestmark = [pytest.mark.gluon, pytest.mark.pytorch]

MODELS = ["resnet-11-0.5", "mobilenet-11-0.5", "pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-1"]
DIGITS = {**config.read(ROOT / "configs" / "digits.yaml"), "batch_size": 16}
TWENTY = np.array([1.0] * 12 + [0.1] * 8)  # across a drop of the learning rate
MAKE = {
    "gluon": functools.partial(gluon_trainer.make, contexts=[mx.cpu()]),
    "pytorch": functools.partial(pytorch_trainer.make, device=torch.device("cpu")),
}


@functools.lru_cache
def noise(batches=20):
    """Random images. In real ones, large areas of one colour put many inputs of a ReLU at the same distance from 0."""
    rng, images = np.random.default_rng(0), batches * DIGITS["batch_size"]
    pixels = rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    return Dataset(get_task("digits"), "train", pixels, rng.integers(0, 10, images), False, "noise")


def in_float64(trainer, monkeypatch):
    """Have a trainer compute in double precision, which neither engine offers to users."""
    if isinstance(trainer, pytorch_trainer.PyTorchTrainer):
        trainer.net.double()
        trainer._empty = lambda shape: torch.empty(shape, dtype=torch.float64)
        return
    trainer.net.cast("float64")
    array = lambda values, context=None, dtype="float64": mx.nd.array(values, context, dtype)  # noqa: E731
    monkeypatch.setattr(gluon_trainer, "nd", types.SimpleNamespace(**{**vars(mx.nd), "array": array}))


def made(engine, model):
    return MAKE[engine](config.make({**DIGITS, "model": model}), noise().task)


def source():
    for images, labels in batches(noise(), DIGITS["batch_size"], train=True):
        yield images, make_targets(labels, 10, 0.1)


def split(state):
    """The parameters that are trained, the moving means and variances, and the momentum of a trainer's state."""
    parameters, momentum = state
    kinds = [{name: array for name, array in parameters.items() if kind in name} for kind in ("mean", "var")]
    return {name: parameters[name] for name in momentum}, *kinds, momentum


def apart(found, expected):
    """How far two sets of arrays are from each other, by the norm of the second, all arrays together."""
    assert found.keys() == expected.keys()
    difference = sum(np.square(found[name].astype(float) - expected[name]).sum() for name in expected)
    return np.sqrt(difference / sum(np.square(array.astype(float)).sum() for array in expected.values()))


@pytest.mark.parametrize("model", MODELS)
def test_after_twenty_updates_the_parameters_are_the_same(model):
    """At a small rate. Rounding lets a few inputs of ReLUs change their sign, which changes gradients by a thousandth;
    and what follows doubles with each update, the more the larger the rate: at 0.1 two runs of one engine on two
    processors are as far apart as these.
    """
    gluon, pytorch = (made(engine, model) for engine in MAKE)
    pytorch.load_state(gluon.state()[0], {})
    for trainer in (gluon, pytorch):
        for (images, targets), rate in zip(source(), 0.001 * TWENTY):
            trainer.train_step(images, targets, rate)()
    found, expected = split(pytorch.state()), split(gluon.state())
    assert apart(found[0], expected[0]) < 1e-4
    assert apart(found[-1], expected[-1]) < 0.3


@pytest.mark.parametrize("model", [pytest.param("mobilenet-11-0.5", marks=pytest.mark.fuzz), "pyd-concat-11-0.25"])
def test_each_of_twenty_updates_from_the_same_state_is_the_same_in_float64(model, monkeypatch):
    """At the digits' own rate."""
    gluon, pytorch = (made(engine, model) for engine in MAKE)
    start = {name: array.astype(float) for name, array in gluon.state()[0].items()}
    for trainer in (gluon, pytorch):
        in_float64(trainer, monkeypatch)
    gluon.load_state(start, {})
    shapes = gluon.net.description.shapes()
    numbers = {  # that a batch normalisation takes the variance of
        f"{layer.name}.running_var": DIGITS["batch_size"] * math.prod(shapes[layer.inputs[0]][1:])
        for layer in gluon.net.description.layers
        if isinstance(layer, BatchNorm)
    }
    for (images, targets), rate in zip(source(), 0.1 * TWENTY):
        state = gluon.state()
        pytorch.load_state(*state)
        for trainer in (gluon, pytorch):
            trainer.train_step(images, targets, rate)()
        found, expected = split(pytorch.state()), split(gluon.state())
        # On a CPU, MXNet takes the mean square for the variance, PyTorch its unbiased estimate.
        kept = {name: 0.9 * array for name, array in split(state)[2].items()}
        unbiased = {
            name: kept[name] + (array - kept[name]) * numbers[name] / (numbers[name] - 1)
            for name, array in expected[2].items()
        }
        distances = [apart(*pair) for pair in zip(found, (*expected[:2], unbiased, expected[3]))]
        # Measured: 1e-9, 3e-7, 3e-8 and 7e-8; a single ReLU whose input changes its sign makes 3e-4 of the last one.
        assert all(distance < limit for distance, limit in zip(distances, (1e-6, 1e-5, 1e-5, 3e-3))), distances


@pytest.mark.parametrize(("first", "second"), [("gluon", "pytorch"), ("pytorch", "gluon")])
def test_weights_cross_over_to_the_other_engine_and_a_state_does_not(first, second, tmp_path, monkeypatch, capsys):
    train = runner(monkeypatch, capsys)
    folder, begun, continued = make_folder(tmp_path / "pictures"), tmp_path / "begun", tmp_path / "continued"
    recipe = ["-m", "pyd-add-11-0.125", "-d", folder, "--device", "cpu", *options({**RECIPE, "epochs": 2})]
    assert train(*recipe, "--engine", first, "--output", begun).returncode == 0
    refused = train("--resume", begun, "--engine", second)
    words = f"last.state is of engine {first!r}, not {second!r}: pass --engine {first}; to train on, start a new run"
    assert_mistake(refused, words)
    answer = train(*recipe, "--engine", second, "--weights", begun, "--output", continued)
    assert answer.returncode == 0, answer.stderr
    metadata = [json.loads((run / "run.json").read_text()) for run in (begun, continued)]
    assert metadata[1]["initial_weights"]["sha256"] == metadata[0]["checkpoints"]["best.params"]["sha256"]
    (result,) = pydmobilenet.validate(continued, engine=first, progress=False)
    assert result.verdict == "match"
