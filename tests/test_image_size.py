"""Images of other sizes than 32x32, through training, every engine, prediction, export and what a run records."""

import json

import numpy as np
import onnxruntime
import oracle
import pytest
from helpers import MODEL, TRAINERS, assert_mistake, make_classes, options, runner
from oracle import FAMILIES
from PIL import Image

import pydmobilenet
from pydmobilenet import catalog, checkpoints, engine

ENGINES = [*TRAINERS, "onnxruntime"]
RECIPE = {"model": MODEL, "batch_size": 8, "epochs": 2, "warmup_epochs": 1, "image_size": 48, "device": "cpu"}


@pytest.fixture
def train(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_classes(tmp_path_factory.mktemp("own") / "photos", "abc", {".": 10}, side=64)


@pytest.mark.parametrize("side", [8, 44, 64])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ENGINES)
def test_the_answers_to_images_of_any_size_are_the_oracle_s(kind, name, side):
    network = catalog.describe(name)
    arrays = oracle.random_arrays(network)
    images = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)
    predict = engine.choose(kind, "cpu").engine.load(network, arrays)
    expected = oracle.logits(network, arrays, images)
    np.testing.assert_allclose(predict(images), expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_run_of_larger_images_tells_their_size_to_whatever_takes_it(kind, photos, train, tmp_path):
    run = tmp_path / "run"
    answer = train(photos, "--output", run, "--engine", kind, *options(RECIPE))
    assert answer.returncode == 0, answer.stderr
    assert json.loads((run / "run.json").read_text())["image_size"] == 48
    assert checkpoints.inspect(run).task.image == (3, 48, 48)
    (result,) = pydmobilenet.validate(run, progress=False)
    assert result.verdict == "match"
    assert result.complexity == catalog.describe(MODEL, outputs=3).complexity((3, 48, 48))
    answers = pydmobilenet.predict(photos, weights=run, top=1)
    assert all(each.resized and each.size == (64, 64) for each in answers)
    pydmobilenet.export(None, tmp_path / "net.onnx", weights=run, uint8_input=True)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["image_size"] == "48"
    assert session.get_inputs()[0].shape == ["N", 48, 48, 3]
    for each in answers:
        pixels = np.asarray(Image.open(each.image).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR))
        (logits,) = session.run(["logits"], {"images": pixels[np.newaxis]})
        assert logits.argmax() == each.classes[0][0]


def test_a_network_answers_to_another_size_where_that_is_asked_for(photos):
    by_size = {}
    for size in (None, 32, 64):
        (answer,) = pydmobilenet.predict(
            photos / "a" / "00.png", "pyd-add-29-0.25", dataset="digits", top=1, image_size=size
        )
        by_size[size] = answer.classes[0][2]
    assert by_size[None] == by_size[32] != by_size[64]
    assert checkpoints.find("pyd-add-29-0.25", "digits", image_size=64).task.image == (3, 64, 64)


@pytest.mark.parametrize(("size", "nearest"), [(30, 28), (0, 8), (2000, 1024)])
def test_a_size_that_cannot_be_is_named_with_the_nearest(size, nearest, photos):
    with pytest.raises(ValueError, match=rf"image_size is {size} \(allowed: a multiple of 4 .*; nearest: {nearest}\)"):
        pydmobilenet.predict(photos / "a" / "00.png", "pyd-add-29-0.25", dataset="digits", image_size=size)


@pytest.mark.trains
def test_a_run_does_not_go_on_with_another_size(photos, train, tmp_path):
    answer = train(photos, "--output", tmp_path / "run", *options({**RECIPE, "epochs": 1, "warmup_epochs": 0}))
    assert answer.returncode == 0, answer.stderr
    assert_mistake(
        train("--resume", tmp_path / "run", "--image-size", 32), "image_size is 32, but the run began with 48"
    )


@pytest.mark.parametrize("forged", [0, 30, 2000, "48", 48.0, True])
def test_a_forged_size_is_refused(forged):
    with pytest.raises((TypeError, ValueError)):
        pydmobilenet.data.recorded_task("folder:x", {"classes": ["a"], "outputs": 1, "image_size": forged})
