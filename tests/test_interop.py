"""Other libraries' ways to the networks: directories in Hugging Face's layout, torch.hub, timm."""

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys

import numpy as np
import oracle
import pytest
import yaml
from helpers import CIFAR_MODELS, ROOT, make_classes
from PIL import Image

import pydmobilenet
from pydmobilenet import catalog, checkpoints, huggingface
from pydmobilenet.checkpoints import formats, weights
from pydmobilenet.data import get_task
from pydmobilenet.errors import InvalidValueError, MissingFileError, UnusableError, UserError

MODEL = "pyd-add-29-0.25"  # published, and bundled for the digits
TIMM_NAMES = [catalog.timm_name(catalog.parse_name(model)) for model in CIFAR_MODELS]


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
    found = weights.read(exported / "model.safetensors")
    bundled = formats.read_params(ROOT / "pretrained" / f"digits-{MODEL}.params")
    assert found.keys() == bundled.keys()
    for name, array in bundled.items():
        np.testing.assert_array_equal(found[name], array)
    assert checkpoints.find(None, weights=exported / "model.safetensors").task == get_task("digits")


def test_a_card_says_whose_the_weights_are_and_how_well_they_do(exported):
    text = (exported / "README.md").read_text(encoding="utf-8")
    assert front_matter(exported)["license"] == "apache-2.0"
    manifest = json.loads((ROOT / "pretrained" / "manifest.json").read_text(encoding="utf-8"))
    (error,) = (entry["test_error"] for entry in manifest if entry["model"] == MODEL)
    assert f"- Error: {error:.2f} % of the test images, measured when it was trained" in text


def test_a_card_has_the_measured_accuracy_for_the_hub(exported):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(exported / "README.md").data
    (result,) = data.eval_results
    manifest = json.loads((ROOT / "pretrained" / "manifest.json").read_text(encoding="utf-8"))
    (error,) = (entry["test_error"] for entry in manifest if entry["model"] == MODEL)
    assert (data.model_name, result.task_type) == (MODEL, "image-classification")
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("Digits", "digits", "test")
    assert (result.metric_type, result.source_url) == ("accuracy", None)
    assert result.metric_value == pytest.approx(1 - error / 100, abs=1e-6)
    assert not (exported / ".eval_results").exists()


def test_a_card_names_the_split_and_the_source_of_an_error(tmp_path):
    task = get_task("cifar10")
    title = dataclasses.replace(task, name="folder:/anna/a: 'b'", title="a: 'b' # \u202e\n- \udce9")
    run = checkpoints.Checkpoint(MODEL, "folder:x", 12.5, path=tmp_path / "best.params", task=title, split="val")
    published = checkpoints.find(MODEL, "cifar10")
    unknown = checkpoints.Checkpoint(MODEL, "cifar10", path=tmp_path / "x.params", task=task)
    for source, name, kind, split, accuracy, url in (
        (run, "a: 'b' # \\u202e\\n- \\xe9", "imagefolder", "validation", 0.875, None),
        (published, "CIFAR-10", "uoft-cs/cifar10", "test", 0.9057, huggingface.AUTHORS),
    ):
        (model,) = yaml.safe_load(huggingface.card(source).split("---\n")[1])["model-index"]
        (result,) = model["results"]
        assert result["dataset"] == {"name": name, "type": kind, "split": split}
        assert result["metrics"][0]["value"] == accuracy
        assert result.get("source", {}).get("url") == url
    assert "- Error: 12.50 % of the validation images, measured when it was trained" in huggingface.card(run)
    assert "model-index" not in huggingface.card(unknown)


def test_the_authors_weights_have_no_license_of_ours(weights_dir, tmp_path):
    checkpoint = catalog.find(MODEL, "cifar10").file
    file = next(weights_dir.rglob(checkpoint.name))
    for number, options in enumerate([{"weights_dir": weights_dir}, {"weights": file}]):
        pydmobilenet.export(MODEL, tmp_path / str(number), format="huggingface", **options)
        assert "license" not in front_matter(tmp_path / str(number))
        text = (tmp_path / str(number) / "README.md").read_text(encoding="utf-8")
        assert "% of the test images (10 classes), as published" in text
        assert "Weights: the authors'" in text


def test_a_run_tells_its_card_the_classes_and_the_error(tmp_path):
    task = get_task("digits")
    run = tmp_path / "run"
    run.mkdir()
    oracle.write_random(run / "best.params", catalog.describe("pyd-add-11-0.125", "digits", outputs=2))
    sha256 = hashlib.sha256((run / "best.params").read_bytes()).hexdigest()
    checkpoints = {"best.params": {"epoch": 1, "test_error": 12.5, "sha256": sha256}}
    told = {"model": "pyd-add-11-0.125", "dataset": "folder:/photos/of pets", "classes": ["cat", "d\nog"], "outputs": 2}
    told.update(mean=task.mean, std=task.std, checkpoints=checkpoints)
    (run / "run.json").write_text(json.dumps(told))
    pydmobilenet.export(None, tmp_path / "hf", weights=run, format="huggingface")
    text = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    for line in (
        "# pyd-add-11-0.125 for of pets",
        "- Error: 12.50 % of the test images, measured when it was trained",
        "- Weights: trained with pydmobilenet",
        "- Classes: cat, d\\nog",
    ):
        assert f"\n{line}\n" in text
    assert "license" not in front_matter(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["label_names"] == ["cat", "d\nog"]
    assert config["model_args"] == {"name": "pyd-add-11-0.125"}


def test_what_is_given_away_has_no_path_of_the_folder_that_was_learned(tmp_path, monkeypatch):
    task = get_task("digits")
    arrays = oracle.random_arrays(catalog.describe("pyd-add-11-0.125", "digits", outputs=2))
    (tmp_path / "best.params").write_bytes(formats.dump_params(arrays))
    checkpoint = {"test_error": 12.5, "sha256": hashlib.sha256((tmp_path / "best.params").read_bytes()).hexdigest()}
    told = {
        "model": "pyd-add-11-0.125",
        "dataset": "folder:/home/anna/acme/photos",
        "classes": ["a", "b"],
        "outputs": 2,
    }
    told.update(mean=task.mean, std=task.std, checkpoints={"best.params": checkpoint})
    (tmp_path / "run.json").write_text(json.dumps(told))
    source = checkpoints.find(None, weights=tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    weights.write(away / "x.safetensors", source.arrays(), source.metadata())
    pydmobilenet.export(None, away / "x.onnx", weights=tmp_path)
    pydmobilenet.export(None, away / "hf", weights=tmp_path, format="huggingface")
    made = [path for path in away.rglob("*") if path.is_file()]
    assert len(made) == 5
    for path in made:
        assert not [word for word in (b"anna", b"acme", bytes(tmp_path)) if word in path.read_bytes()], path
    assert b"folder:photos" in (away / "x.onnx").read_bytes()

    monkeypatch.chdir(tmp_path)
    for file in (away / "x.safetensors", away / "hf" / "model.safetensors"):
        loaded = checkpoints.find(None, weights=file)
        assert (loaded.task.title, loaded.task.classes) == ("photos", ("a", "b"))
        assert checkpoints.find(None, "folder:photos", file).task == loaded.task
    make_classes(tmp_path / "photos", "ac", {".": 1})  # another folder that is called so
    with pytest.raises(InvalidValueError, match=r"was trained on folder:photos \(classes: a, b\), not folder:photos"):
        checkpoints.find(None, "folder:photos", file)
    pydmobilenet.export(None, away / "again.onnx", weights=file)


def test_a_network_that_is_not_published_is_named_by_arguments(tmp_path):
    oracle.write_random(tmp_path / "x.params", catalog.describe("pyd-add-11-0.125", "imagenet32"))
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
    with pytest.raises(UserError, match=r"is for the format onnx.*: leave it out for huggingface"):
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


# torch.hub


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def logits(torch, net):
    with torch.no_grad():
        return net.eval()(torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)))


def reference(torch, *arguments, **options):
    from pydmobilenet import pytorch

    return logits(torch, pytorch.get_model(*arguments, **options))


def test_the_hub_lists_the_published_networks_and_describes_them(torch, monkeypatch):
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *_, **__: str(ROOT))  # a download from GitHub
    assert torch.hub.list("owner/repository") == sorted(TIMM_NAMES)
    text = torch.hub.help("owner/repository", "pyd_concat_56_050")
    assert text.startswith("pyd-concat-56-0.5: normalised images (N, 3, 32, 32) to logits")


def test_the_hub_loads_a_network_with_the_authors_weights(torch, weights_dir):
    from_hub = {"repo_or_dir": str(ROOT), "model": "resnet_29_050", "source": "local"}
    net = torch.hub.load(**from_hub, pretrained=True, weights_dir=weights_dir)
    expected = reference(torch, "resnet-29-0.5", pretrained=True, weights_dir=weights_dir)
    assert torch.equal(logits(torch, net), expected)
    assert torch.hub.load(**from_hub, dataset="cifar100-coarse").num_classes == 100


@pytest.mark.slow
def test_the_hub_asks_for_what_its_networks_need(torch):
    code = "import hubconf, sys; hubconf.resnet_29_050(); print(*set(hubconf.dependencies) - set(sys.modules))"
    without = ("matplotlib", "yaml", "jinja2", "tabulate", "PIL", "onnx", "onnxruntime", "mxnet", "timm")
    code += f"; print(*[name for name in {without} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout == "requests\n\n", answer.stderr  # which a download needs


# timm


@pytest.fixture(scope="module")
def timm(torch):
    """timm, with this project's networks.

    It imports torchvision. Beside a build of PyTorch for which torchvision has no binary, that import fails, as it asks
    for the form of two operators of the binary. So they are declared here; nothing calls them.
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("pydmobilenet.pytorch.timm")
    yield importlib.import_module("timm")
    del library


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_every_published_network_is_registered_with_timm(timm, name):
    assert timm.is_model(name)
    assert timm.models.get_pretrained_cfg(name).input_size == [3, 32, 32]


def test_timm_s_network_has_what_timm_s_users_expect(timm, torch):
    net = timm.create_model("pyd_concat_29_025", num_classes=37)
    images = torch.zeros(2, 3, 32, 32)
    assert (net.num_classes, net.num_features) == (37, 128)
    assert net.forward_features(images).shape == (2, 128, 8, 8)
    assert net.forward_head(net.forward_features(images), pre_logits=True).shape == (2, 128)
    assert net(images).shape == (2, 37)
    net.reset_classifier(5)
    assert net.get_classifier().out_features == net.num_classes == net.description.outputs == 5
    net.reset_classifier(0)
    assert net.num_classes == 0
    assert net(images).shape == (2, 128)
    net.reset_classifier(3)
    assert net(images).shape == (2, 3)


def test_the_images_that_timm_prepares_are_normalised_as_ours(timm):
    config = timm.data.resolve_model_data_config(timm.create_model("resnet_29_050"))
    task = get_task("cifar10")
    assert (config["input_size"], config["crop_pct"]) == ([3, 32, 32], 1.0)
    assert (config["mean"], config["std"]) == (list(task.mean), list(task.std))


@pytest.mark.parametrize(
    ("name", "model", "dataset"),
    [
        ("mobilenet_29_050", "mobilenet-29-0.5", "cifar10"),
        ("resnet_29_050.cifar100-coarse", "resnet-29-0.5", "cifar100-coarse"),
    ],
)
def test_timm_loads_the_authors_weights(timm, torch, weights_dir, name, model, dataset, home):
    checkpoint = catalog.find(model, dataset).file
    if weights.find(checkpoint, weights_dir) is None:
        pytest.skip(f"{checkpoint.name} is not here")
    (home / "project").mkdir()
    (home / "project" / "models").symlink_to(weights_dir)
    expected = reference(torch, model, dataset, pretrained=True)
    assert torch.equal(logits(torch, timm.create_model(name, pretrained=True)), expected)
    other = timm.create_model(name, pretrained=True, num_classes=3)
    assert other.num_classes == 3
    headless = timm.create_model(name, pretrained=True, num_classes=0)
    assert torch.equal(logits(torch, headless), logits(torch, features_of(other)))


def features_of(net):
    net.reset_classifier(0)
    return net


@pytest.mark.parametrize("model", [MODEL, "pyd-add-11-0.125", "wrn-10-1"])
def test_timm_loads_a_directory_that_was_exported(timm, torch, tmp_path, model):
    arrays = oracle.random_arrays(catalog.describe(model, "digits"))
    (tmp_path / "x.params").write_bytes(formats.dump_params(arrays))
    pydmobilenet.export(model, tmp_path / "hf", "digits", weights=tmp_path / "x.params", format="huggingface")
    net = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True)
    assert torch.equal(logits(torch, net), reference(torch, model, weights=tmp_path / "hf" / "model.safetensors"))
    assert net.pretrained_cfg["label_names"] == list("0123456789")
    other = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True, num_classes=37)
    assert logits(torch, other).shape == (2, 37)
    assert torch.equal(logits(torch, features_of(other)), logits(torch, features_of(net)))


def test_a_directory_has_pytorch_s_names_of_parameters(timm, exported):
    """Transformers assigns them by name, without a module's own translation, and draws at random what is missing."""
    names = timm.create_model("pyd_add_29_025").state_dict().keys()
    counters = {name for name in names if name.endswith("num_batches_tracked")}
    assert formats.read_safetensors(exported / "model.safetensors").keys() == names - counters


def test_transformers_reads_a_directory_that_was_exported(timm, torch, exported, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    net = transformers.AutoModelForImageClassification.from_pretrained(exported).eval()
    test = pydmobilenet.get_dataset("digits", split="test")
    images = torch.from_numpy(test.normalised(0, 8))
    expected = pydmobilenet.get_model(weights=exported, engine="pytorch")(images)
    torch.testing.assert_close(net(pixel_values=images).logits, expected)
    assert net.config.id2label[3] == "3"
    processor = transformers.AutoImageProcessor.from_pretrained(exported)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in test.images[:8]]
    torch.testing.assert_close(processor(pictures, return_tensors="pt")["pixel_values"], images)


def test_any_network_is_made_by_timm_from_its_name(timm, torch):
    net = timm.create_model("pydmobilenet", name="pyd-concat-11-0.125", dataset="imagenet32", num_classes=4)
    assert net.num_features == 1280
    assert net.pretrained_cfg["mean"] == list(get_task("imagenet32").mean)
    with pytest.raises(InvalidValueError, match="unknown model"):
        timm.create_model("pydmobilenet", name="pyd-concat-12-0.125")
    with pytest.raises(MissingFileError, match="no weights of mobilenet-29-1 are published for digits"):
        timm.create_model("pydmobilenet", name="mobilenet-29-1", dataset="digits", pretrained=True)


def test_timm_s_train_script_makes_a_network(timm):
    net = timm.create_model(
        "pyd_concat_56_050", pretrained=False, in_chans=3, num_classes=10, drop_rate=0.0, drop_path_rate=None,
        drop_block_rate=None, global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="",
    )  # fmt: skip  # what it passes
    assert net.num_classes == 10
    assert not [module for module in net.modules() if type(module).__module__.startswith("timm")]  # none is needed
    with pytest.raises(TypeError, match=r"make_network has no argument 'drop_path'; nearest: drop_path_rate"):
        timm.create_model("pyd_concat_56_050", drop_path=0.1)


@pytest.mark.parametrize("options", [{"drop_rate": 0.5}, {"drop_path_rate": 0.5}])
def test_what_is_dropped_is_dropped_in_training_alone(timm, torch, options):
    net, x = timm.create_model("pyd_add_29_025", **options), torch.randn(4, 3, 32, 32)
    torch.manual_seed(0)
    assert not torch.equal(net(x), net(x))
    plain = timm.create_model("pyd_add_29_025")
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net.eval()(x), plain.eval()(x))


def test_a_pool_is_chosen(timm, torch):
    net, x = timm.create_model("pyd_add_29_025", global_pool="max"), torch.randn(2, 3, 32, 32)
    net.eval()
    torch.testing.assert_close(
        net.forward_head(net.forward_features(x), pre_logits=True), net.forward_features(x).amax((2, 3))
    )
    net.reset_classifier(0, "")
    assert net(x).shape == (2, 128, 8, 8)
    net.reset_classifier(5, "avg")
    assert net(x).shape == (2, 5)
    assert net.head_hidden_size == net.num_features == 128
    with pytest.raises(InvalidValueError, match=r"unknown global_pool ''.*allowed: avg, max"):
        timm.create_model("pyd_add_29_025", global_pool="")
    with pytest.raises(InvalidValueError, match=r"image_size is 33.*nearest: 32"):
        timm.create_model("pyd_add_29_025", img_size=33)
    assert timm.create_model("pyd_add_29_025", img_size=64)(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_have_adapted_weights(timm, torch, channels, tmp_path):
    arrays = oracle.random_arrays(catalog.describe(MODEL, "digits"))
    (tmp_path / "x.params").write_bytes(formats.dump_params(arrays))
    pydmobilenet.export(MODEL, tmp_path / "hf", "digits", weights=tmp_path / "x.params", format="huggingface")
    net = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True, in_chans=channels).eval()
    assert net(torch.zeros(1, channels, 32, 32)).shape == (1, 10)
    mean = arrays["stem.norm.running_mean"].mean()
    np.testing.assert_allclose(net.stem.norm.running_mean.numpy(), [mean] * channels, rtol=1e-6)
    if channels == 1:  # as grey as three equal channels
        np.testing.assert_allclose(
            net.stem.conv.weight.detach().numpy(),
            arrays["stem.conv.weight"].sum(1, keepdims=True),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("form", [{}, {"feature_cls": "hook"}, {"out_indices": (0, -1)}])
@pytest.mark.parametrize(("name", "channels"), [("pyd-concat-11-0.125", [32, 64, 128]), ("wrn-10-1", [16, 32, 64])])
def test_stages_give_their_maps(timm, torch, name, channels, form):
    torch.manual_seed(0)
    net = timm.create_model("pydmobilenet", name=name, features_only=True, **form).eval()
    assert net.feature_info.channels() == [channels[place] for place in form.get("out_indices", range(3))]
    maps = net(torch.randn(2, 3, 32, 32))
    places = form.get("out_indices", range(3))
    assert [tuple(each.shape) for each in maps] == [(2, channels[p], 32 >> p % 3, 32 >> p % 3) for p in places]


@pytest.mark.parametrize("name", ["pyd-concat-11-0.125", "resnet-11-0.25", "wrn-10-1"])
def test_intermediate_maps_go_with_the_last_one(timm, torch, name):
    net, x = timm.create_model("pydmobilenet", name=name).eval(), torch.randn(2, 3, 32, 32)
    last, maps = net.forward_intermediates(x)
    assert torch.equal(last, net.forward_features(x))
    assert len(maps) == 3
    (only,) = net.forward_intermediates(x, indices=[1], intermediates_only=True)
    assert torch.equal(only, maps[1])


@pytest.mark.parametrize("name", ["pyd-add-11-0.125", "wrn-10-1"])
def test_checkpointing_changes_memory_and_no_gradient(timm, torch, name):
    net, x = timm.create_model("pydmobilenet", name=name).eval(), torch.randn(2, 3, 32, 32)
    expected = torch.autograd.grad(net(x).square().sum(), [each for each in net.parameters() if each.requires_grad])
    net.set_grad_checkpointing()
    calls = []
    block = net.get_submodule(net.residual_blocks[0])
    next(block.children()).register_forward_hook(lambda *_: calls.append(1))
    found = torch.autograd.grad(net(x).square().sum(), [each for each in net.parameters() if each.requires_grad])
    assert len(calls) == 2
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["pyd-add-11-0.125", "wrn-10-1"])
def test_layers_get_rates_and_norms_freeze(timm, torch, name):
    from timm.optim import create_optimizer_v2
    from timm.utils.model import freeze_batch_norm_2d

    net = timm.create_model("pydmobilenet", name=name)
    groups = create_optimizer_v2(net, "sgd", lr=0.1, weight_decay=0.1, layer_decay=0.5).param_groups
    scales = [group["lr_scale"] for group in groups]
    assert min(scales) < 0.5
    assert max(scales) == 1.0
    assert net.no_weight_decay() == set()
    frozen = freeze_batch_norm_2d(net)
    assert not [module for module in frozen.modules() if isinstance(module, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize(
    "name", ["resnet-11-0.25", "mobilenet-11-0.25", "pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-2"]
)
def test_torchvision_extracts_features(timm, torch, name):
    from torchvision.models.feature_extraction import create_feature_extractor

    net, x = pydmobilenet.get_model(name, engine="pytorch"), torch.randn(2, 3, 32, 32)
    block = "features.4.0" if name.startswith("wrn") else "stages.1.0"
    seen = []
    handle = net.get_submodule(block).register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(x)
    handle.remove()
    torch.testing.assert_close(create_feature_extractor(net, {block: "map"})(x)["map"], seen[0])
