"""Download data sets and published weights ahead of time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .. import catalog
from ..catalog import Record
from ..checkpoints import weights
from ..data import Dataset, get_dataset, get_task
from ..errors import UserError
from ..text import printable
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_pattern(parser)
    options.add_data_dir(parser)
    options.add_weights_dir(parser)


def run(pattern: str, dataset: list[str], data_dir: Path | None, weights_dir: Path | None) -> int:
    return fetch(catalog.select([pattern], dataset), data_dir, weights_dir)


def fetch(records: Sequence[Record], data_dir: Path | None = None, weights_dir: Path | None = None) -> int:
    """Bring the data sets and published weights of some records to this machine, and print where each is.

    The answer is 1 if any could not be had; the reasons are printed on standard error.
    """
    wanted: dict[str, Callable[[], Dataset | Path]] = {
        f"{get_task(name).title}, {split} images": partial(get_dataset, name, split, data_dir)
        for name in dict.fromkeys(record.dataset for record in records)
        for split in ("train", "test")
    }
    for record in records:
        if record.published and record.file:
            wanted[f"{record.model} for {record.dataset}"] = partial(weights.obtain, record.file, weights_dir)
    code = 0
    for title, obtain in wanted.items():
        try:
            found = obtain()
            print(printable(f"{title}: {getattr(found, 'source', found)}"), flush=True)
        except (UserError, OSError) as error:
            print(printable(f"{title}: {error}"), file=sys.stderr, flush=True)
            code = 1
    return code
