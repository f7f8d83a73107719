"""The command line of run_validation.py, and convert."""

import csv
import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import NOWHERE, ROOT, runner

from pydmobilenet.checkpoints import weights


def process(*arguments, script="run_validation.py", **environment):
    """Run a script, or Python itself, in a process of its own."""
    return subprocess.run(
        [sys.executable, *([script] if script else []), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HTTPS_PROXY": NOWHERE, **environment},  # no request to the University of Toronto
        capture_output=True,
        text=True,
    )


@pytest.fixture
def run(monkeypatch, capsys):
    """Run run_validation.py inside this process."""
    monkeypatch.chdir(ROOT)
    return runner(monkeypatch, capsys, "run_validation.py")


def test_help_fits_one_screen(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    answer = run("--help")
    assert answer.returncode == 0
    assert len(answer.stdout.splitlines()) <= 44
    for option in ("-d", "-m", "-l", "-g", "--data-dir", "--weights-dir", "--batch-size", "--limit", "--output"):
        assert option in answer.stdout
    for option in ("--require-all", "--print-net", "--no-fuse", "--engine"):
        assert option in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "pyd-cat-56-0.5"], "unknown model 'pyd-cat-56-0.5'; nearest: pyd-concat-56-0.5"),
        (["-d", "cifar11"], "unknown data set 'cifar11'; nearest: cifar10"),
        (["-d", "cifar100"], "nearest: cifar100-coarse"),
        (["-l", "30"], "unknown depth '30'"),
        (["-d", "cifar10", "-m", "wrn-*"], "no row matches all of"),
        (["-m", "resnet-29-0.5", "-g", "tpu"], "unknown device 'tpu'"),
        (["-m", "resnet-29-0.5", "--engine", "onnx"], "unknown engine 'onnx'; nearest: onnxruntime"),
        (["--data-dir", "/nowhere"], "no such directory: /nowhere"),
        (["--weights-dir", "/nowhere"], "no such directory: /nowhere"),
        (["--limit", "0"], "'0' (allowed: a whole number from 1)"),
        (["--batch-size", "many"], "'many' (allowed: a whole number from 1)"),
        (["--output", "/proc/nowhere"], "cannot make the directory /proc/nowhere"),
        (["--data-dir", "~nobody-of-this-name/x"], "unknown directory '~nobody-of-this-name/x'"),
        (["--modle", "x"], "unrecognized arguments: --modle; nearest: --model"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, run):
    answer = run(*arguments)
    assert answer.returncode == 2, answer
    assert words in answer.stderr
    assert answer.stderr.startswith("run_validation.py: error: ")
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stdout == ""


def test_offline_the_bundled_checkpoints_are_checked_and_other_rows_have_a_reason(run, tmp_path):
    answer = run("--output", tmp_path, "--engine", "onnxruntime")
    assert answer.returncode == 0, answer
    assert answer.stderr.startswith("Validating on the CPU with ")
    rows = list(csv.DictReader((tmp_path / "validation.csv").open()))
    bundled, published = ([row for row in rows if (row["dataset"] == "digits") == wanted] for wanted in (True, False))
    assert (len(bundled), len(published)) == (4, 50)
    assert {row["verdict"] for row in bundled} == {"match"}
    assert all(row["top1_error"] == row["recorded_top1_error"] and float(row["top1_error"]) <= 2.5 for row in bundled)
    assert {row["verdict"] for row in published} == {"not evaluated"}
    counted = [row for row in published if row["parameters"]]
    assert len(counted) == 50
    assert "the test images of CIFAR-10 are not in" in answer.stdout
    page = (tmp_path / "report.html").read_text()
    assert "the test images of CIFAR-10 are not in" in page
    assert page.count("<details>") == 4
    assert "20 superclasses" in answer.stdout
    assert "\x1b" not in answer.stdout + answer.stderr  # nothing for terminals in a pipe


def test_quiet_is_a_line_a_data_set(run):
    quiet = run("-d", "digits", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "Digits, trained with this project: 4 match\n", "")


@pytest.mark.slow
def test_verbose_is_a_line_a_network():
    verbose = process("-d", "digits", "-m", "pyd-*", "--verbose", "--engine", "onnxruntime")
    assert verbose.stderr.splitlines()[1:] == [
        "pyd-add-29-0.25 on digits: 4 of 360 wrong",
        "pyd-concat-29-0.25 on digits: 7 of 360 wrong",
    ]


@pytest.mark.slow
def test_on_a_terminal_there_is_a_line_a_network_too(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "run_validation.py", "-d", "digits", "--limit", "20", "--engine", "onnxruntime"]
    for quiet in (False, True):
        with open(tmp_path / "table", "w") as table:
            code = subprocess.call([*command, *["--quiet"][:quiet]], cwd=ROOT, stdout=table, stderr=theirs)
        assert code == 0
        os.write(theirs, b"end")
        shown = b""
        while not shown.endswith(b"end"):
            shown += os.read(ours, 4096)
        lines = re.findall(rb"(\S+) on digits: \d+ of 20 wrong\r\n", shown)
        assert len(lines) == (0 if quiet else 4)
        assert ("## Digits" in (tmp_path / "table").read_text()) != quiet


def test_without_any_evaluation_the_exit_code_is_3_and_with_require_all_1(run):
    assert run("-d", "cifar10", "-m", "resnet-29-0.5").returncode == 3
    assert run("-d", "cifar10", "-m", "resnet-29-0.5", "--require-all").returncode == 1


def test_real_images_and_weights_give_the_table(run, shared, tmp_path):
    (tmp_path / "data").mkdir()
    os.symlink(shared / "datasets" / "cifar10-test-first1000.bin", tmp_path / "data" / "test_batch.bin")
    (tmp_path / "weights").mkdir()  # what is missing may be downloaded to it
    for family in (path for path in (shared / "weights").iterdir() if path.is_dir()):
        os.symlink(family, tmp_path / "weights" / family.name)
    engine = ["--engine", "onnxruntime", "-g", "-1"]
    common = ["-d", "cifar10", *engine, "--data-dir", tmp_path / "data", "--weights-dir", tmp_path / "weights"]
    answer = run(*common, "-m", "resnet-29-0.5", "pyd-add-29-0.5", "mobilenet-29-1.5", "--output", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    rows = {row["model"]: row for row in json.loads((tmp_path / "out" / "validation.json").read_text())}
    assert (rows["resnet-29-0.5"]["wrong"], rows["pyd-add-29-0.5"]["wrong"]) == (71, 78)
    absent = rows["mobilenet-29-1.5"]  # unless it has been downloaded to pretrained/
    assert absent["images"] == 1000 or absent["reason"].startswith("cifar10_mobilenet29_1.5-0000.params is not in")
    assert "These are not the official test images" in answer.stdout
    assert re.search(r"resnet-29-0.5 .* 7.10 \| +5.67 to 8.86 .* in interval", answer.stdout)
    unfused = run(*common, "-m", "pyd-add-29-0.5", "--no-fuse", "--limit", "300", "--print-net")
    fused = run(*common, "-m", "pyd-add-29-0.5", "--limit", "300", "--batch-size", "64")
    assert "|  103,904 |" in unfused.stdout
    assert unfused.stdout.rsplit("##", 1)[1] == fused.stdout.rsplit("##", 1)[1]
    assert "the first 300 of 1,000" in fused.stdout or "300 of 1,000" in fused.stdout


@pytest.mark.gluon
@pytest.mark.parametrize("engine", [pytest.param("pytorch", marks=pytest.mark.pytorch), "onnxruntime"])
def test_every_engine_gives_the_same_table(engine, run, shared, tmp_path):
    (tmp_path / "test_batch.bin").symlink_to(shared / "datasets" / "cifar10-test-first1000.bin")
    common = [
        "-d",
        "cifar10",
        "-m",
        "resnet-29-0.5",
        "pyd-concat-29-0.5",
        "--data-dir",
        tmp_path,
        "--weights-dir",
        shared / "weights",
        "-g",
        "cpu",
    ]
    gluon, other = (run(*common, "--limit", "100", "--engine", name) for name in ("gluon", engine))
    assert gluon.returncode == other.returncode == 0, other.stderr
    assert other.stdout == gluon.stdout


def test_a_checkpoint_is_converted(monkeypatch, capsys, shared, tmp_path):
    run = runner(monkeypatch, capsys, "pydmobilenet")
    source = shared / "weights" / "resnet" / "cifar10_resnet29-0000.params"
    convert = ("convert", source, tmp_path / "resnet.params")
    answer = run(*convert, "--model", "resnet-29-0.5")
    assert answer.returncode == 0, answer.stderr
    ours, theirs = weights.read(tmp_path / "resnet.params"), weights.read(source)
    assert ours.keys() == theirs.keys()
    np.testing.assert_array_equal(ours["head.dense.weight"], theirs["head.dense.weight"])
    again = run(*convert, "--model", "resnet-29-0.5")
    assert again.returncode == 2
    assert "exists already" in again.stderr
    (tmp_path / "resnet.params").unlink()
    (tmp_path / "resnet.json").unlink()
    wrong = run(*convert, "--model", "resnet-56-0.5")
    assert wrong.returncode == 2
    assert "is of resnet-29-0.5, not of resnet-56-0.5; nearest: resnet-29-0.5" in wrong.stderr
    assert wrong.stderr.startswith("pydmobilenet: error:")


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_no_verdict():
    with open("/dev/full", "w") as full:
        answer = subprocess.run(
            [sys.executable, "run_validation.py", "-m", "resnet-29-0.5", "-d", "cifar10", "--engine", "onnxruntime"],
            cwd=ROOT,
            env={**os.environ, "HTTPS_PROXY": NOWHERE},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert answer.returncode == 2
    assert "No space left on device" in answer.stderr
    assert "Traceback" not in answer.stderr
