"""Show a network layer by layer, and of a run where it comes from."""

from __future__ import annotations

import argparse

from .. import catalog, checkpoints, fetching, zoo
from ..checkpoints import params, runs, safetensors
from ..data import get_task
from ..reporting.listing import layer_table
from ..text import printable
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as pyd-concat-56-0.5, or a run")
    options.add_dataset(parser)


def run(model: str, dataset: str | None) -> int:
    path = fetching.expanded(model)
    # A folder may have a network's name too.
    is_file = path.is_file() or path.suffix in (params.SUFFIX, safetensors.SUFFIX)
    is_directory = any((path / name).exists() for name in (runs.METADATA, safetensors.FILE))
    found = checkpoints.find(None, dataset, path) if is_file or is_directory else None
    name = found.model if found else catalog.parse_name(model).name
    task = found.task if found else get_task(dataset or "cifar10")
    print(printable(f"{name} for {task.title}"))
    if found:
        print(printable(f"classes: {', '.join(task.classes)}"))
        print(f"images: {task.image_size}x{task.image_size} pixels")
        for name_of_row, text in runs.origin(found):
            print(printable(f"{name_of_row}: {text}"))
    print(layer_table(zoo.describe(name, task.name, task.outputs), task.image))
    return 0
