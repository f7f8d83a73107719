"""Other libraries' ways to the networks: directories in Hugging Face's layout, torch.hub, timm."""

import json

import numpy as np
import oracle
import pytest
import yaml
from helpers import ROOT

import pydmobilenet
from pydmobilenet import catalog, zoo
from pydmobilenet.checkpoints import params, safetensors
from pydmobilenet.data import get_task
from pydmobilenet.errors import InvalidValueError, UnusableError, UserError

MODEL = "pyd-add-29-0.25"  # published, and bundled for the digits


# Hugging Face's layout


@pytest.fixture
def exported(tmp_path):
    pydmobilenet.export(MODEL, tmp_path / "hf", "digits", format="huggingface")
    return tmp_path / "hf"


def front_matter(directory):
    return yaml.safe_load((directory / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_a_directory_has_the_network_its_configuration_and_a_card(exported):
    assert sorted(path.name for path in exported.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((exported / "config.json").read_text())
    assert config["architecture"] == "pyd_add_29_025"
    assert (config["num_classes"], config["num_features"]) == (10, 128)
    assert config["label_names"] == list("0123456789")
    assert config["pretrained_cfg"]["mean"] == list(get_task("digits").mean)
    assert config["pretrained_cfg"]["classifier"] == "head.dense"
    found = safetensors.read(exported / "model.safetensors")
    bundled = params.read(ROOT / "pretrained" / f"digits-{MODEL}.params")
    assert found.arrays.keys() == bundled.keys()
    for name, array in bundled.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert zoo.source(None, weights=exported / "model.safetensors").task == get_task("digits")


def test_a_card_says_whose_the_weights_are_and_how_well_they_do(exported):
    text = (exported / "README.md").read_text(encoding="utf-8")
    assert front_matter(exported)["license"] == "apache-2.0"
    assert "- Error: 1.94 % of the test images, measured when it was trained" in text


def test_the_authors_weights_have_no_license_of_ours(weights_dir, tmp_path):
    checkpoint = catalog.find(MODEL, "cifar10").checkpoint
    file = next(weights_dir.rglob(checkpoint.filename))
    for number, options in enumerate([{"weights_dir": weights_dir}, {"weights": file}]):
        pydmobilenet.export(MODEL, tmp_path / str(number), format="huggingface", **options)
        assert "license" not in front_matter(tmp_path / str(number))
        text = (tmp_path / str(number) / "README.md").read_text(encoding="utf-8")
        assert "% of the test images (10 classes), as published" in text
        assert "Weights: the authors'" in text


def test_a_network_that_is_not_published_is_named_by_arguments(tmp_path):
    params.write(tmp_path / "x.params", oracle.random_arrays(zoo.describe("pyd-add-11-0.125", "imagenet32")))
    network = ("pyd-add-11-0.125", tmp_path / "hf", "imagenet32")
    pydmobilenet.export(*network, weights=tmp_path / "x.params", format="huggingface")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architecture"] == "pydmobilenet"
    assert config["model_args"] == {"name": "pyd-add-11-0.125", "dataset": "imagenet32"}
    assert "license" not in front_matter(tmp_path / "hf")


def test_what_is_at_the_place_of_a_directory_stays(exported):
    before = (exported / "README.md").stat().st_mtime_ns
    with pytest.raises(UnusableError, match="exists already"):
        pydmobilenet.export(MODEL, exported, "digits", format="huggingface")
    assert (exported / "README.md").stat().st_mtime_ns == before


@pytest.mark.parametrize("option", [{"fused": False}, {"uint8_input": True}, {"data_dir": "."}, {"engine": "gluon"}])
def test_what_is_for_onnx_files_alone_is_refused(option, tmp_path):
    with pytest.raises(UserError, match="is for an ONNX file"):
        pydmobilenet.export(MODEL, tmp_path / "hf", "digits", format="huggingface", **option)
    assert not (tmp_path / "hf").exists()


def test_an_unknown_format_has_a_nearest_one(tmp_path):
    with pytest.raises(InvalidValueError, match=r"unknown format 'hugging_face'; nearest: huggingface"):
        pydmobilenet.export(MODEL, tmp_path / "hf", format="hugging_face")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("pyd-concat-56-0.5", "pyd_concat_56_050"),
        ("resnet-29-0.25", "resnet_29_025"),
        ("mobilenet-56-1.5", "mobilenet_56_150"),
        ("pyd-add-29-1", "pyd_add_29_100"),
        ("wrn-28-10", "wrn_28_10"),
    ],
)
def test_timm_s_names_have_hundredths(model, name):
    assert catalog.timm_name(catalog.parse_name(model)) == name


def test_every_published_network_has_a_timm_name_of_its_own():
    models = catalog.list_models()
    assert len({catalog.timm_name(catalog.parse_name(model)) for model in models}) == len(models)
