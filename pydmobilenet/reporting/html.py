"""Results as one self-contained web page: tables, plots, confusions, and the worst mistakes as pictures.

It has no scripts and loads nothing; its own policy forbids both. The template, `report.html.j2`, escapes all data.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from .. import answers, plots, provenance
from ..catalog import Record
from ..checkpoints import runs
from ..data import Dataset
from ..errors import UnusableError, UserError
from ..text import printable
from ..training.checkpoint import read_history
from ..validation import Result
from .classes import Details, details, headline, with_classes
from .tables import Column, check, table, write

PUBLISHED = "PydMobileNet: published and measured"
TRAINED = "PydMobileNet: networks trained with this project"
SHADES = 5  # of the cells of a matrix; report.css has a colour for each


class Section:
    """The part of the page about one data set; `number` makes its anchors unique.

    `details` and `curves` are of the networks with predictions, by row of the table; `pictures` are the mistaken
    images as PNG, by index.
    """

    def __init__(self, dataset: Dataset | None, results: Sequence[Result], number: int):
        self.anchor = f"s{number}"
        self.results = results
        self.table = table(dataset, results)
        self.headline = headline(results[0]) if len(results) == 1 else ""
        self.figures = plots.costs(results, self.table.title) if results[0].record.published else []
        self.details: dict[int, Details] = {}
        self.pictures: dict[int, str] = {}
        if dataset is not None:
            self.details = {
                row: details(dataset, result.answers) for row, result in enumerate(results) if result.answers
            }
            indices = {mistake.image for report in self.details.values() for mistake in report.mistakes}
            self.pictures = {index: _png(dataset.images[index]) for index in sorted(indices)}
        self.curves = {row: _curves(results[row].record) for row in self.details}


class Report:
    """The tables of a validation in a directory, and the page, rewritten after each data set. Raises UnusableError."""

    def __init__(self, directory: Path):
        make_directory(directory)
        check(directory)
        self.directory = directory
        self.texts: list[str] = []
        self.sections: list[Section] = []
        self.results: list[Result] = []
        self.answers: list[str] = []

    def add(self, dataset: Dataset | None, results: Sequence[Result]) -> None:
        """Write the results of one more data set."""
        self.texts.append(with_classes(dataset, results, origins=True))
        self.sections.append(Section(dataset, results, len(self.sections)))
        self.results += results
        if dataset is not None:
            given = [(result.record, result.answers) for result in results if result.answers]
            self.answers.append(answers.to_csv(dataset, given))
        write(self.directory, self.texts, self.results, page(self.sections, self.results), self.answers)


def make_directory(directory: Path) -> None:
    """Make the directory of a report. Raises UnusableError if it cannot be made or written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableError(f"cannot make the directory {directory}: {error.strerror}") from None
    if not os.access(directory, os.W_OK):
        raise UnusableError(f"cannot write to the directory {directory}")


def page(sections: Sequence[Section], results: Sequence[Result]) -> str:
    """Render the page from its sections and the results of all of them."""
    title = _title(sections, results)
    return render(
        "report.html.j2",
        title=title,
        published=title == PUBLISHED,
        sections=sections,
        verdicts=Counter(result.verdict for result in results),
    )


def render(template: str, **values: Any) -> str:
    """Render a template with values, and with the command of this process."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        breakable=_breakable,
        first_command=runs.command,
        full_names=_full_names,
        printable=printable,
        references=_references,
        shade=_shade,
        strong=_strong,
        zip=zip,
    )
    return environment.get_template(template).render(command=printable(provenance.command()), **values).lstrip()


def _title(sections: Sequence[Section], results: Sequence[Result]) -> str:
    if any(result.record.published for result in results):
        return PUBLISHED
    if not all(result.record.run for result in results):
        return TRAINED
    return f"PydMobileNet: {f'{len(results)} runs' if len(results) > 1 else sections[0].table.title}"


def _curves(record: Record) -> list[str]:
    """Draw a run's curves, if its history is there: someone may have sent the best parameters alone."""
    if record.run is None:
        return []
    try:
        return plots.curves(read_history(record.run))
    except UserError:
        return []


def _png(image: np.ndarray) -> str:
    """Encode an image (3, H, W) uint8 as a PNG in a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# The template's filters. Their arguments are escaped, their results are markup.


def _full_names(columns: Sequence[Column]) -> list[str]:
    """Name columns for use without their neighbours: ``error, published`` instead of ``published``."""
    names, subject = [], ""
    for name in (column.name for column in columns):
        if name.endswith((", M", ", %")):
            subject = name[:-3]
        names.append(f"{subject}, {name}" if name in ("published", "recorded") else name)
    return names


def _shade(count: int, images: int) -> int:
    """Return a cell's shade, by the root of its fraction of the class, to show the few wrong ones."""
    return math.ceil(SHADES * math.sqrt(count / max(1, images)))


def _breakable(name: str) -> Markup:
    """Let a class's name break at its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _references(verdict: str, anchor: str) -> Markup:
    """Link the number in a verdict to its reason."""
    return Markup(re.sub(r"\[(\d+)\]$", rf'<a href="#{anchor}r\1">[\1]</a>', str(escape(verdict))))


def _strong(note: str) -> Markup:
    """Convert Markdown's strong text to HTML."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(note))))
