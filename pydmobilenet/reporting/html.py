"""Results as one web page that needs nothing but itself: tables, plots, confusions, and the worst mistakes as pictures.

No script, and nothing from elsewhere: the page's own policy forbids both. Whatever comes from data is printable, and
the template, `report.html.j2`, escapes it.
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
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from .. import plots, provenance
from ..catalog import Record
from ..checkpoints import runs
from ..data import Dataset
from ..errors import UnusableError, UserError
from ..text import printable
from ..training.checkpoint import read_history
from ..validation import Result
from .classes import Details, details, headline, with_classes
from .tables import Table, table, write

PUBLISHED = "PydMobileNet: published and measured"
TRAINED = "PydMobileNet: networks trained with this project"
SHADES = 5  # of the cells of a matrix; the style has a colour for each


class Network(NamedTuple):
    """What the page tells of the network in the table's row `place`. Of a run, also its `curves` as markup, and the
    `command` that began it.
    """

    place: int
    result: Result
    checkpoint: str
    details: Details
    curves: list[str]
    command: str


class Section(NamedTuple):
    """The part of the page on one data set. `headline` tells the error of the one run that it is about, if it is.
    `pictures` are the images that some network mistakes, as PNG.
    """

    anchor: str
    table: Table
    headline: str
    results: Sequence[Result]
    figures: list[str]
    networks: list[Network]
    pictures: dict[int, str]


class Report:
    """The tables of a validation in a directory, and the page, written anew after each data set.

    Raises UnusableError where the directory cannot be made or written to.
    """

    def __init__(self, directory: Path):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnusableError(f"cannot make the directory {directory}: {error.strerror}") from None
        if not os.access(directory, os.W_OK):
            raise UnusableError(f"cannot write to the directory {directory}")
        self.directory = directory
        self.texts: list[str] = []
        self.sections: list[Section] = []
        self.results: list[Result] = []

    def add(self, dataset: Dataset | None, results: Sequence[Result]) -> None:
        """Write what has been found on one more data set."""
        self.texts.append(with_classes(dataset, results, origins=True))
        self.sections.append(section(dataset, results, len(self.sections)))
        self.results += results
        write(self.directory, self.texts, self.results, page(self.sections, self.results))


def page(sections: Sequence[Section], results: Sequence[Result]) -> str:
    """The whole page of some data sets' sections; `results` are those of all of them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        alone=_alone, breakable=_breakable, references=_references, shade=_shade, strong=_strong, zip=zip
    )
    template = environment.get_template("report.html.j2")
    title = _title(sections, results)
    verdicts = Counter(result.verdict for result in results)
    context = {"title": title, "published": title == PUBLISHED, "command": printable(provenance.command())}
    return template.render(sections=sections, verdicts=verdicts, **context).lstrip()


def _title(sections: Sequence[Section], results: Sequence[Result]) -> str:
    """What the page is about: the tables, or what was trained with this project."""
    if any(result.record.published for result in results):
        return PUBLISHED
    if not all(result.record.run for result in results):
        return TRAINED
    return f"PydMobileNet: {f'{len(results)} runs' if len(results) > 1 else sections[0].table.title}"


def section(dataset: Dataset | None, results: Sequence[Result], number: int) -> Section:
    """The part of the page on one data set; the `number` tells its anchors from those of the other sections."""
    content = table(dataset, results)
    figures = plots.costs(results, content.title) if results[0].record.published else []
    networks: list[Network] = []
    pictures: dict[int, str] = {}
    if dataset is not None:
        networks = [_network(dataset, result, place) for place, result in enumerate(results) if result.answers]
        shown = sorted({mistake.place for network in networks for mistake in network.details.mistakes})
        pictures = {index: _png(dataset.images[index]) for index in shown}
    line = headline(results[0]) if len(results) == 1 else ""
    return Section(f"s{number}", content, line, results, figures, networks, pictures)


def _network(dataset: Dataset, result: Result, place: int) -> Network:
    record = result.record
    assert result.answers is not None
    return Network(
        place,
        result,
        "" if record.published else printable(f", {record.place}"),
        details(dataset, result.answers),
        _curves(record),
        printable(runs.command(record)),
    )


def _curves(record: Record) -> list[str]:
    """A run's curves; none where its history cannot be read, as of a run of which someone has sent the best alone."""
    if record.run is None:
        return []
    try:
        return plots.curves(read_history(record.run))
    except UserError:
        return []


def _png(image: np.ndarray) -> str:
    """An image (3, H, W) uint8 as the address of a PNG that holds its own bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# The template's filters. What they take is escaped, what they give is markup.


def _alone(columns: Sequence[str]) -> list[str]:
    """The names of columns for where each stands alone: ``published``, say, with what was published."""
    names, subject = [], ""
    for name in columns:
        if name.endswith((", M", ", %")):
            subject = name[:-3]
        names.append(f"{subject}, {name}" if name in ("published", "recorded") else name)
    return names


def _shade(count: int, images: int) -> int:
    """A cell's shade grows with the root of its share of the class's images, so that the few that are wrong show."""
    return math.ceil(SHADES * math.sqrt(count / max(1, images)))


def _breakable(name: str) -> Markup:
    """A class's name, which may break at its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _references(verdict: str, anchor: str) -> Markup:
    """A verdict whose number of a reason leads to the reason."""
    return Markup(re.sub(r"\[(\d+)\]$", rf'<a href="#{anchor}r\1">[\1]</a>', str(escape(verdict))))


def _strong(note: str) -> Markup:
    """A note of the Markdown table, with what is strong there strong here."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(note))))
