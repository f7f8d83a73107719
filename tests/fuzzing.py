"""Damaged and forged files of each format that is read, the same ones for the same seed."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from helpers import ROOT, archive_of

from pydmobilenet import checkpoints
from pydmobilenet.checkpoints import formats, runs
from pydmobilenet.data import about, cifar, decoded, get_task, imagenet32
from pydmobilenet.training import config
from pydmobilenet.training.checkpoint import State
from pydmobilenet.training.history import Epoch, History
from pydmobilenet.training.loop import Progress

VALUES = [None, True, -1, 2, 10**400, 1e308, -0.5, math.nan, math.inf, "", "x", "1", [], [1], {}, {"a": 1}, "y" * 9999]
CONFIG = config.make(
    {**config.read(ROOT / "configs" / "digits.yaml"), "model": "pyd-add-11-0.125", "dataset": "digits", "batch_size": 4}
)


class Format(NamedTuple):
    """A valid file, and what reads it; whether a checksum tells that something in it is another."""

    name: str
    content: bytes
    read: Callable[[Path], object]
    checked: bool = False
    forged: Callable[[np.random.Generator], bytes] | None = None


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with some of it flipped, cut, doubled, moved or replaced."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, length = (int(value) for value in (rng.integers(len(data) + 1), rng.integers(1, 65)))
        kind = rng.integers(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = rng.bytes(length)
        elif kind == 5:
            data[at : at + 8] = [b"\xff" * 8, bytes(8), b"\x7f" * 8, b"\0\0\0\0\0\0\0\x40"][int(rng.integers(4))]
        else:
            other = int(rng.integers(len(data) + 1))
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def with_another_value(tree: object, rng: np.random.Generator) -> object:
    """A tree of dicts and lists with one of its values, at any depth, replaced, removed or renamed."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    owner, key = places[int(rng.integers(len(places)))]
    kind = rng.integers(10)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner["another"] = owner.pop(key)
    else:
        owner[key] = VALUES[int(rng.integers(len(VALUES)))]
    return tree


def _places(tree):
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


# A valid file of each format


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {f"stages.0.{index}.norm1.gamma": rng.random((2, 3)).astype(np.float32) for index in range(3)}


def progress():
    history = History(2, [Epoch(1, 0.1, 1.5, 50.0, 1.25, 40.0, 100.0, 2.0)])
    return Progress(1, 2, 1.5, 3, 8, 0.5, history).to_dict()


def state(made=None):
    return State(arrays(), {name: -array for name, array in arrays(1).items()}, made or progress()).content()


def read_state(path):
    found = State.read(path)
    Progress.from_dict(found.progress, CONFIG, images=16)
    return (
        {name: array.tobytes() for name, array in found.parameters.items()},
        {name: array.tobytes() for name, array in found.momentum.items()},
        found.progress,
    )


METADATA = {
    "model": "pyd-add-11-0.125",
    "dataset": "digits",
    "outputs": 10,
    "classes": list("0123456789"),
    "mean": [0.3, 0.3, 0.3],
    "std": [0.4, 0.4, 0.4],
    "config": {"model": "pyd-add-11-0.125", "epochs": 4, "milestones": []},
    "data": {"train": {"images": 4, "images_per_class": [4, 0], "sha256": "00"}},
    "initial_weights": {"source": "msra, seed 0", "sha256": "00"},
    "sessions": [{"begun": "2026-01-01", "command": "train.py", "device": "cpu(0)", "environment": {"numpy": "1.26"}}],
    "checkpoints": {"best.params": {"epoch": 1, "test_error": 2.5, "sha256": "0123456789abcdef" * 4}},
}


ABOUT = {"model": "pyd-add-11-0.125", **about(get_task("digits")), "source": "best.params", "source_sha256": "00" * 32}


def described_weights(metadata):
    return formats.dump_safetensors(arrays(), metadata)


def forged_texts(rng):
    """What a file says about its network, with another value somewhere in one of its lists and numbers."""
    values = {key: json.loads(ABOUT[key]) for key in ("outputs", "classes", "mean", "std")}
    forged = with_another_value({**ABOUT, **values}, rng)
    as_it_is = {key for key in ABOUT.keys() - values if isinstance(forged.get(key), str)}
    return {key: value if key in as_it_is else json.dumps(value) for key, value in forged.items()}


def sidecar(rng=None):
    values = {**decoded(ABOUT), "sha256": hashlib.sha256(formats.dump_params(arrays())).hexdigest()}
    return json.dumps(with_another_value(values, rng) if rng else values).encode()


def read_sidecar(path):
    """What is recorded beside parameters."""
    path.with_suffix(".params").write_bytes(formats.dump_params(arrays()))
    return checkpoints.inspect(path.rename(path.with_suffix(".json")).with_suffix(".params"))


def read_run(path):
    path = path.rename(path.with_name(runs.METADATA))
    record = checkpoints.inspect(path.parent)
    return runs.read_metadata(path.parent), record, runs.origin(record)


def batch(number=3):
    pixels = np.random.default_rng(0).integers(0, 256, (number, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": list(range(1, number + 1)), "filenames": [b"a.png"] * number}


def read_pickle(path):
    return cifar.parse_pickle(cifar.CIFAR10, path, path.read_bytes())


def read_pixels(path):
    pixels, labels = imagenet32.load(path)
    return pixels.tobytes(), labels.tolist()


def npz(compressed=False):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, data=batch()["data"], labels=batch()["labels"])
    return buffer.getvalue()


def zipped(files):
    """A zip file as NumPy's, of any contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


TAR = {"test_batch.bin": bytes([1]) + bytes(range(256)) * 12, "readme.html": b"<html>"}
FORMATS = [
    Format("parameters.params", formats.dump_params(arrays()), formats.read_params),
    Format("parameters.safetensors", formats.dump_safetensors(arrays()), formats.read_safetensors),
    Format("described.safetensors", described_weights(ABOUT), checkpoints.inspect),
    Format(
        "forged.safetensors",
        described_weights(ABOUT),
        checkpoints.inspect,
        forged=lambda rng: described_weights(forged_texts(rng)),
    ),
    *(Format(f"pickle-{protocol}", pickle.dumps(batch(), protocol), read_pickle) for protocol in (0, 2, 4, 5)),
    Format("archive.tar.gz", archive_of(TAR), lambda path: cifar.members(path, ("test_batch.bin",)), checked=True),
    Format("stored.npz", npz(), read_pixels, checked=True),
    Format("packed.npz", npz(compressed=True), read_pixels, checked=True),
    Format(
        "last.state",
        state(),
        read_state,
        checked=True,
    ),
    Format(
        "forged.state",
        state(),
        read_state,
        forged=lambda rng: state(with_another_value(progress(), rng)),
    ),
    Format("sidecar.json", sidecar(), read_sidecar),
    Format("forged.sidecar", sidecar(), read_sidecar, forged=sidecar),
    Format("run.json", json.dumps(METADATA).encode(), read_run),
    Format(
        "forged.json",
        json.dumps(METADATA).encode(),
        read_run,
        forged=lambda rng: json.dumps(with_another_value(METADATA, rng)).encode(),
    ),
    Format("config.yaml", config.text(CONFIG).encode(), lambda path: config.make(config.read(path))),
    Format(
        "forged.yaml",
        config.text(CONFIG).encode(),
        lambda path: config.make(config.read(path)),
        forged=lambda rng: yaml.safe_dump(with_another_value(yaml.safe_load(config.text(CONFIG)), rng)).encode(),
    ),
]


def variants(form: Format, number: int, seed: int = 0):
    """So many damaged or forged files of a format."""
    rng = np.random.default_rng([seed, *form.name.encode()])
    for _ in range(number):
        yield form.forged(rng) if form.forged else mutated(form.content, rng)
