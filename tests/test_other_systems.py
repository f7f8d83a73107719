"""Each command runs on every system. On Linux, `other_system/sitecustomize.py` takes away what others lack."""

import json
import os
import subprocess
import sys

import pytest
from helpers import LIMIT, NOWHERE, ROOT, make_folder, options

COMMANDS = """
import json, sys
from pydmobilenet import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["pydmobilenet", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        print("ended:", *arguments[:3], ended.code)
"""
DIGITS = ["--model", "pyd-add-29-0.25", "--dataset", "digits"]
WEIGHTS = str(ROOT / "pretrained" / "digits-pyd-add-29-0.25.params")
PICTURES = str(ROOT / "examples" / "digits")
RECIPE = {"model": "pyd-add-11-0.125", "dataset": "folder:photos", "epochs": 2, "warmup_epochs": 0, "batch_size": 8}
BY = {
    "onnxruntime": [
        ["list", "pyd-add-*"],
        ["info", "pyd-add-29-0.25"],
        ["validate", "--dataset", "digits", "--output", "report", "--engine", "onnxruntime"],
        ["predict", PICTURES, *DIGITS, "--csv", "--output", "answers.csv", "--engine", "onnxruntime"],
        ["predict", PICTURES, *DIGITS, "--csv", "--output", "answers.csv", "--engine", "onnxruntime"],  # overwritten
        ["convert", WEIGHTS, "net.safetensors", *DIGITS],
        ["validate", "net.safetensors", "--engine", "onnxruntime"],
        ["export", *DIGITS, "--uint8-input", "--output", "net.onnx", "--engine", "onnxruntime"],
        ["export", *DIGITS, "--format", "huggingface", "--output", "hub"],
        ["export", *DIGITS, "--format", "web", "--output", "site", "--engine", "onnxruntime"],
        ["show", "--dataset", "digits", "--output", "digits.png"],
    ],
    "pytorch": [
        ["train", *options(RECIPE), "--output", "run", "--engine", "pytorch", "--device", "cpu"],
        ["train", "--resume", "run", "--device", "cpu"],
        ["validate", "run", "--engine", "pytorch"],
        ["predict", PICTURES, "--weights", "run", "--engine", "pytorch"],
    ],
}


LINUX = sys.platform == "linux"


def run(code, *arguments, directory):
    """Run code in a process of another system than Linux: of this one, or of a simulated one."""
    simulation = [str(ROOT / "tests" / "other_system")] if LINUX else []
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*simulation, str(ROOT)]),
        "PYTHONIOENCODING": "cp1252",
        "OMP_NUM_THREADS": "1",
        "HTTPS_PROXY": NOWHERE,
    }
    command = [sys.executable, "-W", "ignore:only soft file lock", "-c", code, *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("pytorch", marks=pytest.mark.pytorch)])
def test_every_command_works_on_every_system(engine, tmp_path):
    make_folder(tmp_path / "photos")
    answer = run(COMMANDS, json.dumps(BY[engine]), directory=tmp_path)
    ended = [line for line in answer.stdout.splitlines() if line.startswith("ended:")]
    assert ended == [f"ended: {' '.join(arguments[:3])} 0" for arguments in BY[engine]], answer.stderr
    assert "Traceback" not in answer.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part" or path.name.endswith(".lock")]


@pytest.mark.skipif(not LINUX, reason="nothing is simulated here")
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import fcntl", "ModuleNotFoundError"),
        ("import os; os.sysconf('SC_PAGE_SIZE')", "AttributeError"),
        ("open('/proc/meminfo')", "FileNotFoundError"),
        ("import os; os.open('.', os.O_RDONLY)", "PermissionError"),
        ("import os; file = open('a', 'wb'); os.replace('a', 'b')", "PermissionError"),
        ("import os; open('a', 'wb').close(); file = open('a'); os.unlink('a')", "PermissionError"),
        ("import numpy, shutil; shutil.os.mkdir('d'); numpy.save('d/a', [1]); "
         "a = numpy.load('d/a.npy', mmap_mode='r'); shutil.rmtree('d')", "PermissionError"),
    ],
)  # fmt: skip
def test_the_simulation_refuses_what_other_systems_refuse(code, error, tmp_path):
    answer = run(code, directory=tmp_path)
    assert error in answer.stderr.splitlines()[-1]
