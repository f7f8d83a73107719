"""Quantisation-aware training: passes that round as an int8 file does, and runs that begin at weights."""

import gc
import json

import numpy as np
import pytest
import torch
from helpers import MODEL, ROOT, TINY, assert_mistake, assert_same, content, make_folder, options, stop_at_look

from pydmobilenet import data
from pydmobilenet.data import get_task
from pydmobilenet.errors import InvalidValueError
from pydmobilenet.network import BatchNorm
from pydmobilenet.pytorch import qat
from pydmobilenet.pytorch import trainer as pytorch_trainer
from pydmobilenet.pytorch.network import get_arrays
from pydmobilenet.training import config
from pydmobilenet.training.recipe import configure

pytestmark = [pytest.mark.pytorch, pytest.mark.trains]
CPU = torch.device("cpu")
BUNDLED = ROOT / "pretrained" / "digits-pyd-add-29-0.25.params"
FAMILIES = ["resnet-11-0.25", "mobilenet-11-0.25", MODEL, "pyd-concat-11-0.25", "wrn-10-1"]


def trainer(model=MODEL, **values):
    given = {"model": model, "dataset": "digits", "batch_size": 8, "qat": True, **values}
    return pytorch_trainer.make(config.make(given), get_task("digits"), CPU)


def warm(net):
    """Give a network statistics that are not those of its beginning."""
    net.train()
    for number in range(5):
        net(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(number)) * (1 + number))
    return net


@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.1), (0.5, 3), (-4, -1), (0, 0)])
def test_a_map_has_256_steps_and_0_stays(low, high):
    values = torch.linspace(low, high, 5001)
    rounded = qat.fake_quantise(values)
    step = (max(high, 0) - min(low, 0)) / 255
    assert (rounded - values).abs().max() <= step / 2 + 1e-6
    assert len(rounded.unique()) <= 257  # the last one for a half at both ends
    assert qat.fake_quantise(torch.cat([values, torch.zeros(1)]))[-1] == 0


def test_weights_have_127_steps_to_either_side_for_each_output_channel():
    weight = (
        torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1, 10, 0.1, 0])[:, None, None, None]
    )
    steps = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = qat.fake_quantise_weight(weight)
    torch.testing.assert_close(rounded, torch.round(weight / steps.clamp(min=1e-9)) * steps)
    assert (rounded[3] == 0).all()


@pytest.mark.parametrize("model", FAMILIES)
def test_without_its_rounding_a_pass_is_the_network(model, monkeypatch):
    net = warm(trainer(model).net)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    rounded = qat.FakeQuantised(net)(images)
    for name in ("fake_quantise", "fake_quantise_weight"):
        monkeypatch.setattr(qat, name, lambda x: x)
    logits = qat.FakeQuantised(net)(images)
    expected = net.eval()(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert 1e-3 < (rounded - expected).std() / expected.std() < 0.3


@pytest.mark.parametrize("model", FAMILIES)
def test_a_pass_computes_what_the_int8_file_does(model, monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'pydmobilenet[tflite]'")
    from pydmobilenet.exporting import channels_last
    from pydmobilenet.tflite import graph, quantise, session

    monkeypatch.setattr(quantise, "PARTS", [1.0])  # the whole range, as in training
    net, task = warm(trainer(model).net), get_task("digits")
    pixels = np.random.default_rng(0).integers(0, 256, (quantise.BATCH, 3, 32, 32), np.uint8)
    network = graph.prepare(net.description, get_arrays(net), task, whole=True)
    scales = quantise.scales(*network, task.image, channels_last(pixels))
    found = session.predictor(graph.convert(*network, task.image, scales), kernels=session.BUILT_IN)(
        channels_last(pixels)
    )
    images = torch.from_numpy(data.normalise(pixels, task))
    rounded, fake_quantise = [], qat.fake_quantise
    monkeypatch.setattr(qat, "fake_quantise", lambda x: rounded.append(x) or fake_quantise(x))
    with torch.no_grad():
        logits, exact = qat.FakeQuantised(net)(images).numpy(), net.eval()(images).numpy()
    assert len(rounded) == len({*scales.values()})  # the maps of a file
    # One value that rounds otherwise changes all after it, so the errors are alike, not equal.
    errors = (found - exact).ravel(), (logits - exact).ravel()
    assert np.corrcoef(*errors)[0, 1] > 0.4
    assert 0.85 < errors[1].std() / errors[0].std() < 1.2


def test_a_step_trains_all_parameters_and_keeps_the_statistics():
    made = trainer()
    before = get_arrays(made.net)
    rng = np.random.default_rng(0)
    images, targets = rng.standard_normal((8, 3, 32, 32)).astype(np.float32), np.eye(10, dtype=np.float32)[:8]
    made.train_step(images, targets, 0.1)()
    after = get_arrays(made.net)
    norms = {layer.name: layer for layer in made.net.description.layers if isinstance(layer, BatchNorm)}
    for name, array in after.items():
        layer, _, parameter = name.rpartition(".")
        fixed = parameter.startswith("running_") or (layer in norms and not norms[layer].scale)
        assert np.array_equal(array, before[name]) == fixed, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"), train=6, test=2, val=4)


def test_qat_takes_its_recipe_begins_at_a_run_and_can_be_interrupted(folder, tmp_path, train, monkeypatch):
    start, fine = tmp_path / "start", tmp_path / "fine"
    begun = train("-d", folder, "-m", MODEL, *options(TINY), "--engine", "pytorch", "--output", start)
    assert begun.returncode == 0, begun.stderr
    arguments = ["-d", folder, "--qat", "--weights", start, "--epochs", 2, "--batch-size", 8]
    answer = train(*arguments, "--output", fine)
    assert answer.returncode == 0, answer.stderr
    recipe = json.loads((fine / "run.json").read_text())["config"]
    expected = config.read("qat")
    assert expected.pop("epochs") != recipe["epochs"] == 2
    assert {key: recipe[key] for key in expected} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
    }
    assert recipe["weight_decay"] == config.read("finetune")["weight_decay"]  # of the data set's recipe
    stop_at_look(monkeypatch, 3)  # in mid-epoch
    assert train(*arguments, "--output", tmp_path / "run").returncode > 128
    gc.collect()
    answer = train("--resume", tmp_path / "run")
    assert answer.returncode == 0, answer.stderr
    assert_same(content(tmp_path / "run"), content(fine))


@pytest.mark.parametrize("recipe", [None, "cifar-short", "qat"])
def test_its_recipe_is_laid_over_any_other(recipe):
    made = configure(config.parse({"model": MODEL, "dataset": "cifar10", "qat": True}), recipe, weights="published")
    assert {key: getattr(made, key) for key in config.read("qat")} == config.read("qat")
    assert made.weight_decay == config.read(recipe or "cifar").get("weight_decay", config.DEFAULTS["weight_decay"])


def test_weights_of_other_classes_have_to_be_trained_first(folder, train, tmp_path):
    answer = train(
        "-d",
        folder,
        "-m",
        "pyd-add-29-0.25",
        "--qat",
        "--weights",
        BUNDLED,
        "--batch-size",
        8,
        "--output",
        tmp_path / "run",
    )
    assert_mistake(answer, "has other classes: train without --qat first, then from that run with it")


def test_the_pyramid_of_triton_is_refused():
    made = config.make({"model": MODEL, "dataset": "digits", "qat": True})
    with pytest.raises(InvalidValueError, match="leave out --pyramid"):
        pytorch_trainer.make(made, get_task("digits"), CPU, pyramid="triton")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--qat"], "qat begins at trained weights: add --weights RUN, or --pretrained"),
        (["--config", "qat"], "qat begins at trained weights: add --weights RUN, or --pretrained"),
        (["--qat", "--pretrained", "--freeze"], "qat rounds all layers"),
        (["--qat", "--pretrained", "--dtype", "bfloat16"], "qat rounds float32, not bfloat16"),
        (["--qat", "maybe", "--pretrained"], "qat: 'maybe'; nearest: false (allowed: true, false)"),
        (["--qat", "--pretrained", "--engine", "gluon"], "has no quantisation-aware training (--qat)"),
    ],
)
def test_an_impossible_qat_is_a_mistake(given, words, train, tmp_path):
    answer = train("-m", "pyd-add-29-0.25", "-d", "digits", *given, "--output", tmp_path / "run")
    assert_mistake(answer, words)
    assert not (tmp_path / "run").exists()
