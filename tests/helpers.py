"""Helpers of several tests: train.py and its runs, synthetic data sets, archives and pictures."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
import zlib
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydmobilenet import catalog, cli
from pydmobilenet.data import cifar, images
from pydmobilenet.errors import BadFileError
from pydmobilenet.training.checkpoint import State
from pydmobilenet.training.history import Epoch, History

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once
CIFAR_MODELS = [record.model for record in catalog.RECORDS if record.dataset == "cifar10"]
NETWORKS = [(record.model, record.dataset) for record in catalog.RECORDS if not record.model.startswith("wrn")]
TRAINERS = [pytest.param("gluon", marks=pytest.mark.gluon), pytest.param("pytorch", marks=pytest.mark.pytorch)]
SMALL = ("resnet-29-0.5", "mobilenet-29-0.5", "pyd-add-29-0.25", "pyd-concat-29-0.25")  # one of each family
LIMIT = 240  # seconds for one process on a busy machine


def sampled(cases, usual):
    """Return all cases for a parametrisation; those that are not `usual` run by ``make fuzz`` alone."""
    return [case if usual(case) else pytest.param(*case, marks=pytest.mark.fuzz) for case in cases]


@functools.lru_cache
def first_images() -> np.ndarray:
    """Return the first 1,000 images of the real CIFAR-10 test set, as uint8 (1000, 3, 32, 32)."""
    records = np.fromfile(SHARED / "datasets" / "cifar10-test-first1000.bin", np.uint8).reshape(1000, 3073)
    return records[:, 1:].reshape(1000, 3, 32, 32)


# train.py and its runs

DIGITS = ROOT / "configs" / "digits.yaml"
MODEL = "pyd-add-11-0.125"
RECIPE = {"batch_size": 8, "mixup": 0.2, "mixup_off_epochs": 1, "warmup_epochs": 1.5, "seed": 5}
TINY = {"epochs": 4, "batch_size": 8, "warmup_epochs": 1.5, "mixup": 0.2, "mixup_off_epochs": 1, "learning_rate": 0.05}


def make_folder(root, classes="abcd", train=10, test=6, **others):
    """Write a folder of images, so many a class in each split; a bright stripe marks the class."""
    make_classes(root, classes, {"train": train, "test": test, **others})
    return f"folder:{root}"


def make_classes(root, classes, splits, side=32):
    """Write class folders of so many images each for every split; the split ``.`` has them in `root` itself."""
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (side, side, 3))
                pixels[side // 4 * label : side // 4 * (label + 1)] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number:02}.png")
    return root


def options(values):
    return [text for key, value in values.items() for text in (f"--{key.replace('_', '-')}", str(value))]


def process(*arguments, **settings):
    """Start train.py on one thread: its numbers depend on the number of threads."""
    environment = {**os.environ, "COLUMNS": "100", "HTTPS_PROXY": NOWHERE, "OMP_NUM_THREADS": "1"}
    settings = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.Popen([sys.executable, ROOT / "train.py", *map(str, arguments)], text=True, **settings)


def train(*arguments, **settings):
    """Run train.py to its end; return exit code, standard output and standard error."""
    started = process(*arguments, **settings)
    try:
        out, err = started.communicate(timeout=300)
    finally:
        started.kill()
    return subprocess.CompletedProcess(arguments, started.returncode, out, err)


def train_inside(*arguments):
    """Run train.py inside this process, as `runner`, in a fixture of any scope."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        with pytest.raises(SystemExit) as ended:
            cli.main("train")
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


def runner(monkeypatch, capsys, script="train.py"):
    """Return a function like `train` that runs a script inside this process."""
    call = commander(monkeypatch, capsys, script)
    return lambda *arguments: subprocess.CompletedProcess(arguments, *call(*arguments))


def commander(monkeypatch, capsys, program="pydmobilenet"):
    """Return a function that runs a command inside this process and returns exit code, stdout and stderr."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main({"train.py": "train", "run_validation.py": "validate"}.get(program, ""))
        return ended.value.code, *capsys.readouterr()

    return call


def assert_mistake(answer, words):
    """Expect one line and exit code 2. The choice of a device may stand above it."""
    assert answer.returncode == 2, answer
    assert answer.stdout == ""
    *above, line = answer.stderr.splitlines()
    assert line.startswith("train.py: error: ")
    assert words in line
    assert all(other.startswith(("Training on ", "data: ", "weights: ", "train.py: warning: ")) for other in above)


def listing(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@contextmanager
def no_larger_files_than(size):
    """Let writes beyond so many bytes fail, as on a full disk."""
    resource = pytest.importorskip("resource")  # Windows has none
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rows(path):
    return list(csv.DictReader(path.open())) if path.exists() else []


def deterministic(rows):
    """Return the rows of a history without their times."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def content(directory):
    """Return everything equal in two runs of a recipe: arrays and files as bytes, progress, metadata."""
    assert not list(directory.glob("**/*.part"))
    state = State.read(directory / "last.state")
    progress = {key: value for key, value in state.progress.items() if key != "seconds"}
    metadata = json.loads((directory / "run.json").read_text())
    return {
        **{f"parameter {name}": array.tobytes() for name, array in state.parameters.items()},
        **{f"momentum {name}": array.tobytes() for name, array in state.momentum.items()},
        **{path.name: path.read_bytes() for path in directory.glob("*.params")},
        "progress": {**progress, "history": deterministic(progress["history"])},
        "history.csv": deterministic(rows(directory / "history.csv")),
        "config": (directory / "config.yaml").read_bytes(),
        "metadata": {
            key: value for key, value in metadata.items() if key != "sessions"
        },  # the sessions tell when it was resumed
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


# Beside a newer PyTorch, GluonCV refuses to be imported: this hides PyTorch from a process.
WITHOUT_TORCH = """
import sys, types
def find_spec(name, *_):
    if name == "torch": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))
import pydmobilenet, mxnet, numpy
"""


@functools.lru_cache
def has_gluoncv():
    probe = WITHOUT_TORCH + "import gluoncv"
    return not subprocess.run([sys.executable, "-W", "ignore", "-c", probe], capture_output=True).returncode


def with_gluoncv(code, directory):
    """Run code in a process with GluonCV, in a directory. Skip if it cannot be imported."""
    if not has_gluoncv():
        pytest.skip("GluonCV cannot be imported")
    subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT_TORCH + code], cwd=directory, check=True)


# Histories of runs


def epoch(number, test_error=50.0, **values):
    row = Epoch(number, 0.1, 1.234, 23.45, 1.5, test_error, 1234.4, 41.2)
    return dataclasses.replace(row, **values)


def history_of(number, epochs=0):
    """Make a history like those of real runs: errors fall, the rate falls by tenths."""
    history = History(epochs)
    noise = np.random.default_rng(0).random(number)
    for index in range(number):
        error = 5 + 65 / (1 + index / 3) + float(noise[index])
        rate = 0.1 / 10 ** (index * 4 // 320)
        history.rows.append(Epoch(index + 1, rate, error / 50, error, error / 40, error + 2, 1234.4, 41.2))
    return history


# Networks and files of images


def batch(layout, number=30, seed=0):
    """Draw random images (number, 3, 32, 32) and labels (number, label_bytes)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)
    fine = rng.integers(0, len(layout.classes), number)
    columns = [fine] if layout.label_bytes == 1 else [cifar.COARSE_OF_FINE[fine], fine]
    return images, np.stack(columns, axis=1)


def as_binary(images, labels):
    return np.concatenate([labels.astype(np.uint8), images.reshape(len(images), -1)], axis=1).tobytes()


def as_pickle(layout, images, labels, protocol=2):
    names = ["labels"] if layout.label_bytes == 1 else ["coarse_labels", "fine_labels"]
    content = {"data": images.reshape(len(images), -1), "batch_label": "batch 1 of 1"}
    content.update((name, labels[:, column].tolist()) for column, name in enumerate(names))
    return pickle.dumps(content, protocol=protocol)


def split_contents(layout, form, split):
    """Return the files of a synthetic split by name, and its images and labels."""
    names = getattr(layout, form)[split]
    batches = [batch(layout, seed=number) for number in range(len(names))]
    write = as_binary if form == "binary" else lambda *arrays: as_pickle(layout, *arrays)
    contents = {name: write(*arrays) for name, arrays in zip(names, batches)}
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    return contents, images, labels


def archive_of(contents, folder=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{folder}{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = as_binary(*batch(cifar.CIFAR10))  # the content of a sound binary file

SHAPE = np.zeros((32, 32), np.uint8)  # an upright bar with a half-transparent edge
SHAPE[8:24, 14:18] = 255
SHAPE[8:24, 18] = 100
RAMP = np.arange(1024).reshape(32, 32)
WIDE = (RAMP * 64 + 63).astype(np.uint16)  # to 65535


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows, bits, colours, *extra, size=(32, 32)):
    """Encode rows of bytes as a PNG of any bits and colour type: Pillow cannot."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colours, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(row) for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def tiff(content, bits, photometric, sample_format=1, extra=(), side=32):
    """Encode 32x32 pixels as a TIFF in one strip, little-endian: Pillow cannot."""
    tags = {256: side, 257: side, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1 + len(extra), 278: side}
    tags.update({279: len(content), 339: sample_format})
    if extra:
        tags[338] = extra[0]
        tags[258] = bits | bits << 16
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if value < 65536 or tag == 258 else 4, 1 + (tag == 258) * len(extra), value)
        for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)


def decode(content, name="it", decoding="draft"):
    """Decode the content of a file, pixels or an image of Pillow's to 32x32 pixels. Raises BadFileError."""
    (picture,) = images.read_all([content], lambda item: images.to_picture(item, name, True, 32, decoding))
    if isinstance(picture, BadFileError):
        raise picture
    return picture


def read_picture(path):
    return decode(images.content(path), str(path))


def refused(content, words):
    with pytest.raises(BadFileError, match=words) as caught:
        decode(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def keyed(bits, value):
    """Encode `SHAPE` as a PNG, black on a grey with a transparent colour key."""
    rows = [
        [sum(int(v) << (8 - bits * (n + 1)) for n, v in enumerate(group)) for group in row.reshape(-1, 8 // bits)]
        for row in np.where(SHAPE > 0, 0, value)
    ]
    return png(rows, bits, 0, chunk(b"tRNS", bytes([0, value])))


def stop_at_look(monkeypatch, number):
    """Let a run find a signal at so many looks for one after the first."""
    from pydmobilenet import processes
    from pydmobilenet.training.loop import Loop

    requests, looks = Loop._requests, iter(range(1000))

    def stop_once(self):
        if next(looks) == number:
            self.stopped = processes.STOP_SIGNALS[0]
        return requests(self)

    monkeypatch.setattr(Loop, "_requests", stop_once)
