"""Results as one web page that needs nothing but itself: tables, plots, confusions, and the worst mistakes as pictures.

No script, and nothing from elsewhere: the page's own policy forbids both. Whatever comes from data is printable, and
escaped.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..data import Dataset, Task
from ..text import printable
from ..validation import NO_CLASS, Answers, Result
from . import plots
from .tables import Table, table

MATRIX = 20  # so many classes have a matrix; of more, the most frequent confusions are listed
CONFUSIONS = 15  # of which so many
MISTAKES = 12  # pictures for each network
SHADES = 5  # of the cells of a matrix; the style has a colour for each
CLASS = {"left": "", "right": ' class="number"'}  # of a cell, by its column's alignment
PAPER = "https://arxiv.org/abs/1811.07083"


class Section(NamedTuple):
    """The part of the page on one data set, with its anchor and its escaped title."""

    anchor: str
    title: str
    body: str


def page(sections: Sequence[Section], results: Sequence[Result]) -> str:
    """The whole page of some data sets' sections; `results` are those of all of them."""
    verdicts = Counter(result.verdict for result in results)
    summary = "".join(f"<li><b>{number}</b> {verdict}</li>" for verdict, number in verdicts.items())
    contents = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title, _ in sections)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>PydMobileNet: published and measured</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>PydMobileNet: published and measured</h1>
<p>Errors in %, parameters and multiply-adds in millions; the paper is <a href="{PAPER}">arXiv 1811.07083</a>.</p>
<ul class="summary">{summary}</ul>
<nav aria-label="Data sets"><ul>{contents}</ul></nav>
</header>
<main>
{"".join(section.body for section in sections)}</main>
</body>
</html>
"""


def section(dataset: Dataset | None, results: Sequence[Result], number: int) -> Section:
    """The part of the page on one data set; the `number` tells its anchors from those of the other sections."""
    anchor = f"s{number}"
    content = table(dataset, results)
    parts = [f'<section id="{anchor}"><h2>{escape(content.title)}</h2>', _results(content, results, anchor)]
    figures = [plots.figure(results, cost, content.title) for cost in plots.COSTS if results[0].record.published]
    if any(figures):
        parts += [f'<h3>Error and cost</h3>{plots.legend(results)}<div class="plots">', *figures, "</div>"]
    answered = [(place, result) for place, result in enumerate(results) if result.answers]
    if dataset is not None and answered:
        shown = {
            place: mistakes(dataset.labels[: len(result.answers.classes)], result.answers) for place, result in answered
        }
        parts += [
            "<h3>Network by network</h3>",
            _pictures(dataset, np.unique(np.concatenate([*shown.values()])), anchor),
        ]
        parts += [
            _network(dataset, result, shown[place], anchor, place, alone=len(answered) == 1)
            for place, result in answered
        ]
    return Section(anchor, escape(content.title), "\n".join([*parts, "</section>\n"]))


def confusion(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class (row) were taken for each class (column): (classes, classes + 1), of `labels` (N,)
    and `answers` (N,). The last column holds the answers that are none of the classes.
    """
    answers = np.minimum(answers.astype(np.int64), classes)
    counts = np.bincount(labels * (classes + 1) + answers, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def mistakes(labels: np.ndarray, answers: Answers, number: int = MISTAKES) -> np.ndarray:
    """The places of the most confident wrong answers, at most so many, the most confident first."""
    wrong = np.flatnonzero(answers.classes != labels)
    return wrong[np.argsort(-answers.confidences[wrong], kind="stable")[:number]]


def _results(content: Table, results: Sequence[Result], anchor: str) -> str:
    """The table with its notes and reasons; a model's name leads to its confusions, a reason's number to the reason.

    On a narrow screen the style makes a card of each row: so a cell has the name of its column with it, and a role.
    """
    columns = [escape(name) for name in content.columns]
    sides = [CLASS[side] for side in content.alignment]
    head = "".join(f'<th role="columnheader" scope="col"{side}>{name}</th>' for side, name in zip(sides, columns))
    rows = []
    for place, (cells, result) in enumerate(zip(content.rows, results)):
        model, *others = map(escape, cells)
        if result.answers:
            model = f'<a href="#{anchor}n{place}">{model}</a>'
        others[-1] = re.sub(r"\[(\d+)\]$", rf'<a href="#{anchor}r\1">[\1]</a>', others[-1])
        cells = "".join(
            f'<td role="cell" data-column="{name}"{side}>{cell}</td>'
            for side, name, cell in zip(sides[1:], _alone(columns)[1:], others)
        )
        kind = re.sub(r"\W+", "-", result.verdict)
        rows.append(f'<tr role="row" class="{kind}"><th role="rowheader" scope="row">{model}</th>{cells}</tr>\n')
    caption = f"{escape(content.title)}: what is expected, and what was measured"
    notes = [f"<p>{_strong(note)}</p>\n" for note in content.notes]
    notes += [
        f'<p id="{anchor}r{number}">[{number}] {escape(reason)}</p>\n'
        for number, reason in enumerate(content.reasons, 1)
    ]
    notes += [f"<p>{escape(text)}</p>\n" for text in content.origins]
    body = f'<thead><tr role="row">{head}</tr></thead><tbody>\n{"".join(rows)}</tbody>'
    return f'{_scrolling("results", body, caption)}<div class="notes">\n{"".join(notes)}</div>'


def _alone(columns: Sequence[str]) -> list[str]:
    """The names of columns for where each stands alone: ``published``, say, with what was published."""
    names, subject = [], ""
    for name in columns:
        if name.endswith((", M", ", %")):
            subject = name[:-3]
        names.append(f"{subject}, {name}" if name in ("published", "recorded") else name)
    return names


def _strong(text: str) -> str:
    """A note of the Markdown table, escaped, with what is strong there strong here."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))


def _scrolling(kind: str, body: str, caption: str) -> str:
    """A table that scrolls by itself where the screen is too narrow, by the keyboard too; the caption is escaped."""
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table role="table" class="{kind}">'
        f"<caption><span>{caption}</span></caption>{body}</table></div>\n"
    )


def _pictures(dataset: Dataset, places: np.ndarray, anchor: str) -> str:
    """The images at some places, each once however many networks mistake it; `_mistake` refers to them."""
    images = "".join(
        f'<image id="{anchor}i{place}" width="32" height="32" href="{_png(dataset.images[place])}"/>\n'
        for place in places
    )
    return f'<svg class="store" aria-hidden="true" width="0" height="0"><defs>\n{images}</defs></svg>'


def _png(image: np.ndarray) -> str:
    """An image (3, H, W) uint8 as the address of a PNG that holds its own bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _network(dataset: Dataset, result: Result, shown: np.ndarray, anchor: str, place: int, alone: bool) -> str:
    """The confusions of one network and the mistakes `shown`, folded up unless it is `alone`."""
    record, counts, task = result.record, result.counts, dataset.task
    checkpoint = "" if record.published else printable(f", {record.file.parent.name}/{record.file.name}")
    classes = len(task.classes) or task.outputs
    matrix = confusion(dataset.labels[: counts.images], result.answers.classes, classes)
    parts = [
        f"<details{' open' if alone else ''}><summary><b>{record.model}</b> "
        f"<span>{result.error:.2f} %: {counts.wrong:,} of {counts.images:,} wrong{escape(checkpoint)}</span></summary>",
        f'<div id="{anchor}n{place}">',
        "<div>",
        (_matrix if classes <= MATRIX else _confusions)(matrix, task, record.model),
    ]
    if len(shown):
        pictures = "".join(_mistake(dataset, result.answers, index, anchor) for index in shown)
        parts += ["</div><div><h4>Most confident mistakes</h4>", f'<ul class="mistakes">\n{pictures}</ul>']
    return "\n".join([*parts, "</div></div></details>"])


def _matrix(counts: np.ndarray, task: Task, name: str) -> str:
    """The confusion matrix as a table. A cell's shade grows with the root of its share of the class's images, so that
    the few that are wrong show.
    """
    columns = counts.shape[1] - (not counts[:, -1].any())  # none of the classes: a column only where it happened
    shares = np.sqrt(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)))
    shades = np.ceil(shares * SHADES).astype(int)
    head = "".join(
        f'<th scope="col"><span>{_label(task, column) if column < len(counts) else "none of these"}</span></th>'
        for column in range(columns)
    )
    rows = []
    for row, label in enumerate(_label(task, row) for row in range(len(counts))):
        cells = "".join(
            f'<td class="{"right" if row == column else "wrong"}{shades[row, column]}">{counts[row, column]}</td>'
            for column in range(columns)
        )
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>\n')
    caption = f"Confusions of {name}: images of the row's class that were taken for the column's"
    corner = '<td class="corner">is \\ taken for</td>'
    body = f"<thead><tr>{corner}{head}</tr></thead><tbody>\n{''.join(rows)}</tbody>"
    return _scrolling("matrix", body, caption)


def _confusions(counts: np.ndarray, task: Task, name: str) -> str:
    """The most frequent confusions of many classes, the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    rows = []
    for row, column in zip(*np.unravel_index(order, wrong.shape)):
        if wrong[row, column]:
            taken = _label(task, column) if column < len(counts) else "none of the classes"
            cells = f'<td>{taken}</td><td class="number">{wrong[row, column]} of {counts[row].sum()}</td>'
            rows.append(f'<tr><th scope="row">{_label(task, row)}</th>{cells}</tr>\n')
    caption = f"The most frequent confusions of {name}"
    head = '<th scope="col">class</th><th scope="col">taken for</th><th scope="col" class="number">images</th>'
    body = f"<thead><tr>{head}</tr></thead><tbody>\n{''.join(rows)}</tbody>"
    return _scrolling("confusions", body, caption)


def _mistake(dataset: Dataset, answers: Answers, index: int, anchor: str) -> str:
    """An image with its class, what it was taken for, and how confidently."""
    own = _label(dataset.task, dataset.labels[index])
    alt = own.replace("<wbr>", "")
    answer, confidence = _label(dataset.task, answers.classes[index]), 100 * answers.confidences[index]
    return (
        f'<li><figure><svg role="img" viewBox="0 0 32 32" aria-label="test image {index}, {alt}">'
        f'<use href="#{anchor}i{index}"/></svg><figcaption>is <b>{own}</b><br>taken for <b>{answer}</b><br>'
        f"{confidence:.1f} %, image {index}</figcaption></figure></li>\n"
    )


def _label(task: Task, number: int) -> str:
    """The name of a class, escaped; its number where it has no name. A long one may break at its underscores."""
    if number == NO_CLASS:
        return "no class (not a number)"
    return escape(printable(task.class_name(number))).replace("_", "_<wbr>")
