"""A wheel works in an empty directory, without the checkout."""

import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest
from helpers import NOWHERE, ROOT

from pydmobilenet.gluon import runtime

pytestmark = pytest.mark.slow  # a build, and a process for each command


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a directory with the content of this checkout's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that nothing is left in the checkout
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("the checkout is no git repository")
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    answer = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def run(installed, tmp_path):
    def call(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(installed), "HTTPS_PROXY": NOWHERE}
        command = [sys.executable, "-m", "pydmobilenet", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return call


def test_a_wheel_has_recipes_bundled_networks_digits_and_types(installed):
    package = installed / "pydmobilenet"
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert [path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")] == ["pydmobilenet"]
    assert {"configs/cifar.yaml", "pretrained/manifest.json", "data/digits.npz", "py.typed", "catalog.csv"} <= names
    assert sum(name.endswith(".params") for name in names) == 4
    assert {"web/index.html.j2", "web/page.css", "web/page.js", "web/pixels.js"} <= names


def test_from_a_wheel_everything_works_in_an_empty_directory(run, installed, tmp_path):
    engine = ["--engine", "onnxruntime"]
    answer = run("validate", *engine)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("| match ") == 4
    answer = run("predict", ROOT / "examples" / "digits", "-m", "pyd-add-29-0.25", "-d", "digits", *engine)
    assert answer.returncode == 0, answer.stderr
    assert "eight.png: 8 99.6 %" in answer.stdout
    answer = run("export", "-m", "pyd-add-29-0.25", "-d", "digits", "--output", "net.onnx", *engine)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "net.onnx").is_file()
    for arguments in (
        ["list", "pyd-add-*"],
        ["info", "pyd-concat-56-0.5"],
        ["show", "-d", "digits", "--output", "g.png"],
    ):
        assert run(*arguments).returncode == 0
    where = "import pydmobilenet; print(pydmobilenet.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(installed))


def test_from_a_wheel_the_recipes_train(run, tmp_path):
    if runtime.obstacle() and not importlib.util.find_spec("torch"):
        pytest.skip("no engine that trains is installed")
    answer = run("train", "-m", "pyd-add-11-0.125", "-d", "digits", "--epochs", 1, "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "runs" / "pyd-add-11-0.125-digits" / "best.params").is_file()


def test_without_mxnet_and_pytorch_training_names_them(run):
    if not runtime.obstacle() or importlib.util.find_spec("torch"):
        pytest.skip("an engine that trains is installed")
    answer = run("train", "-m", "pyd-add-11-0.125", "-d", "digits")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("pydmobilenet: error: training needs MXNet or PyTorch: MXNet is not installed")
    assert answer.stderr.count("\n") == 1
