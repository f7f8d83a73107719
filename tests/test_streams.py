"""Standard streams and other open descriptors: as outputs they are written to, and where they are closed, all works."""

import io
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers import MODEL, ROOT, TINY, TRAINERS, make_classes, options
from PIL import Image

import pydmobilenet
from pydmobilenet import files
from pydmobilenet.errors import UnusableError

SHORT = {**TINY, "epochs": 1, "warmup_epochs": 0, "mixup_off_epochs": 0}
BUNDLED = ["-m", "pyd-add-29-0.25", "-d", "digits", "--engine", "onnxruntime"]
COMMANDS = {
    "predict": ["predict", "PICTURE", *BUNDLED, "--top", "1", "--output"],
    "export": ["export", *BUNDLED, "--output"],
    "show": ["show", "-d", "digits", "--images", "2", "--output"],
}


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "0.png")
    return tmp_path / "0.png"


def check_answer(content, picture):
    assert content.startswith(f"{picture}: ".encode())
    assert len(content.splitlines()) == 1


def check_network(content, picture):
    onnx.checker.check_model(onnx.load_from_string(content))


def check_picture(content, picture):
    assert Image.open(io.BytesIO(content)).format == "PNG"


CHECKS = {"predict": check_answer, "export": check_network, "show": check_picture}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "output", "stream"),
    [
        ("predict", "-", "stdout"),
        ("predict", "/dev/stderr", "stderr"),
        ("export", "-", "stdout"),
        ("export", "/proc/self/fd/1", "stdout"),
        ("show", "-", "stdout"),
    ],
)
def test_append_to_a_redirected_stream(command, output, stream, picture, tmp_path):
    words = [str(picture) if word == "PICTURE" else word for word in COMMANDS[command]]
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    with open(tmp_path / "all", "wb", buffering=0) as file:
        file.write(b"before\n")
        redirected = {stream: file, other: subprocess.PIPE}
        answer = subprocess.run([sys.executable, "-m", "pydmobilenet", *words, output], cwd=ROOT, **redirected)
        file.write(b"after\n")
    assert answer.returncode == 0, answer
    content = (tmp_path / "all").read_bytes()
    assert (content[:7], content[-6:]) == (b"before\n", b"after\n")
    CHECKS[command](content[7:-6], picture)
    told = getattr(answer, other)  # what is told of the file is not in its midst
    assert told.startswith(b"wrote /") if command != "predict" else not told


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_descriptor_is_written_to_and_not_replaced(kind, name, tmp_path):
    (tmp_path / "file").touch()
    reader, writer = os.pipe() if kind == "pipe" else (None, os.open(tmp_path / "file", os.O_RDWR))
    try:
        os.write(writer, b"before ")
        files.write(tmp_path / name.format(writer), "content")
        os.write(writer, b" after")
        content = os.read(reader, 100) if reader else (tmp_path / "file").read_bytes()
        assert content == b"before content after"
    finally:
        for descriptor in filter(None, (reader, writer)):
            os.close(descriptor)


def test_refuse_an_unwritable_stream_first(picture, tmp_path):
    with open(picture) as file:
        for path in (f"/dev/fd/{file.fileno()}", "/dev/fd/987"):
            with pytest.raises(UnusableError, match=rf"^cannot write {path}: Bad file descriptor$"):
                files.check(type(tmp_path)(path))
    with pytest.raises(UnusableError, match="cannot write a directory to /dev/stdout"):
        pydmobilenet.export("pyd-add-29-0.25", files.STDOUT, "digits", format="huggingface")


# Closed streams


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "closed"),
    [
        ("list", "1>&-"),
        ("predict", "2>&-"),
        ("validate", "2>&-"),
        ("export", "0<&- 1>&- 2>&-"),
        ("train", "1>&- 2>&-"),
    ],
)
def test_with_closed_streams_a_command_does_all_else(command, closed, picture, tmp_path):
    photos = make_classes(tmp_path / "photos", "ab", {".": 10})
    words = {
        "list": ["list", "pyd-add-*"],
        "predict": ["predict", picture, *BUNDLED, "--output", tmp_path / "answers"],
        "validate": [
            "validate",
            "-m",
            "pyd-add-*",
            "-d",
            "digits",
            "--limit",
            "9",
            "--engine",
            "onnxruntime",
            "--output",
            tmp_path / "report",
        ],
        "export": ["export", *BUNDLED, "--no-measure", "--output", tmp_path / "net.onnx"],
        "train": ["train", photos, "--model", MODEL, *options(SHORT), "--output", tmp_path / "run"],
    }[command]
    made = {"predict": "answers", "validate": "report/report.html", "export": "net.onnx", "train": "run/best.params"}
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "pydmobilenet", *words]
    answer = subprocess.run(shell, cwd=ROOT, capture_output=True)
    assert answer.returncode == 0, answer
    assert command == "list" or (tmp_path / made[command]).stat().st_size
    assert b"Traceback" not in answer.stdout + answer.stderr
    assert bool(answer.stdout) == (closed == "2>&-" and command != "predict")


@pytest.mark.parametrize("engine", TRAINERS)
def test_python_without_streams_trains_and_validates(engine, tmp_path, monkeypatch):
    photos = make_classes(tmp_path / "photos", "ab", {".": 10})
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    monkeypatch.setattr(sys, "stderr", None)
    run = pydmobilenet.train(MODEL, photos, output=tmp_path / "run", engine=engine, device="cpu", **SHORT)
    (result,) = pydmobilenet.validate(run, engine=engine, device="cpu")
    assert result.verdict == "match"
