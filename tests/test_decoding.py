"""Runs begun when all pictures were decoded in full are resumed, validated and used so."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import MODEL, assert_mistake, options, runner
from PIL import Image

import pydmobilenet
from pydmobilenet import checkpoints
from pydmobilenet.data import folder, get_splits
from pydmobilenet.training.loop import Loop

pytestmark = pytest.mark.trains
RECIPE = {"model": MODEL, "batch_size": 4, "epochs": 1, "warmup_epochs": 0, "device": "cpu", "val_fraction": 0.2}


@pytest.fixture
def old_run(tmp_path, monkeypatch, capsys):
    """A run as of an earlier version, interrupted at once, and the function that trains."""
    train, photos, run = runner(monkeypatch, capsys), tmp_path / "photos", tmp_path / "run"
    generator = np.random.default_rng(0)
    for name in "ab":
        (photos / name).mkdir(parents=True)
        for number in range(10):
            image = Image.fromarray(generator.integers(0, 256, (150, 200, 3), np.uint8))
            image.save(photos / name / f"{number}.jpg")
    task = folder.task
    with monkeypatch.context() as patch:
        patch.setattr(folder, "task", lambda *arguments: replace(task(*arguments), decoding="full"))
        patch.setattr(Loop, "run", lambda self: 143)
        assert train(photos, "--output", run, *options(RECIPE)).returncode == 143
    record = json.loads((run / "run.json").read_text())
    assert record.pop("decoding") == "full"
    (run / "run.json").write_text(json.dumps(record))
    return run, photos, record, train


def test_a_run_of_an_earlier_version_decodes_in_full(old_run):
    run, photos, _, train = old_run
    assert train("--resume", run).returncode == 0
    checkpoint = checkpoints.find(weights=run)
    assert (checkpoint.task.decoding, checkpoint.metadata()["decoding"]) == ("full", '"full"')
    (result,) = pydmobilenet.validate(run, progress=False)
    assert result.verdict == "match"
    new, old = (get_splits(photos, task=task).train.images for task in (None, checkpoint.task))
    assert (new != old).any()
    file = str(photos / "a" / "0.jpg")
    (found,), (expected,) = (pydmobilenet.predict(image, weights=run) for image in (file, Image.open(file)))
    assert found.classes == expected.classes


def test_a_run_is_not_resumed_with_another_decoding(old_run):
    run, _, record, train = old_run
    (run / "run.json").write_text(json.dumps({**record, "decoding": "draft"}))
    assert_mistake(train("--resume", run, "--quiet"), "data has changed since the run began: other pixels")
    (run / "run.json").write_text(json.dumps({**record, "decoding": "guess"}))
    assert_mistake(train("--resume", run, "--quiet"), "invalid decoding: guess")
