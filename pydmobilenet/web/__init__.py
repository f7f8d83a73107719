"""Write a network as a web page for any static server: the network, its labels, and the page.

`page.js` runs the network by onnxruntime-web; `pixels.js` makes the pixels of `predict`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from .. import files
from ..checkpoints import Checkpoint
from ..data import about
from ..errors import MissingFileError
from ..text import printable

FORMAT = "web"
NETWORK = "net.onnx"
PAGE = ("page.css", "page.js", "pixels.js")
# onnxruntime-web of npm, the build without a GPU: its script, and the WebAssembly that the page gives to it. The hashes
# are of these files in npm's package. The page gives them to `fetch`, so a server can change neither.
VERSION = "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
RUNTIME = {
    "script": ("ort.wasm.bundle.min.mjs", "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    "wasm": ("ort-wasm-simd-threaded.wasm", "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
}


def runtime_files(directory: Path) -> dict[str, bytes]:
    """Read npm's files of onnxruntime-web, from its folder or the ``dist`` in it.

    Warns of another version. Raises MissingFileError.
    """
    names = [name for name, _ in RUNTIME.values()]
    for folder in (directory, directory / "dist"):
        if all((folder / name).is_file() for name in names):
            contents = {name: (folder / name).read_bytes() for name in names}
            if any(integrity(contents[name]) != expected for name, expected in RUNTIME.values()):
                warnings.warn(f"{folder} is not of onnxruntime-web {VERSION}, which was tested", stacklevel=2)
            return contents
    raise MissingFileError(
        f"{directory} has no {' and '.join(names)}; npm install onnxruntime-web@{VERSION} brings them, in its dist/"
    )


def integrity(content: bytes) -> str:
    """Return a content's hash as browsers compare it (https://www.w3.org/TR/sri-2)."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def labels(source: Checkpoint) -> dict[str, Any]:
    """Return the content of ``labels.json``: what JavaScript cannot read in an ONNX file."""
    task = source.task
    return {
        "model": source.model,
        "dataset": about(task)["dataset"],
        "classes": [task.class_name(label) for label in range(source.network.outputs)],
        "image_size": task.image_size,
        "mean": task.mean,
        "std": task.std,
        "decoding": task.decoding,
        "parameters": source.network.complexity(task.image).parameters,
    }


def write(source: Checkpoint, directory: Path, runtime: dict[str, bytes] | None) -> None:
    """Write the page of a network into a directory; without the files of a `runtime`, it loads those of `CDN`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(Path(__file__).with_name("index.html.j2").read_text(encoding="utf-8"))
    local = {f"runtime/{name}": content for name, content in (runtime or {}).items()}
    sources = {
        kind: (f"runtime/{name}", integrity(runtime[name])) if runtime else (CDN + name, expected)
        for kind, (name, expected) in RUNTIME.items()
    }
    page = template.render(
        title=printable(f"{source.model} for {source.task.title}"),
        remote="" if runtime else f" {CDN}",
        runtime=sources,
        draws=source.task.name == "digits",
    )
    contents: dict[str, str | bytes] = {
        "index.html": page,
        "labels.json": json.dumps(labels(source), indent=2) + "\n",
        **{name: Path(__file__).with_name(name).read_bytes() for name in PAGE},
        **local,
    }
    if local:
        (directory / "runtime").mkdir()
    files.write_together({directory / name: content for name, content in contents.items()})
