"""Progress bars."""

from __future__ import annotations

from tqdm import tqdm

from .text import printable


def bar(total: int, description: str, unit: str, shown: bool | None = None, initial: int = 0) -> tqdm:
    """A progress bar, which goes when it is done; `shown` or not, by default on a terminal alone."""
    disable = None if shown is None else not shown
    return tqdm(
        total=total, desc=printable(description), unit=f" {unit}", initial=initial, disable=disable, leave=False
    )
