"""File names of any bytes, and terminals of any encoding: shown on one line and escaped, written exactly."""

import csv
import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import oracle
import pytest
from helpers import ROOT
from PIL import Image

from pydmobilenet import catalog, cli, fetching
from pydmobilenet.cli import options
from pydmobilenet.data import get_dataset, get_task
from pydmobilenet.errors import BadFileError, UserError
from pydmobilenet.metrics import Answers, Score
from pydmobilenet.plots import draw
from pydmobilenet.reporting import html
from pydmobilenet.reporting import tables as report
from pydmobilenet.text import encodable, printable
from pydmobilenet.training.history import History
from pydmobilenet.validation import Result

HOSTILE = os.fsdecode(b"caf\xe9 \xc3\xb6\n\x1b[31m")
SHOWN = r"caf\xe9 ö\n\x1b[31m"
CLASSES = [os.fsdecode(name) for name in (b"\x1b[31mred", b"a\nb", b"caf\xe9", b"\xc3\xb6")]
MODEL = "pyd-add-11-0.25"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Grüße, 数字", "Grüße, 数字"),
        (HOSTILE, SHOWN),
        ("a\r\t\x7f\x9b", r"a\r\t\x7f\x9b"),
        ("left\u202eright\u2028", r"left\u202eright\u2028"),
        ("\ud800", r"\ud800"),
        (BadFileError("two\nlines"), r"two\nlines"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text, shown):
    assert printable(text) == shown
    assert shown.isprintable()


def test_every_character_can_be_shown_and_written():
    assert all(printable(chr(number)).isprintable() for number in range(0x110000))
    assert encodable("".join(map(chr, range(0x110000)))).encode()


def test_utf8_holds_every_name_and_all_but_lone_bytes_exactly():
    assert encodable("ö\n\x1b") == "ö\n\x1b"
    assert encodable(HOSTILE) == HOSTILE.replace("\udce9", r"\udce9")


@pytest.fixture
def folder(tmp_path):
    """A data set with a hostile name, whose classes and images have hostile names."""
    root = tmp_path / HOSTILE
    try:
        for split in ("train", "test"):
            for label, name in enumerate(CLASSES):
                (root / split / name).mkdir(parents=True)
                pixels = np.full((32, 32, 3), 60 * label, np.uint8)
                for number in range(2):
                    Image.fromarray(pixels).save(root / split / name / os.fsdecode(b"\xff\n%d.png" % number), "png")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    return root


@pytest.fixture
def run(folder):
    """A run with a hostile name, on that data."""
    run = folder / os.fsdecode(b"run\xe9\n")
    run.mkdir()
    oracle.write_random(run / "best.params", catalog.describe(MODEL, f"folder:{folder}"))
    sha256 = fetching.digest(run / "best.params", "sha256").removeprefix("sha256:")
    checkpoints = {"best.params": {"epoch": 1, "test_error": 50.0, "sha256": sha256}}
    metadata = {"model": MODEL, "dataset": f"folder:{folder}", "outputs": 4, "classes": CLASSES}
    (run / "run.json").write_text(json.dumps({**metadata, "checkpoints": checkpoints}))
    return run


@pytest.fixture(params=["ascii", "latin-1", "utf-8"])
def call(request, monkeypatch):
    """A command, run inside this process on a terminal of some encoding: exit code, standard output and error."""

    def call(*arguments, main=cli.main):
        out, err = (io.TextIOWrapper(io.BytesIO(), request.param, errors="strict") for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["pydmobilenet", *map(str, arguments)])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own
            with pytest.raises(SystemExit) as ended:
                main()
        for stream in (out, err):
            stream.flush()
        return ended.value.code, *(stream.buffer.getvalue().decode(request.param) for stream in (out, err))

    return call


def assert_lines(text, number):
    """So many lines that a terminal shows and does not obey."""
    lines = text.split("\n")
    assert len(lines) == number + 1
    assert "".join(lines).isprintable()


def test_predictions_are_a_line_an_image_and_exact_in_json(call, folder, run):
    arguments = ["predict", folder / "test", "-m", MODEL, "-d", f"folder:{folder}", "--weights", run]
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert_lines(out, 8)
    assert r"\x1b[31mred" in out
    assert r"\xff\n0.png: " in out
    code, out, err = call(*arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert all(os.path.isfile(image["image"]) for image in found)
    assert {each["class"] for image in found for each in image["classes"]} <= set(CLASSES)


def test_errors_are_a_line_and_a_data_set_is_drawn(call, folder):
    bad = folder / "test" / "ö" / os.fsdecode(b"bad\xff\n.png")
    bad.write_bytes(b"none")
    code, out, err = call("predict", bad, "-m", "pyd-add-29-0.25", "-d", "digits")
    assert (code, out) == (2, "")
    assert_lines(err, 1)
    assert r"bad\xff\n.png cannot be read as an image" in err
    bad.unlink()
    show = ("show", "-d", f"folder:{folder}", "--split", "test", "--output", folder / "grid.png")
    code, out, err = call(*show)
    assert code == 0
    assert_lines(out, 1)
    assert_lines(err, 1)  # images a class
    assert (folder / "grid.png").exists()


def test_places_of_weights_are_a_line(call, folder):
    record = catalog.find("resnet-29-0.5", "cifar10")
    (folder / record.file.name).write_bytes(b"none")
    code, out, err = call("list", record.model, "-d", "cifar10", "--weights-dir", folder)
    assert (code, err) == (0, "")
    assert_lines(out, 3)
    assert "is not the published file" in out


def process(*arguments, **environment):
    """A command in a process of its own."""
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True)


@pytest.mark.parametrize("command", ["show", "predict"])
def test_a_locale_without_an_encoding_is_enough(command, folder, tmp_path):
    images = folder / "test"
    if command == "show":
        arguments = ("-m", "pydmobilenet", "show", "-d", f"folder:{folder}", "--output", tmp_path / "grid.png")
    else:
        arguments = ("-m", "pydmobilenet", "predict", images, "-m", "pyd-add-29-0.25", "-d", "digits")
    answer = process(*arguments, LC_ALL="C", PYTHONUTF8="0")
    assert answer.returncode == 0, answer.stderr
    assert_lines(answer.stdout.decode("ascii"), 8 if command == "predict" else 1)
    assert rb"caf\xe9 \xc3\xb6\n\x1b[31m" in answer.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_validation_shows_and_writes_names(encoding, folder, run, tmp_path):
    out = tmp_path / os.fsdecode(b"out\xe9")
    answer = process("run_validation.py", "--run", run, "--verbose", "--output", out, PYTHONIOENCODING=encoding)
    assert answer.returncode == 0, answer.stderr
    for output in (answer.stdout, answer.stderr):
        assert output.decode(encoding).replace("\n", "").isprintable()
    assert rb"run\xe9\n/best.params" in answer.stdout
    assert SHOWN in (out / "validation.md").read_text(encoding="utf-8")
    assert r"a\nb" in (out / "report.html").read_text(encoding="utf-8")
    (row,) = json.loads((out / "validation.json").read_text())
    assert row["dataset"] == f"folder:{folder}"
    with open(out / "validation.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["dataset"] == encodable(f"folder:{folder}")


def test_reasons_and_classes_are_printable_in_tables_and_on_the_page():
    record = catalog.find("resnet-29-0.5", "cifar10")
    task = replace(get_task("cifar10"), title=HOSTILE, classes=(*CLASSES, *"efghij"))
    labels = np.arange(10)
    dataset = replace(get_dataset("digits", "test").head(10), task=task, labels=labels, source=HOSTILE, official=False)
    answers = Answers(np.roll(labels, 1).astype(np.uint16), np.ones(10, np.float32))
    rows = [
        Result(record, record.exact, Score(0.0, 10, 10, 5), answers=answers),
        Result(record, record.exact, reason=f"no {HOSTILE}"),
    ]
    page = html.page([html.Section(dataset, rows, 0)], rows)
    for text in (report.markdown(dataset, rows), page):
        assert text.replace("\n", "").isprintable()
        assert f"no {SHOWN}" in text
        assert f"images from {SHOWN}" in text
    for name in CLASSES:
        assert f"predicted <b>{printable(name)}</b>" in page


def test_an_onnx_file_has_the_classes_exactly(call, folder, run):
    onnx = pytest.importorskip("onnx", reason="ONNX files need the extra 'onnx'")
    pytest.importorskip("onnxruntime", reason="ONNX files are compared by ONNX Runtime")
    output = folder / os.fsdecode(b"net\xe9\n.onnx")
    code, out, err = call("export", "-m", MODEL, "-d", f"folder:{folder}", "--weights", run, "--output", output)
    assert (code, err) == (0, "")
    assert_lines(out, 2)
    metadata = {each.key: each.value for each in onnx.load_from_string(output.read_bytes()).metadata_props}
    assert json.loads(metadata["classes"]) == CLASSES
    assert metadata["dataset"] == encodable(f"folder:{folder.name}")  # and no path


def test_curves_have_any_title(tmp_path):
    draw(History(), tmp_path / "curves.png", HOSTILE)
    assert (tmp_path / "curves.png").exists()


def test_a_pipe_gets_what_a_terminal_s_encoding_lacks_as_an_escape(call):
    def main():
        print("ö\u20ac")
        sys.stderr.write(warnings.formatwarning(HOSTILE))
        raise UserError("\u20ac")

    code, out, err = call(main=lambda: options.exit_with(main, "pydmobilenet"))
    assert code == 2
    assert out in ("ö€\n", "ö\\u20ac\n", "\\xf6\\u20ac\n")
    warning, error = err.splitlines()
    assert warning.replace("ö", r"\xf6") == "pydmobilenet: warning: " + SHOWN.replace("ö", r"\xf6")
    assert error in ("pydmobilenet: error: €", r"pydmobilenet: error: \u20ac")
