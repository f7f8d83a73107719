"""What a result comes from: data, initial weights, versions, processor, device, command, dates."""

from __future__ import annotations

import hashlib
import importlib.metadata
import operator
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import numpy as np

from . import machine
from .data import Dataset
from .processes import launched

ENGINES = ("mxnet", "mxnet-cu112", "mxnet-cu115", "mxnet-cu117", "torch", "onnxruntime")
PIECE = 4096  # images hashed at a time: those of ImageNet32 do not fit into memory


def environment(engine: str = "gluon") -> dict[str, str]:
    """Versions, the processor and how an engine uses it, by name; imports no engine."""
    from . import __version__

    return {
        "pydmobilenet": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **dict(_engines()),
        "processor": machine.cpu_name(),
        "instruction_set": machine.instruction_set(engine=engine) or "unknown",
        "threads": os.environ.get("OMP_NUM_THREADS", "the engine's default"),
    }


def _engines() -> Iterator[tuple[str, str]]:
    """The packages of engines that are installed, and their versions."""
    for name in ENGINES:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def summary() -> str:
    """The processor, the instruction set and the threads on a line, as benchmarks print them beside their figures."""
    found = environment()
    return f"{found['processor']}, {found['instruction_set']}, OMP_NUM_THREADS={found['threads']}"


def session(device: str, engine: str, command: str) -> dict[str, object]:
    """One start of a training run: when, by which command, on which device, with what."""
    return {"begun": now(), "command": command, "device": device, "environment": environment(engine)}


def command() -> str:
    """The command of this process, as it can be typed again in the same directory."""
    directory, name = os.path.split(sys.argv[0])
    words = ["-m", os.path.basename(directory)] if name == "__main__.py" else [name]
    if name.endswith(".py"):
        words = [*_launcher(), *words]
    return shlex.join([*words, *sys.argv[1:]])


def _launcher() -> list[str]:
    """What has started this process's script."""
    return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1")] if launched() else ["python"]


def now() -> str:
    """The date and time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def of_data(dataset: Dataset) -> dict[str, Any]:
    """What tells images from others: how many of each label there are, and the SHA-256 of pixels and labels."""
    digest = hashlib.sha256()
    for start in range(0, len(dataset), PIECE):
        digest.update(np.ascontiguousarray(dataset.images[start : start + PIECE]).data)
    digest.update(dataset.labels.astype("<i8").tobytes())
    numbers = np.bincount(dataset.labels, minlength=len(dataset.task.classes))
    return {"images": len(dataset), "images_per_class": numbers.tolist(), "sha256": digest.hexdigest()}


def data_difference(recorded: Mapping[str, Any], found: Mapping[str, Any], classes: Sequence[str]) -> str:
    """In what `found`, as `of_data` gives it, is not what was recorded, in words; nothing where it is the same."""
    if found == recorded:
        return ""
    if found["images"] != recorded["images"]:
        return f"{found['images']:,} images instead of {recorded['images']:,}"
    for name, here, there in zip(classes, found["images_per_class"], recorded["images_per_class"]):
        if here != there:
            return f"{here:,} images of class {name!r} instead of {there:,}"
    return "other pixels, or the same in another order"


def check(metadata: Mapping[str, Any]) -> None:
    """Raises one of `checkpoints.runs.WRONG` where what a run tells of its origin cannot be."""
    rows(metadata)
    dict(metadata.get("config", {}))
    "".join([metadata.get("engine", ""), *(each["command"] for each in metadata.get("sessions", []))])
    for data in metadata.get("data", {}).values():
        if sum(map(operator.index, data["images_per_class"])) != data["images"]:
            raise ValueError("its images are not those of its classes together")


def rows(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run tells of its origin, as a name and a text each; nothing where an earlier version has told nothing."""
    found = []
    for number, each in enumerate(metadata.get("sessions", []), 1):
        what = "begun" if number == 1 else "resumed"
        found.append((f"{what} {each['begun']}", f"{each['command']} ({each['device']})"))
        found.append(("with", ", ".join(f"{name} {value}" for name, value in each["environment"].items())))
    for split, data in metadata.get("data", {}).items():
        found.append((f"{split} images", f"{data['images']:,}, SHA-256 {data['sha256']}"))
    if "initial_weights" in metadata:
        found.append(("initial weights", "{source}, SHA-256 {sha256}".format(**metadata["initial_weights"])))
    return found
