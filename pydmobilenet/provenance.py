"""The origin of a result: data, initial weights, versions, processor, device, command, dates."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import numpy as np

from . import machine
from .data import Dataset
from .processes import launched

ENGINES = ("mxnet", "mxnet-cu112", "mxnet-cu115", "mxnet-cu117", "torch", "onnxruntime")
CHUNK = 4096  # images hashed at once: those of ImageNet32 do not fit into memory


def environment(engine: str = "gluon") -> dict[str, str]:
    """Return versions, the processor, and its use by an engine. Imports no engine."""
    from . import __version__

    versions = {}
    for name in ENGINES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "pydmobilenet": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **versions,
        "processor": machine.cpu_name(),
        "instruction_set": machine.instruction_set(engine=engine) or "unknown",
        "threads": os.environ.get("OMP_NUM_THREADS", "the engine's default"),
    }


def summary() -> str:
    """Describe the processor, the instruction set and the threads on a line, for benchmarks."""
    values = environment()
    return f"{values['processor']}, {values['instruction_set']}, OMP_NUM_THREADS={values['threads']}"


def session(device: str, engine: str, command: str) -> dict[str, object]:
    """Describe a start of a training run."""
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"begun": begun, "command": command, "device": device, "environment": environment(engine)}


def command() -> str:
    """Return the command of this process, to be typed again in the same directory."""
    directory, name = os.path.split(sys.argv[0])
    words = ["-m", os.path.basename(directory)] if name == "__main__.py" else [name]
    launcher = ["python"]
    if launched():
        launcher = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    return shlex.join([*(launcher if name.endswith(".py") else []), *words, *sys.argv[1:]])


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Format the call of a public function, without arguments that have their default."""
    known = inspect.signature(function).parameters
    words: list[str] = []
    for position, (name, value) in enumerate(arguments.items()):
        default = known[name].default if name in known else inspect.Parameter.empty
        if name == "recipe" or (type(value) is type(default) and value == default):
            continue
        keyword = "" if name in ("model", "dataset") and position == len(words) else f"{name}="
        text = getattr(value, "__name__", "") or repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
        words.append(f"{keyword}{text}")
    return f"pydmobilenet.{function.__name__}({', '.join(words)})"


def of_data(dataset: Dataset) -> dict[str, Any]:
    """Count the images of each label, and hash pixels and labels by SHA-256."""
    digest = hashlib.sha256()
    for start in range(0, len(dataset), CHUNK):
        digest.update(np.ascontiguousarray(dataset.images[start : start + CHUNK]).data)
    digest.update(dataset.labels.astype("<i8").tobytes())
    counts = np.bincount(dataset.labels, minlength=len(dataset.task.classes))
    return {"images": len(dataset), "images_per_class": counts.tolist(), "sha256": digest.hexdigest()}


def data_difference(recorded: Mapping[str, Any], current: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Describe how data, as of `of_data`, differs from the recorded data; empty if it does not."""
    if current == recorded:
        return ""
    if current["images"] != recorded["images"]:
        return f"{current['images']:,} images instead of {recorded['images']:,}"
    for name, count, before in zip(classes, current["images_per_class"], recorded["images_per_class"]):
        if count != before:
            return f"{count:,} images of class {name!r} instead of {before:,}"
    return "other pixels, or the same in another order"


def rows(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the origin of a run as names and texts. Raises one of `checkpoints.runs.WRONG` for a forged ``run.json``."""
    lines = []
    for number, start in enumerate(metadata.get("sessions", [])):
        lines.append(
            (f"{'resumed' if number else 'begun'} {start['begun']}", f"{start['command']} ({start['device']})")
        )
        lines.append(("with", ", ".join(f"{name} {value}" for name, value in start["environment"].items())))
    for split, data in metadata.get("data", {}).items():
        lines.append((f"{split} images", f"{data['images']:,}, SHA-256 {data['sha256']}"))
    if "initial_weights" in metadata:
        lines.append(("initial weights", "{source}, SHA-256 {sha256}".format(**metadata["initial_weights"])))
    if "teacher" in metadata:
        model, source, sha256 = (metadata["teacher"][key] for key in ("model", "source", "sha256"))
        lines.append(("teacher", model + ", " + source + ", SHA-256 " + sha256))  # TypeError unless all are texts
    return lines
