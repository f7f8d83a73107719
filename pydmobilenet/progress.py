"""Progress bars."""

from __future__ import annotations

import sys

from tqdm import tqdm

from .text import printable


def bar(
    total: int | None,
    description: str,
    unit: str,
    shown: bool | None = None,
    initial: int = 0,
    unit_scale: bool = False,
) -> tqdm:
    """A progress bar, which goes when it is done; `shown` or not, by default on a terminal alone. Where there is no
    standard error, as under ``pythonw``, there is none. With `unit_scale`, numbers have prefixes: ``1.2MB``.
    """
    disable = True if sys.stderr is None else None if shown is None else not shown
    return tqdm(
        total=total,
        desc=printable(description),
        unit=unit if unit_scale else f" {unit}",
        unit_scale=unit_scale,
        initial=initial,
        disable=disable,
        leave=False,
    )
