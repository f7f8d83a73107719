"""A family that a user registers: all but training by Gluon goes without another line."""

import re

import numpy as np
import oracle
import pytest
from helpers import ROOT, commander

import pydmobilenet
from pydmobilenet import catalog, network
from pydmobilenet.network import FAMILIES

pytestmark = pytest.mark.pytorch

MODEL = "pyd-max-11-0.25"


@pytest.fixture(autouse=True)
def family():
    """The example of docs/contributing.md, carried out."""
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(@register_family.*?)```", page, re.DOTALL)
    exec(f"from __future__ import annotations\n{example[1]}", {**vars(network)})
    yield
    del FAMILIES["pyd-max"]


@pytest.fixture
def run(tmp_path):
    recipe = {"epochs": 1, "warmup_epochs": 0, "engine": "pytorch", "device": "cpu", "progress": False}
    return pydmobilenet.train(MODEL, "digits", output=tmp_path / "run", **recipe)


def test_it_has_parameters_and_a_layer_table(monkeypatch, capsys):
    description = catalog.describe(MODEL)
    assert description.parameters["stages.0.0.spatial.conv9.weight"] == (8, 1, 9, 9)
    code, out, err = commander(monkeypatch, capsys)("info", MODEL)
    assert code == 0, err
    assert "stages.2.0.spatial" in out
    assert f"{description.complexity().parameters:,}" in out


@pytest.mark.parametrize("fused", [True, False])
def test_its_answers_are_the_oracle_s(fused):
    from pydmobilenet.folding import fold
    from pydmobilenet.onnx import graph, session
    from pydmobilenet.pytorch.inference import PyTorchEngine

    description = catalog.describe(MODEL)
    arrays = oracle.random_arrays(description)
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    expected = oracle.logits(description, arrays, images)
    form = fold(description, arrays) if fused else (description, arrays)
    onnx = session.predictor(graph.convert(*form))(images)
    for found in (PyTorchEngine("cpu", fused).load(description, arrays)(images), onnx):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_it_is_trained_resumed_validated_exported_and_predicts(run, tmp_path):
    assert run.history.rows[-1].epoch == 1
    assert pydmobilenet.train(resume=run, device="cpu", progress=False).history.rows == run.history.rows
    (result,) = pydmobilenet.validate(run, engine="pytorch", processes=1, progress=False)
    assert result.verdict == "match"
    pydmobilenet.export(None, tmp_path / "net.onnx", weights=run, engine="pytorch")
    assert (tmp_path / "net.onnx").stat().st_size > 10_000
    image = pydmobilenet.get_dataset("digits", "test").images[0]
    (answer,) = pydmobilenet.predict(image.transpose(1, 2, 0), weights=run, engine="pytorch")
    assert answer.classes[0][1] in "0123456789"


def test_its_name_is_forgotten_with_it():
    assert "pyd-max" in network.FAMILIES
    with pytest.raises(pydmobilenet.errors.InvalidValueError, match="unknown model"):
        pydmobilenet.get_model("pyd-min-11-0.25", engine="pytorch")
