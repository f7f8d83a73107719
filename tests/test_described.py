"""Which weights? What a path records of itself, and which ones are published, for every command and function alike."""

import json
import shutil
import sys
import warnings

import numpy as np
import oracle
import pytest
from helpers import MODEL, ROOT, TRAINERS, commander, make_classes

import pydmobilenet
from pydmobilenet import catalog, checkpoints, fetching
from pydmobilenet.checkpoints import formats, weights
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError, UnusableError, UserError
from pydmobilenet.training import session
from pydmobilenet.training.recipe import configure

BUNDLED = ROOT / "pretrained" / "digits-pyd-add-29-0.25.params"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 80, 60, 3), np.uint8)


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own
    return commander(monkeypatch, capsys)


@pytest.fixture
def arrays():
    return oracle.random_arrays(catalog.describe(MODEL, "digits", outputs=3))


@pytest.fixture
def run(arrays, tmp_path):
    """A run of 64-pixel images, with a normalisation of its own."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "best.params").write_bytes(formats.dump_params(arrays))
    sha256 = fetching.digest(directory / "best.params", "sha256").removeprefix("sha256:")
    metadata = {"model": MODEL, "dataset": "folder:photos", "outputs": 3, "classes": ["a", "b", "c"], "image_size": 64}
    metadata.update(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    metadata["checkpoints"] = {"best.params": {"epoch": 1, "test_error": 50.0, "sha256": sha256}}
    (directory / "run.json").write_text(json.dumps(metadata))
    return directory


def answers(path, **options):
    return [each.classes for each in pydmobilenet.predict(PIXELS, weights=path, engine="onnxruntime", **options)]


def bare(tmp_path, arrays):
    (tmp_path / "bare.params").write_bytes(formats.dump_params(arrays))
    return tmp_path / "bare.params"


# Beside .params


def test_converted_parameters_keep_normalisation_and_size_in_a_sidecar(run, command, tmp_path):
    for name in ("x.params", "y.safetensors", "z.params"):
        source = tmp_path / "y.safetensors" if name == "z.params" else run
        assert command("convert", source, tmp_path / name) == (0, f"wrote {tmp_path / name}\n", "")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert answers(tmp_path / name) == answers(run)
    assert (tmp_path / "x.params").read_bytes() == (run / "best.params").read_bytes()
    told = json.loads((tmp_path / "x.json").read_text())
    assert (told["model"], told["image_size"], told["std"]) == (MODEL, 64, [0.4, 0.5, 0.6])
    assert told["sha256"] == told["source_sha256"]
    assert checkpoints.inspect(tmp_path / "x.params").task == checkpoints.inspect(run).task


@pytest.mark.parametrize(
    ("existing", "target", "words"),
    [
        ("x.json", "x.params", "x.json exists already"),
        ("x.params", "x.params", "x.params exists already"),
        ("x.json", "run.params", "would make its directory look like a run"),
    ],
)
def test_no_sidecar_replaces_a_file(existing, target, words, run, command, tmp_path):
    (tmp_path / existing).write_text("mine")
    code, _, err = command("convert", run, tmp_path / target)
    assert (code, words in err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_the_sidecar_of_another_file_is_refused(run, command, arrays, tmp_path):
    command("convert", run, tmp_path / "x.params")
    (tmp_path / "x.params").write_bytes(formats.dump_params({**arrays, "head.dense.bias": np.ones(3, np.float32)}))
    with pytest.raises(BadFileError, match=r"x\.json describes another file than .*x\.params"):
        answers(tmp_path / "x.params")


def test_a_sidecar_is_of_the_params_file_alone(run, command, arrays, tmp_path):
    command("convert", run, tmp_path / "x.params")
    (tmp_path / "x.safetensors").write_bytes(formats.dump_safetensors(arrays, {}))
    assert checkpoints.inspect(tmp_path / "x.safetensors") is None


@pytest.mark.parametrize("wrong", [{"model": "resnet-28-1"}, {"dataset": 3}, {"std": [0, 1, 1]}, {"image_size": 30}])
def test_a_sidecar_that_describes_no_network_is_refused(wrong, run, command, tmp_path):
    command("convert", run, tmp_path / "x.params")
    told = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps({**told, **wrong}))
    with pytest.raises(BadFileError, match="does not describe a network"):
        answers(tmp_path / "x.params")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": "theirs"}'])
def test_what_is_assumed_of_bare_parameters_is_said_in_a_line(content, command, tmp_path):
    file = bare(tmp_path, oracle.random_arrays(catalog.describe(MODEL)))
    if content:
        (tmp_path / "bare.json").write_text(content)
    image = make_classes(tmp_path / "photos", "a", {".": 1}) / "a" / "00.png"
    said = "CIFAR-10, mean 0.4914/0.4822/0.4465, std 0.2023/0.1994/0.201, 32x32 pixels"
    for words in (["convert", file, tmp_path / "net.safetensors"], ["predict", image, "--weights", file]):
        with pytest.warns(UserWarning, match=rf"bare\.params does not record its data set; assumed: {said}"):
            assert command(*words, "-m", MODEL)[0] == 0
    code, _, err = command("predict", image, "--weights", file)
    assert (
        code,
        err.endswith("does not record its model and data set; pass both, or `pydmobilenet convert` it\n"),
    ) == (2, True)


def test_published_files_are_known_by_their_hash(tmp_path):
    shutil.copy(BUNDLED, tmp_path / "x.params")
    found = checkpoints.inspect(tmp_path / "x.params")
    assert (found.model, found.task.name, found.top1_error) == ("pyd-add-29-0.25", "digits", found.origin.top1_error)
    with pytest.raises(InvalidValueError, match=r"was trained on digits .*, not cifar10; nearest: digits"):
        checkpoints.find("pyd-add-29-0.25", "cifar10", tmp_path / "x.params")


# Hugging Face's layout


def test_an_exported_directory_is_a_place_to_load_from(run, command, tmp_path):
    pydmobilenet.export(None, tmp_path / "hf", weights=run, format="huggingface")
    assert "images of\n64x64 pixels to 3 logits" in (tmp_path / "hf" / "README.md").read_text()
    assert answers(tmp_path / "hf") == answers(run)
    assert command("info", tmp_path / "hf")[1] == command("info", run)[1]
    assert checkpoints.resolve(weights=tmp_path / "hf").model == MODEL


def test_a_directory_of_another_project_is_refused(arrays, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").write_bytes(formats.dump_safetensors(arrays))
    with pytest.raises(BadFileError, match=r"model\.safetensors does not record its model; pass the file itself"):
        checkpoints.inspect(tmp_path / "hf")


def test_a_network_for_larger_images_is_larger_where_it_is_loaded(tmp_path):
    digits = {"dataset": "digits", "image_size": 64, "engine": "onnxruntime"}
    pydmobilenet.export("pyd-add-29-0.25", tmp_path / "hf", "digits", image_size=64, format="huggingface")
    direct = pydmobilenet.predict(PIXELS, "pyd-add-29-0.25", **digits)
    assert answers(tmp_path / "hf") == [each.classes for each in direct]
    (result,) = pydmobilenet.validate(tmp_path / "hf", progress=False, engine="onnxruntime")
    assert "image_size is 64 (allowed: 32" in result.reason


# PyTorch's files


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_a_state_dict_is_read_however_it_is_wrapped(form, suffix, arrays, torch, tmp_path):
    file = tmp_path / f"net{suffix}"
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state["stem.norm.num_batches_tracked"] = torch.tensor(3)
    torch.save(WRAPPED[form](state), file, _use_new_zipfile_serialization=suffix == ".pth")
    for name, array in weights.load(file, catalog.describe(MODEL, outputs=3)).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_numbers_of_other_precisions_become_single_ones(dtype, arrays, torch, tmp_path):
    state = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in arrays.items()}
    torch.save(state, tmp_path / "net.pth")
    for name, array in weights.load(tmp_path / "net.pth", catalog.describe(MODEL, outputs=3)).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[name].float().numpy())


@pytest.mark.parametrize("engine", TRAINERS)
def test_the_networks_of_both_engines_load_a_state_dict(engine, torch, tmp_path):
    theirs = pydmobilenet.get_model(MODEL, classes=3, engine="pytorch")
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    net = pydmobilenet.get_model(MODEL, classes=3, weights=tmp_path / "net.pth", engine=engine)
    (bias,) = [value for name, value in parameters(net, engine).items() if name == "head.dense.bias"]
    np.testing.assert_array_equal(bias, theirs.state_dict()["head.dense.bias"].numpy())


def parameters(net, engine):
    if engine == "gluon":
        from pydmobilenet.gluon.network import get_arrays
    else:
        from pydmobilenet.pytorch.network import get_arrays
    return get_arrays(net)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda torch: Harmful(), "holds more than tensors"),
        (lambda torch: torch.nn.Linear(1, 1), "holds more than tensors"),
        (lambda torch: [torch.zeros(1)], "holds no state dict"),
        (lambda torch: {}, "holds no state dict"),
        (lambda torch: {"epoch": 3}, "has a int at 'epoch'"),
        (lambda torch: {"a": torch.zeros(1), "module.a": torch.zeros(1)}, "has 'a' twice"),
        (lambda torch: {"a": torch.full((1,), torch.nan)}, "not finite: in 'a'"),
        (lambda torch: {"a": torch.eye(2).to_sparse()}, "not a dense tensor"),
        (lambda torch: {"conv1.weight": torch.zeros(1)}, "is of another network, or of none"),
    ],
)
def test_what_is_no_state_dict_is_refused_in_a_line_and_not_run(content, words, torch, capsys, tmp_path):
    torch.save(content(torch), tmp_path / "net.pth")
    with pytest.raises(BadFileError, match=words) as refused:
        weights.read(tmp_path / "net.pth")
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_a_damaged_file_of_pytorch_s_is_refused(arrays, torch, tmp_path):
    torch.save({"a": torch.zeros(9)}, tmp_path / "net.pth")
    content = (tmp_path / "net.pth").read_bytes()
    for damaged in (content[:300], content[:-50], b"PK\3\4" + bytes(99), b"\x80\2" + bytes(99)):
        (tmp_path / "net.pth").write_bytes(damaged)
        with pytest.raises(BadFileError) as refused:
            weights.read(tmp_path / "net.pth")
        assert "\n" not in str(refused.value)


def test_a_pytorch_that_runs_the_code_of_forged_files_reads_none(torch, monkeypatch, tmp_path):
    torch.save({"a": torch.zeros(9)}, tmp_path / "net.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(
        UnusableError, match=r"2\.5\.1\+cpu does not read .*net\.pth safely \(allowed: 2\.6 and newer\)"
    ):
        weights.read(tmp_path / "net.pth")


def test_without_pytorch_its_files_are_refused_in_a_line(monkeypatch, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"PK\3\4" + bytes(99))
    monkeypatch.setitem(sys.modules, "pydmobilenet.pytorch.network", None)
    with pytest.raises(UnusableError, match=r"net\.pth needs PyTorch \(.*\): pip install 'pydmobilenet\[torch\]'"):
        weights.read(tmp_path / "net.pth")


# validate


def test_a_file_is_judged_by_the_error_of_its_origin_and_else_not_at_all(command, tmp_path):
    options = ("-m", "pyd-add-29-0.25", "-d", "digits")
    assert command("convert", BUNDLED, tmp_path / "known.safetensors", *options)[0] == 0
    digits = oracle.random_arrays(catalog.describe(MODEL, "digits"))
    command("convert", bare(tmp_path, digits), tmp_path / "mine.safetensors", "-m", MODEL, "-d", "digits")
    code, out, _ = command("validate", tmp_path / "known.safetensors", "--engine", "onnxruntime")
    assert (code, "| match" in out) == (0, True)
    report = tmp_path / "report"
    code, out, _ = command(
        "validate", tmp_path / "mine.safetensors", "--engine", "onnxruntime", "--output", report, "--print-net"
    )
    assert (code, "| not judged" in out) == (0, True)
    (row,) = json.loads((report / "validation.json").read_text())
    assert (row["verdict"], row["recorded_top1_error"], row["images"]) == ("not judged", None, 360)
    assert row["interval_low"] < row["top1_error"] < row["interval_high"]


def test_a_file_for_a_folder_is_evaluated_on_the_folder_that_is_given(run, tmp_path, command):
    command("convert", run, tmp_path / "x.safetensors")
    alone = make_classes(tmp_path / "alone", "abc", {".": 4}, side=64)
    divided = make_classes(tmp_path / "divided", "abc", {"train": 1, "test": 2}, side=64)
    for folder, images in ((alone, 12), (divided, 6)):
        options = {"data_dir": folder, "progress": False, "engine": "onnxruntime"}
        (result,) = pydmobilenet.validate(tmp_path / "x.safetensors", **options)
        assert (result.verdict, result.counts.images) == ("not judged", images), result.reason
        assert result.complexity == catalog.describe(MODEL, outputs=3).complexity((3, 64, 64))
    out = command("validate", tmp_path / "x.safetensors", "-d", alone, "--engine", "onnxruntime")[1]
    assert "These are not the official test images** (all images, also those trained on)" in out


def test_bare_parameters_cannot_be_validated(arrays, command, tmp_path):
    code, _, err = command("validate", bare(tmp_path, arrays))
    assert (code, "does not record its model and data set; pass both, or `pydmobilenet convert` it" in err) == (
        2,
        True,
    )


def test_the_layers_of_a_run_are_counted_at_its_own_size(run, command):
    out = command("validate", run, "--print-net", "--engine", "onnxruntime")[1]
    counts = catalog.describe(MODEL, outputs=3).complexity((3, 64, 64))
    assert f"{counts.multiply_adds:,}" in out


# Which network


@pytest.mark.parametrize("engine", TRAINERS)
def test_weights_that_record_their_network_need_no_name(engine, run, arrays):
    net = pydmobilenet.get_model(weights=run, engine=engine)
    for name, array in parameters(net, engine).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("given", [{}, {"pretrained": True}, {"weights": "bare.params"}])
def test_without_a_name_and_weights_that_tell_it_no_network_is_made(given, arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare(tmp_path, arrays)
    with pytest.raises(UserError, match=r"no network is named|bare\.params does not record its model"):
        checkpoints.resolve(**given)


def test_training_takes_the_network_of_a_run_unless_another_is_given(run, tmp_path):
    folder = str(make_classes(tmp_path / "bigger", "abc", {".": 10}))
    assert configure({"dataset": folder}, weights=run).model == MODEL
    assert session.initial_weights(configure({"dataset": folder}, weights=run), run).task.image_size == 64
    for given, recipe in (({"model": "resnet-29-0.5"}, None), ({}, "finetune")):
        config = configure({"dataset": folder, **given}, recipe, run)
        with pytest.raises(InvalidValueError, match=rf"is of {MODEL}, not of {config.model}; nearest: {MODEL}"):
            session.initial_weights(config, run)


def test_a_file_with_a_sidecar_is_hashed_once(run, command, tmp_path, monkeypatch):
    command("convert", run, tmp_path / "x.params")
    digest, hashed = fetching.digest, []
    monkeypatch.setattr(fetching, "digest", lambda path, kind: hashed.append(path) or digest(path, kind))
    checkpoints.find(weights=tmp_path / "x.params").arrays()
    assert hashed == [tmp_path / "x.params"]


# Published


@pytest.mark.parametrize("classes", [None, 3])
def test_published_means_the_same_to_every_function(classes):
    name, file = "pyd-add-29-0.25", checkpoints.find("pyd-add-29-0.25", "digits").path
    assert file == BUNDLED
    first = checkpoints.resolve(name, "digits", classes, pretrained=True)
    second = checkpoints.resolve(name, "digits", classes, weights="published")
    assert first.arrays().keys() == second.arrays().keys()
    assert ("head.dense.bias" in first.arrays()) == (classes is None)


def test_training_on_digits_starts_from_the_bundled_digits():
    config = configure({"model": "pyd-add-29-0.25", "dataset": "digits"}, weights=checkpoints.PUBLISHED)
    init = session.initial_weights(config, checkpoints.PUBLISHED)
    assert (init.path, init.task.name) == (BUNDLED, "digits")


def test_training_and_other_classes_take_the_body_of_cifar_10_where_nothing_else_is_published(weights_dir):
    if not weights.find(catalog.find("mobilenet-29-1", "cifar10").file, weights_dir):
        pytest.skip("the authors' weights are not here")
    said = "Starting from the authors' CIFAR-10 weights."
    config = configure({"model": "mobilenet-29-1", "dataset": "digits"}, weights=checkpoints.PUBLISHED)
    with pytest.warns(UserWarning, match=said):
        assert session.initial_weights(config, checkpoints.PUBLISHED, weights_dir).task.name == "cifar10"
    with pytest.warns(UserWarning, match=said):
        asked = checkpoints.resolve("mobilenet-29-1", "digits", 10, pretrained=True, weights_dir=weights_dir)
    assert "head.dense.bias" not in asked.arrays()  # though it has ten outputs too
    assert "stem.conv.weight" in asked.arrays()


@pytest.mark.parametrize("dataset", ["digits", "cifar100", "imagenet32"])
def test_no_answers_come_from_the_weights_of_another_data_set(dataset):
    for call in (
        lambda: checkpoints.resolve("mobilenet-29-1", dataset, pretrained=True),
        lambda: checkpoints.find("mobilenet-29-1", dataset).arrays(),
    ):
        with pytest.raises(MissingFileError, match=r"no weights of mobilenet-29-1 are published for \w+"):
            call()


def test_the_wider_networks_of_imagenet32_take_no_body_of_cifar_10():
    with pytest.raises(MissingFileError, match="are published for imagenet32; pass others by --weights FILE"):
        checkpoints.find("mobilenet-29-1", "imagenet32", to_train=True)
