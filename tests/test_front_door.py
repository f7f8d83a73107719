"""python -m pydmobilenet: predict, list, info, fetch, run as a user runs them."""

import io
import json
import re
import sys

import numpy as np
import oracle
import pytest
from helpers import CIFAR_MODELS, ROOT
from PIL import Image

import pydmobilenet
from pydmobilenet import catalog, cli, engine, zoo
from pydmobilenet.checkpoints import params, runs
from pydmobilenet.data import DATASETS, get_dataset, get_task
from pydmobilenet.reporting import listing

MODEL = ["-m", "pyd-add-29-0.25", "-d", "digits"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit code, standard output and standard error of a command, run inside this process."""

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["pydmobilenet", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def digits():
    return get_dataset("digits", "test").head(60)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, digits):
    """A folder of digits, every other one larger than networks see, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for number, pixels in enumerate(digits.images):
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        image = image.resize((96, 96)) if number % 2 else image
        image.save(folder / ("below/59.png" if number == 59 else f"{number:02}.png"))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_images_is_classified(run, pictures, digits):
    code, out, err = run("predict", pictures, *MODEL)
    assert code == 0, err
    assert err == "skipped: 1 .txt\n30 of 60 images resized to 32x32, which networks see\n"
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert len(lines) == 60
    right = 0
    for number, label in enumerate(digits.labels):
        name = "below/59.png" if number == 59 else f"{number:02}.png"
        classes = re.fullmatch(r"(\d) ([\d.]+) %, (\d) ([\d.]+) %, (\d) ([\d.]+) %", lines[str(pictures / name)])
        assert float(classes[2]) >= float(classes[4]) >= float(classes[6])
        right += classes[1] == str(label)
    assert right >= 57


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        (False, r"PyTorch is not installed: pip install 'pydmobilenet\[torch\]'"),
        (True, r"PyTorch cannot be imported \(.*\)"),
    ],
)
def test_without_pytorch_its_name_is_refused_in_one_line(installed, words, run, pictures, monkeypatch):
    find_spec = engine.importlib.util.find_spec
    monkeypatch.setattr(
        engine.importlib.util, "find_spec", lambda name: installed or None if name == "torch" else find_spec(name)
    )
    monkeypatch.setitem(sys.modules, "pydmobilenet.pytorch", None)
    code, out, err = run("predict", pictures / "00.png", *MODEL, "--engine", "pytorch")
    assert (code, out) == (2, "")
    assert re.fullmatch(f"pydmobilenet: error: engine 'pytorch': {words}; nearest: onnxruntime\n", err)


def test_json_has_the_probabilities_of_the_literal_network(run, pictures, digits):
    code, out, err = run("predict", pictures / "00.png", *MODEL, "--json", "--top", 10)
    assert (code, err) == (0, "")
    ((image),) = json.loads(out)
    assert (image["image"], image["size"], image["resized"]) == (str(pictures / "00.png"), [32, 32], False)
    source = zoo.source("pyd-add-29-0.25", "digits")
    logits = oracle.logits(source.network, source.arrays(), digits.normalised(0, 1))[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [each["label"] for each in image["classes"]] == np.argsort(-expected).tolist()
    for each in image["classes"]:
        assert each["probability"] == pytest.approx(expected[each["label"]], abs=1e-5)
        assert each["class"] == str(each["label"])


def test_an_image_may_come_from_standard_input(run, pictures, digits):
    code, out, _ = run("predict", "-", *MODEL, stdin=(pictures / "03.png").read_bytes())
    assert code == 0
    assert out.startswith(f"standard input: {digits.labels[3]} ")


@pytest.fixture
def mixed(tmp_path, digits):
    """A folder of three good pictures, one of them transparent, two bad ones, and what is no picture."""
    for number, pixels in enumerate(digits.images[:3]):
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        if number == 2:
            image.putalpha(200)
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "1a.jpg").write_bytes(b"no image")
    (tmp_path / "9.gif").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    (tmp_path / "._0.png").write_bytes(b"no image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"no image")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    return tmp_path


def test_a_bad_image_is_named_and_how_to_go_on_without_it(run, mixed):
    code, out, err = run("predict", mixed, *MODEL)
    assert (code, out) == (2, "")
    skipped, error = err.splitlines()
    assert skipped == "skipped: 2 hidden, 1 broken link"
    assert f"error: {mixed / '1a.jpg'} cannot be read as an image" in error
    assert error.endswith("; --skip-bad goes on without it")


@pytest.mark.parametrize("format", [[], ["--json"]])
def test_bad_images_are_passed_over_on_request_and_the_others_answered(format, run, mixed, digits):
    with pytest.warns(UserWarning, match="passed over") as warned:
        code, out, err = run("predict", mixed, "--skip-bad", *MODEL, *format)
    assert [str(each.message) for each in warned if each.category is UserWarning] == [
        f"{mixed}/1a.jpg cannot be read as an image (allowed: PNG, JPEG, WebP, BMP, TIFF, GIF): passed over",
        f"{mixed}/9.gif cannot be read as an image: image file is truncated: passed over",
    ]
    assert err == "skipped: 2 hidden, 1 broken link\n1 of 3 images had transparency: composited on white\n"
    assert code == 1  # some were not answered
    names = [str(mixed / f"{number}.png") for number in range(3)]
    if format:
        assert [each["image"] for each in json.loads(out)] == names
    else:
        assert [line.split(": ")[0] for line in out.splitlines()] == names
        assert out.startswith(f"{names[0]}: {digits.labels[0]} ")


def test_where_all_images_are_bad_there_is_no_answer_to_give(run, mixed):
    with pytest.warns(UserWarning, match="passed over"):
        code, out, err = run("predict", mixed / "1a.jpg", mixed / "9.gif", "--skip-bad", *MODEL)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("error: none of the 2 images can be read")


def test_a_file_of_weights_or_a_run_may_be_named(run, pictures):
    file = ROOT / "pretrained" / "digits-pyd-add-29-0.25.params"
    assert run("predict", pictures / "00.png", *MODEL, "--weights", file) == run("predict", pictures / "00.png", *MODEL)


def test_nothing_is_predicted_with_parameters_that_are_not_finite(run, pictures, tmp_path):
    arrays = {**params.read(ROOT / "pretrained" / "digits-pyd-add-29-0.25.params")}
    arrays["head.dense.bias"] = np.full(10, np.nan, np.float32)
    params.write(tmp_path / "bad.params", arrays)
    code, out, err = run("predict", pictures / "00.png", *MODEL, "--weights", tmp_path / "bad.params")
    assert (code, out) == (2, "")
    assert "bad.params holds numbers that are not finite: in 'head.dense.bias'" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "nowhere.png", *MODEL], "no such image: nowhere.png"),
        (["predict", "setup.py", *MODEL], "setup.py cannot be read as an image"),
        (["predict", "-", *MODEL], "standard input cannot be read as an image"),
        (["predict", "configs", *MODEL], "configs has no images (allowed: PNG, JPEG, WebP, "),
        (
            ["predict", "setup.py", "setup.py", *MODEL],
            "as an image (allowed: PNG, JPEG, WebP, BMP, TIFF, GIF); --skip-bad",
        ),
        (["predict", "-", "nowhere.png", *MODEL], "no such image: nowhere.png"),
        (["predict", "x.png", "-m", "pyd-ad-29-0.25"], "unknown model 'pyd-ad-29-0.25'; nearest: pyd-add-29-0.25"),
        (["predict", "x.png", *MODEL, "--top", "0"], "argument --top: '0' (allowed: a whole number from 1)"),
        (["predict", "x.png", *MODEL, "--tops", "1"], "unrecognized arguments: --tops 1; nearest: --top"),
        (["list", "pyd-cat-*"], "unknown published model 'pyd-cat-*'; nearest: "),
        (["list", "-d", "cifar11"], "unknown data set 'cifar11'; nearest: cifar10"),
        (["list", "wrn-*", "-d", "cifar10"], "no row has both the model 'wrn-*' and the data set asked for"),
        (
            ["info", "pyd-add-30-1"],
            "unknown model 'pyd-add-30-1': the depth of pyd-add is 9n + 2; nearest: pyd-add-29-1",
        ),
        (["fetch", "--data-dir", "/nowhere"], "argument --data-dir: no such directory: /nowhere"),
        (["predct", "x.png"], "unknown command 'predct'; nearest: predict (allowed: validate, train, predict, "),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, run, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "option", "near"),
    [("predict", "--tops", "--top"), ("list", "--tops", None), ("list", "--jsno", None), ("fetch", "--wights", None)],
)
def test_an_unknown_option_is_compared_with_those_of_the_command_alone(command, option, near, run):
    required = ["x.png", "-m", "x"] if command == "predict" else []
    code, _, err = run(command, *required, option)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"unrecognized arguments: {option}" in err
    advised = err.partition("; nearest: ")[2].strip().split(", ")
    assert near in advised if near else {"--top", "--json", "--weights"}.isdisjoint(advised)


def test_the_package_lists_what_it_offers():
    assert set(pydmobilenet.__all__) <= set(dir(pydmobilenet))
    assert "__version__" in dir(pydmobilenet)


def test_an_image_is_read_before_a_network_is_looked_for(run, tmp_path):
    code, _, err = run("predict", tmp_path / "x.png", "-m", "resnet-29-0.5")
    assert code == 2
    assert "no such image" in err


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "cifar100-coarse"])
def test_every_output_has_a_name(name):
    task = get_task(name)
    assert len(set(task.classes)) == len(task.classes) == task.outputs


def test_of_the_published_superclass_networks_20_outputs_have_names():
    task = get_task("cifar100-coarse")
    assert task.class_name(19) == task.classes[19] == "vehicles_2"
    assert task.class_name(20) == "20"


def test_imagenet_s_classes_are_in_the_order_of_imagenet32():
    # The labels that Chrabaszcz's scripts (arXiv 1707.08819) give as an example: 1-based, of the first three images of
    # the validation set, which show a sea snake, the Alps and a Shetland sheepdog.
    classes = get_task("imagenet32").classes
    assert (classes[490 - 1], classes[361 - 1], classes[171 - 1]) == ("sea snake", "alp", "Shetland sheepdog")
    assert (classes[0], classes[-1]) == ("kit fox", "dumbbell")


def test_the_zoo_is_listed_with_what_is_here(run, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = run("list")
    assert code == 0
    rows = [line.replace("|", " ").split() for line in out.splitlines()[2:]]
    assert len(rows) == len(catalog.RECORDS) + 4
    for model in CIFAR_MODELS:
        record = catalog.find(model, "cifar10")
        found = next(row for row in rows if row[:2] == [model, "cifar10"])
        assert found[2:5] == [
            f"{record.exact.parameters / 1e6:.3f}",
            f"{record.exact.multiply_adds / 1e6:.1f}",
            f"{record.top1_error:.2f}",
        ]
    assert [row[5] for row in rows if row[1] == "digits"] == [
        f"pretrained/digits-{name}-29-{multiplier}.params"
        for name, multiplier in (("resnet", 0.5), ("mobilenet", 0.5), ("pyd-add", 0.25), ("pyd-concat", 0.25))
    ]


def test_on_a_narrow_terminal_the_zoo_is_narrow():
    wide, narrow = (listing.zoo_table(runs.bundled(), width=width).splitlines() for width in (None, 90))
    assert "digits-pyd-add-29-0.25.params" in "".join(wide)
    assert [line.split("|")[-2].strip() for line in narrow[2:]] == ["yes"] * 4
    assert max(map(len, narrow)) <= 90


def test_checkpoints_that_are_here_are_listed(run, weights_dir):
    code, out, _ = run("list", "resnet-29-*", "-d", "cifar10", "--weights-dir", weights_dir)
    assert code == 0
    assert out.splitlines()[-1].endswith("cifar10_resnet29-0000.params |")


@pytest.mark.parametrize("name", ["resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.25", "pyd-concat-29-0.25"])
def test_a_network_s_layers_add_up(name, run):
    code, out, _ = run("info", name)
    assert code == 0
    assert out.startswith(f"{name} for CIFAR-10\n")
    exact = catalog.find(name, "cifar10").exact
    assert out.splitlines()[-1].replace("|", " ").split() == [
        "together",
        f"{exact.parameters:,}",
        f"{exact.multiply_adds:,}",
    ]
    rows = [line.replace("|", " ").split() for line in out.splitlines()[1:]]
    lines = {row[0]: row for row in rows if row}
    assert lines["stages.1.0.shortcut.0"][2] == "64x16x16"
    assert lines["head.dense"][1:] == ["Dense", "10", "1,290", "1,280"]


def test_files_are_fetched_from_a_server_and_what_is_missing_is_said(run, server, weights_dir, monkeypatch, home):
    record = catalog.find("resnet-29-0.5", "cifar10")
    content = (weights_dir / record.checkpoint.path.split("/", 1)[1]).read_bytes()
    server.files[f"/{record.checkpoint.path}"] = content
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", server.url)
    code, out, err = run("fetch", "resnet-29-0.5", "-d", "cifar10")
    target = home / "project" / "models" / record.checkpoint.filename
    assert code == 1  # the images could not be had
    assert out == f"resnet-29-0.5 for cifar10: {target}\n"
    assert target.read_bytes() == content
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["CIFAR-10, train images", "CIFAR-10, test images"]
    assert "to go on without a network, put cifar-10-binary.tar.gz" in err
