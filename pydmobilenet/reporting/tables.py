"""Results as tables: Markdown for people, CSV and JSON for programs. The web page has a module of its own, `html`."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from .. import catalog, files, network
from ..catalog import Record
from ..checkpoints import Checkpoint, runs, weights
from ..data import Dataset, get_task
from ..errors import UserError
from ..text import encodable, printable
from ..validation import TOLERANCE, Result

FILES = ("validation.md", "validation.csv", "validation.json", "report.html")


class Table(NamedTuple):
    """The table of one data set, its cells as text, and the paragraphs below it, whose ``**`` mark what is strong;
    `origins` are what runs tell of where they come from. All of it is printable.

    The verdict of a row that was not evaluated ends with the number of its reason, counted from 1, in brackets.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    reasons: list[str]
    origins: list[str]

    @property
    def alignment(self) -> list[str]:
        """``left`` or ``right``, of each column."""
        return ["left" if name in ("model", "checkpoint", "verdict") else "right" for name in self.columns]

    @property
    def grid(self) -> str:
        """The table itself, in Markdown."""
        return grid(self.rows, self.columns, self.alignment)


def table(dataset: Dataset | None, results: Sequence[Result], without: int = 0) -> Table:
    """The table of one data set, with a heading, and below it what a reader has to know; `without` so many of the three
    groups of columns that are needed least.
    """
    task = results[0].record.task or get_task(results[0].record.dataset)
    reasons, numbers = _reasons(results)
    caveats = [f"{result.record.model}: {result.record.note}." for result in results if result.record.note]
    notes = [note for note in (_judgement(dataset, results), task.note, *caveats) if note]
    if any(result.record.flops_m for result in results):
        notes.append(
            "The published multiply-adds lie 0.2 to 14 % below the exact count of the convolutions and the dense layer."
        )
    several = len(results) > 1
    origins = [
        f"{result.record.place + ', ' if several else ''}{name}: {text}"
        for result in results
        for name, text in runs.origin(result.record)
    ]
    columns = [(name, cells) for rank, name, cells in _columns(results, numbers) if rank > without]
    return Table(
        printable(_title(task.title, results)),
        [name for name, _ in columns],
        [list(row) for row in zip(*(cells for _, cells in columns))],
        notes,
        *(list(map(printable, texts)) for texts in (reasons, origins)),
    )


def _title(data: str, results: Sequence[Result]) -> str:
    """What a table is of: a data set, or the one network that was trained on it."""
    if results[0].record.published:
        return data
    if len(results) == 1 and results[0].record.run:
        return f"{results[0].record.model} on {data}"
    return f"{data}, trained with this project"


def _reasons(results: Sequence[Result]) -> tuple[list[str], list[int]]:
    """Why rows were not evaluated, each reason once, and the number of each row's own, from 1 on; 0 for none.

    Reasons that differ in the name of the row's checkpoint alone are one, which lists these names.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.reason:
            groups.setdefault(result.reason.replace(_file(result), "*"), []).append(result)
    texts = []
    for general, (first, *others) in groups.items():
        files = ", ".join(map(_file, others)) if general != first.reason else ""
        texts.append(first.reason + (f"; the same of {files}" if files else ""))
    order = list(groups)
    return texts, [
        order.index(result.reason.replace(_file(result), "*")) + 1 if result.reason else 0 for result in results
    ]


def _file(result: Result) -> str:
    """The name of a row's checkpoint; what no reason has, where there is none."""
    return result.record.filename or "\0"


def markdown(
    dataset: Dataset | None, results: Sequence[Result], width: int | None = None, origins: bool = False
) -> str:
    """The table of one data set in Markdown; with its least needed columns left out, if need be, to fit a `width`. With
    `origins`, what runs tell of where they come from stands below.
    """
    content = table(dataset, results)
    for without in range(4):
        lines = table(dataset, results, without).grid
        if width is None or len(lines.partition("\n")[0]) <= width:
            break
    numbered = [f"[{number}] {reason}" for number, reason in enumerate(content.reasons, 1)]
    told = ["\n".join(f"- {text}" for text in content.origins)] if origins and content.origins else []
    return "\n\n".join([f"## {content.title}", lines, *content.notes, *numbered, *told]) + "\n"


def summary(results: Sequence[Result]) -> str:
    """How many rows of one data set have which verdict, on a line, and each row that differs on one of its own."""
    verdicts = Counter(result.verdict for result in results)
    lines = [f"{table(None, results).title}: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.items())}"]
    lines += [f"{result.record.model}: {_difference(result)}: {result.verdict}" for result in results if result.differs]
    return "\n".join(lines)


def _difference(result: Result) -> str:
    """What a row that differs has, and what was expected."""
    record, count = result.record, result.complexity
    if count and not result.counts_right:
        found = f"{count.parameters:,} parameters and {count.multiply_adds:,} multiply-adds"
        if record.exact:
            return f"{found}, expected {record.exact.parameters:,} and {record.exact.multiply_adds:,}"
        return f"{found}, expected {record.params_m:g} M parameters"
    if record.top5_error is None:
        return f"{result.error:.2f} %, expected {record.top1_error:.2f} %"
    return (
        f"{result.error:.2f} %, top-5 {result.top5_error:.2f} %, "
        f"expected {record.top1_error:.2f} % and {record.top5_error:.2f} %"
    )


def grid(rows: Sequence[Sequence[str]], columns: Sequence[str], alignment: Sequence[str]) -> str:
    """A table in Markdown. Its cells stand as they are: a figure keeps its digits."""
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True, colalign=alignment)


def _judgement(dataset: Dataset | None, results: Sequence[Result]) -> str:
    """Which images were answered, and what the verdicts mean."""
    counts = next((result.counts for result in results if result.counts), None)
    if dataset is None or counts is None:
        return ""
    images = f"{counts.images:,} of {len(dataset):,} images from {printable(dataset.source)}"
    if results[0].record.run:
        kind = {"val": "validation", "test": "test"}.get(dataset.split, "")
        if not dataset.official:
            images += dataset.doubt and f" ({dataset.doubt})"
            return f"Measured on {images}. **They are not those that the run has recorded**: nothing is judged."
        some = "" if counts.images == len(dataset) else "the first "
        return f"Measured on {some}{images}, the run's own {kind} images; a match is within {TOLERANCE} points."
    if not dataset.official:
        return (
            f"Measured on {images}. **These are not the official test images**"
            f"{dataset.doubt and f' ({dataset.doubt})'}: the interval (95 %, Wilson) informs, nothing is judged."
        )
    if counts.images < len(dataset):
        return f"Measured on the first {images}: the interval (95 %, Wilson) informs, nothing is judged."
    kind = "a test set of the official size" if dataset.task.sized else "the official test set"
    return f"Measured on {kind}, {images}; a match is within {TOLERANCE} points."


def _columns(results: Sequence[Result], reasons: Sequence[int]) -> Iterator[tuple[int, str, list[str]]]:
    """The rank, from 1 for what is needed least, the name and the cells of each column; a row has the number of its
    reason, or 0.
    """
    first = results[0].record
    records, expected = [result.record for result in results], "published" if first.published else "recorded"
    counted = [result.complexity for result in results]
    yield 4, "model", [record.model for record in records]
    if not first.published:
        yield 1, "checkpoint", [printable(record.place) for record in records]
    yield 1, "params, M", [f"{count.parameters / 1e6:.6f}" if count else "" for count in counted]
    if first.published:
        yield 1, expected, [f"{n:.{3 if n < 1 else 2}f}" if (n := record.params_m) else "" for record in records]
    yield 1, "mult-adds, M", [f"{count.multiply_adds / 1e6:.2f}" if count else "" for count in counted]
    if first.published:
        yield 1, expected, [f"{record.flops_m:g}" if record.flops_m else "" for record in records]
    yield 4, "error, %", [f"{result.error:.2f}" if result.counts else "" for result in results]
    if any(result.counts and not _is_judged_alone(result) for result in results):
        cells = ["{:.2f} to {:.2f}".format(*result.interval) if result.counts else "" for result in results]
        yield 2, "95 % interval", cells
    yield 4, expected, ["" if record.top1_error is None else f"{record.top1_error:.2f}" for record in records]
    if first.top5_error is not None:
        yield 4, "top-5, %", [f"{result.top5_error:.2f}" if result.counts else "" for result in results]
        yield 4, expected, [f"{record.top5_error:.2f}" for record in records]
    differences = [result.differences if result.counts else () for result in results]
    yield 3, "difference", [" / ".join(f"{points:+.2f}" for points in each) for each in differences]
    verdicts = [result.verdict + (f" [{reason}]" if reason else "") for result, reason in zip(results, reasons)]
    yield 4, "verdict", verdicts


def _is_judged_alone(result: Result) -> bool:
    """Return whether the verdict says all: a run's own images are few, and other rows are not judged."""
    return result.complete and result.record.top1_error is not None and not result.record.run


def to_dict(result: Result) -> dict[str, object]:
    """A result as flat fields, for CSV and JSON: errors in %, published parameters and multiply-adds in millions."""
    record: Record = result.record
    counts, count = result.counts, result.complexity
    low, high = result.interval if counts else (None, None)
    return {
        "model": record.model,
        "dataset": record.dataset,
        "parameters": count and count.parameters,
        "published_parameters_m": record.params_m,
        "multiply_adds": count and count.multiply_adds,
        "published_multiply_adds_m": record.flops_m,
        "images": counts.images if counts else 0,
        "wrong": counts and counts.wrong,
        "top1_error": result.error if counts else None,
        "published_top1_error": record.top1_error if record.published else None,
        "recorded_top1_error": None if record.published else record.top1_error,
        "interval_low": low,
        "interval_high": high,
        "top5_error": result.top5_error if counts else None,
        "published_top5_error": record.top5_error,
        "complete": result.complete,
        "verdict": result.verdict,
        "reason": result.reason,
        "origin": "; ".join(f"{name}: {text}" for name, text in runs.origin(record)),
    }


def write(directory: Path, tables: Sequence[str], results: Sequence[Result], page: str) -> None:
    """Write the tables as Markdown, the results as CSV and JSON, and the web page; each file is put in place whole.

    Names are exact in the JSON, and in the CSV too, but for the bytes of those that are no UTF-8; in the Markdown and
    on the page they are printable.
    """
    rows, sheet = [to_dict(result) for result in results], io.StringIO()
    writer = csv.DictWriter(sheet, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    contents = ("\n".join(tables), encodable(sheet.getvalue()), json.dumps(rows, indent=1) + "\n", page)
    for name, text in zip(FILES, contents):
        files.write(directory / name, text)


def zoo_table(records: Sequence[Record], root: Path | None = None, width: int | None = None) -> str:
    """A row for each record: exact parameters and multiply-adds, published or recorded error, and where its weights are
    on this machine; only whether, if the rows are to fit a `width`. Where the exact counts were not published, the
    published ones stand, with fewer digits.
    """
    rows = []
    for record in records:
        exact = record.exact or (
            None if record.published else catalog.describe(record.model, record.dataset).complexity()
        )
        params = f"{exact.parameters / 1e6:.3f}" if exact else f"{record.params_m:g}"
        flops = f"{exact.multiply_adds / 1e6:.1f}" if exact else ""
        top5 = f" (top-5 {record.top5_error:.2f})" if record.top5_error is not None else ""
        rows.append(
            [record.model, record.dataset, params, flops, f"{record.top1_error:.2f}{top5}", _place(record, root)]
        )
    columns = ["model", "data set", "params, M", "mult-adds, M", "error, %", "weights here"]
    alignment = ["left", "left", "right", "right", "left", "left"]
    text = grid(rows, columns, alignment)
    if width is None or len(text.partition("\n")[0]) <= width:
        return text
    rows = [[*cells, "yes" if place else ""] for *cells, place in rows]
    return grid(rows, [*columns[:-1], "here"], alignment)


def layer_table(described: network.Network, image: tuple[int, int, int]) -> str:
    """A network, layer by layer: names as in the checkpoints, output for one image of a shape (3, H, W), parameters,
    multiply-adds.
    """
    shapes = described.shapes(image)
    rows = [
        [
            layer.name if layer.parameters else "",
            layer.operator,
            "x".join(map(str, shapes[layer.name])),
            _number(network.count(layer)),
            _number(layer.multiply_adds(shapes[layer.name])),
        ]
        for layer in described.layers
    ]
    rows.append(["together", "", "", *map(_number, described.complexity(image))])
    columns = ["layer", "operator", "output", "params", "mult-adds"]
    alignment = ["left", "left", "left", "right", "right"]
    return grid(rows, columns, alignment)


def _place(record: Record, root: Path | None) -> str:
    """Where the weights of a record are, or what is wrong with them; nothing where they are not here."""
    try:
        found = record.locate() if isinstance(record, Checkpoint) else record.file and weights.find(record.file, root)
        return printable(os.path.relpath(found) if found and found.is_relative_to(Path.cwd()) else found or "")
    except UserError as error:
        return printable(f"({error})")


def _number(value: int) -> str:
    return f"{value:,}" if value else ""
