"""The commands list, info and fetch, and mistakes in any command."""

import subprocess
import sys

import pytest
from helpers import CIFAR_MODELS, ROOT, commander

import pydmobilenet
from pydmobilenet import catalog, checkpoints
from pydmobilenet.data import DATASETS, get_task
from pydmobilenet.reporting import tables

MODEL = ["-m", "pyd-add-29-0.25", "-d", "digits"]


@pytest.fixture
def run(monkeypatch, capsys):
    return commander(monkeypatch, capsys)


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
        (["list", "wrn-*", "-d", "cifar10"], "no row matches all of wrn-*, "),
        (
            ["info", "pyd-add-30-1"],
            "unknown model 'pyd-add-30-1': the depth of pyd-add is 9n + 2; nearest: pyd-add-29-1",
        ),
        (["fetch", "--data-dir", "/nowhere"], "argument --data-dir: no such directory: /nowhere"),
        (
            ["predct", "x.png"],
            "unknown command 'predct'; nearest: predict, compare (allowed: validate, train, compare, ",
        ),
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


@pytest.mark.parametrize("command", ["", "train", "validate"])
def test_the_version_is_printed_without_an_engine(command):
    code = f"from pydmobilenet import cli; cli.main({command!r})"
    engines = "import atexit, sys; atexit.register(lambda: print({'mxnet', 'torch', 'onnxruntime'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", f"{engines}; {code}", "--version"], capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines() == [f"pydmobilenet {pydmobilenet.__version__}", "set()"]


def test_the_environment_is_printed_for_a_report(run):
    code, out, _ = run("info", "--environment")
    assert code == 0
    names = [line.partition(": ")[0] for line in out.splitlines()]
    assert {"pydmobilenet", "python", "numpy", "onnxruntime", "processor", "system", "NVIDIA GPUs"} <= set(names)
    for arguments in (
        ["info"],
        ["info", "pyd-add-29-0.25", "--environment"],
        ["info", "--environment", "-d", "digits"],
    ):
        code, _, err = run(*arguments)
        assert (code, "either MODEL" in err) == (2, True)


def test_the_package_lists_its_functions():
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


def test_20_outputs_of_the_superclass_networks_have_names():
    task = get_task("cifar100-coarse")
    assert task.class_name(19) == task.classes[19] == "vehicles_2"
    assert task.class_name(20) == "20"


def test_imagenet_s_classes_are_in_the_order_of_imagenet32():
    # The labels that Chrabaszcz's scripts (arXiv 1707.08819) give as an example: 1-based, of the first three images of
    # the validation set, which show a sea snake, the Alps and a Shetland sheepdog.
    classes = get_task("imagenet32").classes
    assert (classes[490 - 1], classes[361 - 1], classes[171 - 1]) == ("sea snake", "alp", "Shetland sheepdog")
    assert (classes[0], classes[-1]) == ("kit fox", "dumbbell")


def test_models_are_listed_with_local_weights(run, monkeypatch):
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


def test_the_list_fits_a_narrow_terminal():
    wide, narrow = (tables.zoo_table(checkpoints.bundled(), width=width).splitlines() for width in (None, 90))
    assert "digits-pyd-add-29-0.25.params" in "".join(wide)
    assert [line.split("|")[-2].strip() for line in narrow[2:]] == ["yes"] * 4
    assert max(map(len, narrow)) <= 90


def test_local_checkpoints_are_listed(run, weights_dir):
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


def test_files_are_fetched_from_a_server_and_missing_ones_reported(run, server, weights_dir, monkeypatch, home):
    record = catalog.find("resnet-29-0.5", "cifar10")
    content = (weights_dir / record.file.path.split("/", 1)[1]).read_bytes()
    server.files[f"/{record.file.path}"] = content
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", server.url)
    code, out, err = run("fetch", "resnet-29-0.5", "-d", "cifar10")
    target = home / "project" / "models" / record.file.name
    assert code == 1  # the images could not be had
    assert out == f"resnet-29-0.5 for cifar10: {target}\n"
    assert target.read_bytes() == content
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["CIFAR-10, train images", "CIFAR-10, test images"]
    assert "to go on without a network, put cifar-10-binary.tar.gz" in err
