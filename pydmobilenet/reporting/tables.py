"""Results as Markdown, CSV and JSON, and the models and their layers as tables."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from .. import answers, catalog, files, huggingface, network
from ..catalog import Record
from ..checkpoints import Checkpoint, runs, weights
from ..data import Dataset, get_task
from ..errors import UnusableError, UserError
from ..exported import Exported
from ..text import encodable, printable
from ..validation import TOLERANCE, Result

FILES = ("validation.md", "validation.csv", "validation.json", "report.html", "answers.csv", "results.csv")
# As in timm's results-*.csv, errors in %, parameters in millions.
TIMM = ("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation")
RESULTS = (*TIMM, "dataset", "checkpoint")
MIRROR = "mirror: the error of the mean softmax of each image and its mirror image, which is never judged."

LEFT = ("model", "checkpoint", "verdict", "run", "runs", "data", "engine", "seeds")  # columns of text


class Column(NamedTuple):
    """A column with a cell for each row. Narrow tables omit columns of `rank` 1 first, of 4 never."""

    rank: int
    name: str
    cells: list[str]

    @property
    def side(self) -> str:
        """The alignment, ``left`` or ``right``."""
        return "left" if self.name in LEFT else "right"


class Table(NamedTuple):
    """The table of one data set as printable text; in `notes`, ``**`` surrounds strong text.

    The verdict of a row that was not evaluated ends with the number of its reason, from 1, in brackets. `changes` are
    a line for each network that was compared with earlier answers.
    """

    title: str
    columns: list[Column]
    notes: list[str]
    reasons: list[str]
    origins: list[str]
    changes: Sequence[str] = ()

    def grid(self, width: int | None = None) -> str:
        """Format the table in Markdown, without the columns of low rank if it would be wider than `width`."""
        text = ""
        for least in range(1, 5):
            columns = [column for column in self.columns if column.rank >= least]
            rows = list(zip(*([cell.replace("|", "\\|") for cell in column.cells] for column in columns)))
            text = grid(rows, [column.name for column in columns], [column.side for column in columns])
            if width is None or len(text.partition("\n")[0]) <= width:
                break
        return text


def table(dataset: Dataset | None, results: Sequence[Result]) -> Table:
    """Build the table of one data set, with all columns."""
    task = results[0].record.task or get_task(results[0].record.dataset)
    reasons, numbers = _reasons(results)
    caveats = [f"{result.record.model}: {result.record.note}." for result in results if result.record.note]
    notes = [note for note in (_judgement(dataset, results), task.note, *caveats) if note]
    if any(result.record.flops_m for result in results):
        notes.append(
            "The published multiply-adds lie 0.2 to 14 % below the exact count of the convolutions and the dense layer."
        )
    if any(result.mirror_error is not None for result in results):
        notes.append(MIRROR)
    lines = changes(results)
    if lines:
        notes.append("Image by image against earlier answers, p by McNemar's exact test:")
    origins = [
        printable(f"{result.record.short_path + ', ' if len(results) > 1 else ''}{name}: {text}")
        for result in results
        for name, text in runs.origin(result.record)
    ]
    columns = list(_columns(results, numbers))
    return Table(_title(results), columns, notes, list(map(printable, reasons)), origins, lines)


def changes(results: Sequence[Result]) -> list[str]:
    """Return a line for each network on its difference from earlier answers; none if there are none."""
    if not any(result.change for result in results):
        return []
    files = any(isinstance(result.record, Exported) for result in results)  # which are compared with their networks
    return [printable(_change(result)) for result in results if result.answers and (result.change or not files)]


def _change(result: Result) -> str:
    name, change = answers.name(result.record), result.change
    if change is None:
        return f"{name}: not in the file of earlier answers"
    return f"{name}: {change}" if change.earlier == name else f"{name}, before {change.earlier}: {change}"


def _title(results: Sequence[Result]) -> str:
    record = results[0].record
    data = printable((record.task or get_task(record.dataset)).title)
    if record.published:
        return data
    return f"{record.model} on {data}" if len(results) == 1 and record.run else f"{data}, trained with this project"


def _reasons(results: Sequence[Result]) -> tuple[list[str], list[int]]:
    """Return why rows were not evaluated, and for each row the number of its reason from 1, or 0.

    Reasons with different file names and else the same words are one, followed by the other names.
    """
    names: dict[str, list[str]] = {}  # by reason without the name
    numbers = []
    for result in results:
        name = result.record.filename or "\0"
        general = result.reason.replace(name, "\0")
        if general:
            names.setdefault(general, []).append(name)
        numbers.append(list(names).index(general) + 1 if general else 0)
    texts = []
    for general, (first, *others) in names.items():
        same = f"; the same of {', '.join(others)}" if others and "\0" in general else ""
        texts.append(general.replace("\0", first) + same)
    return texts, numbers


def markdown(
    dataset: Dataset | None, results: Sequence[Result], width: int | None = None, origins: bool = False
) -> str:
    """Format the table of one data set in Markdown, no wider than `width` if possible, with its notes below."""
    content = table(dataset, results)
    reasons = [f"[{number}] {reason}" for number, reason in enumerate(content.reasons, 1)]
    lists = [
        "\n".join(f"- {text}" for text in lines) for lines in (content.changes, content.origins if origins else ())
    ]
    compared, listed = ([text] if text else [] for text in lists)
    parts = [f"## {content.title}", content.grid(width), *content.notes, *compared, *reasons, *listed]
    return "\n\n".join(parts) + "\n"


def summary(results: Sequence[Result]) -> str:
    """Count the verdicts of one data set on a line; add lines for rows that differ, mirror images and `changes`."""
    verdicts = Counter(result.verdict for result in results)
    lines = [f"{_title(results)}: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.items())}"]
    lines += [f"{result.record.model}: {_difference(result)}: {result.verdict}" for result in results if result.differs]
    lines += [
        f"{result.record.model}: {result.mirror_error:.2f} % with mirror images, {result.error:.2f} % without"
        for result in results
        if result.mirror_error is not None
    ]
    return "\n".join(lines + changes(results))


def _difference(result: Result) -> str:
    record, count = result.record, result.complexity
    if count and not result.counts_right:
        expected = (
            f"{record.exact.parameters:,} and {record.exact.multiply_adds:,}"
            if record.exact
            else f"{record.params_m:g} M parameters"
        )
        return f"{count.parameters:,} parameters and {count.multiply_adds:,} multiply-adds, expected {expected}"
    measured, expected = f"{result.error:.2f} %", f"{record.top1_error:.2f} %"
    if record.top5_error is not None:
        measured, expected = f"{measured}, top-5 {result.top5_error:.2f} %", f"{expected} and {record.top5_error:.2f} %"
    return f"{measured}, expected {expected}"


def grid(rows: Sequence[Sequence[str]], columns: Sequence[str], alignment: Sequence[str]) -> str:
    """Format a table in Markdown, cells unchanged: a figure keeps its digits."""
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True, colalign=alignment)


def _judgement(dataset: Dataset | None, results: Sequence[Result]) -> str:
    """Say which images were evaluated, and how errors are judged."""
    counts = next((result.counts for result in results if result.counts), None)
    if dataset is None or counts is None:
        return ""
    images = f"{counts.images:,} of {len(dataset):,} images from {printable(dataset.source)}"
    why = dataset.doubt and f" ({dataset.doubt})"
    if results[0].record.run:
        kind = {"val": "validation", "test": "test"}.get(dataset.split, "")
        if not dataset.official:
            return f"Measured on {images}{why}. **These are not the images that the run recorded**: nothing is judged."
        some = "" if counts.images == len(dataset) else "the first "
        return f"Measured on {some}{images}, the run's own {kind} images; a match is within {TOLERANCE} points."
    unjudged = "the interval (95 %, Wilson) informs, nothing is judged."
    if not dataset.official:
        return f"Measured on {images}. **These are not the official test images**{why}: {unjudged}"
    if counts.images < len(dataset):
        return f"Measured on the first {images}: {unjudged}"
    kind = "a test set of the official size" if dataset.task.sized else "the official test set"
    return f"Measured on {kind}, {images}; a match is within {TOLERANCE} points."


def _columns(results: Sequence[Result], reasons: Sequence[int]) -> Iterator[Column]:
    records, counted = [result.record for result in results], [result.complexity for result in results]
    published = records[0].published
    expected = "published" if published else "recorded"
    yield Column(4, "model", [record.model for record in records])
    if not published:
        yield Column(1, "checkpoint", [printable(record.short_path) for record in records])
    yield Column(1, "params, M", [f"{count.parameters / 1e6:.6f}" if count else "" for count in counted])
    if published:
        cells = [f"{n:.{3 if n < 1 else 2}f}" if (n := record.params_m) else "" for record in records]
        yield Column(1, expected, cells)
    yield Column(1, "mult-adds, M", [f"{count.multiply_adds / 1e6:.2f}" if count else "" for count in counted])
    if published:
        yield Column(1, expected, [f"{record.flops_m:g}" if record.flops_m else "" for record in records])
    yield Column(4, "error, %", [f"{result.error:.2f}" if result.counts else "" for result in results])
    if any(result.counts and not _is_judged_alone(result) for result in results):
        cells = ["{:.2f} to {:.2f}".format(*result.interval) if result.counts else "" for result in results]
        yield Column(2, "95 % interval", cells)
    cells = ["" if record.top1_error is None else f"{record.top1_error:.2f}" for record in records]
    yield Column(4, expected, cells)
    if records[0].top5_error is not None:
        yield Column(4, "top-5, %", [f"{result.top5_error:.2f}" if result.counts else "" for result in results])
        yield Column(4, expected, [f"{record.top5_error:.2f}" for record in records])
    differences = [result.differences if result.counts else () for result in results]
    yield Column(3, "difference", [" / ".join(f"{points:+.2f}" for points in row) for row in differences])
    mirrored = [result.mirror_error for result in results]
    if any(error is not None for error in mirrored):
        yield Column(4, "mirror, %", ["" if error is None else f"{error:.2f}" for error in mirrored])
    cells = [result.verdict + (f" [{reason}]" if reason else "") for result, reason in zip(results, reasons)]
    yield Column(4, "verdict", cells)


def _is_judged_alone(result: Result) -> bool:
    """Return whether the verdict suffices. A run's own images are few, and other rows are not judged."""
    return result.complete and result.record.top1_error is not None and not result.record.run


def to_dict(result: Result) -> dict[str, object]:
    """Return a result as flat fields for CSV and JSON: errors in %, published counts in millions."""
    record, counts, count, change = result.record, result.counts, result.complexity, result.change
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
        "mirror_error": result.mirror_error,
        "changed": change and change.changed,
        "right_to_wrong": change and change.lost,
        "wrong_to_right": change and change.gained,
        "mcnemar_p": change and change.p,
    }


def timm_results(results: Sequence[Result]) -> list[dict[str, object]]:
    """Return the evaluated results with timm's columns; the parameters keep all digits, as these networks are small.

    timm has a file for each data set and one checkpoint a model; the last two columns are these.
    """
    rows = []
    for result in results:
        if result.counts and result.complexity:
            record, errors = result.record, (result.error, result.top5_error)
            task = record.task or get_task(record.dataset)
            config = huggingface.pretrained_cfg(record.network, task)
            scores = [round(value, 4) for error in errors for value in (100 - error, error)]
            image = (task.image_size, config["crop_pct"], config["interpolation"])
            origin = (record.dataset, record.short_path)
            values = (record.model, *scores, result.complexity.parameters / 1e6, *image, *origin)
            rows.append(dict(zip(RESULTS, values)))
    return rows


def check(directory: Path) -> None:
    """Raise UnusableError if `write` would overwrite a file that is not a report's."""
    for name, columns in (("answers.csv", answers.COLUMNS), ("results.csv", RESULTS)):
        # To open a directory is a PermissionError on Windows; the writing says why it fails.
        with suppress(FileNotFoundError, IsADirectoryError, PermissionError), open(directory / name, "rb") as file:
            if file.readline(1000).rstrip().removeprefix(b"\xef\xbb\xbf") != ",".join(columns).encode():
                raise UnusableError(f"{directory / name} is not of a report: choose another directory, or move it away")


def write(
    directory: Path, tables: Sequence[str], results: Sequence[Result], page: str, answers_csv: Iterable[str] = ()
) -> None:
    """Write the tables as Markdown, the results as CSV and JSON, the web page, and the answers.

    The JSON keeps names exactly, the CSV too except for bytes beyond UTF-8; the others have printable names.
    """
    dicts = [to_dict(result) for result in results]
    contents = (
        "\n".join(tables),
        to_csv(list(dicts[0]), dicts),
        json.dumps(dicts, indent=1) + "\n",
        page,
        answers.HEADER + "".join(answers_csv),
        to_csv(RESULTS, timm_results(results)),
    )
    for name, text in zip(FILES, contents):
        files.write(directory / name, text)


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Format rows as CSV, with a header."""
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return encodable(sheet.getvalue())


def zoo_table(records: Sequence[Record], root: Path | None = None, width: int | None = None) -> str:
    """Format a row for each record, with the path of its weights on this machine, or only ``yes`` within a `width`.

    The few rows without exact counts have the published ones, with fewer digits.
    """
    rows = []
    for record in records:
        exact = record.exact or (
            None if record.published else catalog.describe(record.model, record.dataset).complexity()
        )
        params = f"{exact.parameters / 1e6:.3f}" if exact else f"{record.params_m:g}"
        flops = f"{exact.multiply_adds / 1e6:.1f}" if exact else ""
        top5 = f" (top-5 {record.top5_error:.2f})" if record.top5_error is not None else ""
        error = f"{record.top1_error:.2f}{top5}"
        rows.append([record.model, record.dataset, params, flops, error, _weights_path(record, root)])
    columns = ["model", "data set", "params, M", "mult-adds, M", "error, %", "weights here"]
    alignment = ["left", "left", "right", "right", "left", "left"]
    text = grid(rows, columns, alignment)
    if width is None or len(text.partition("\n")[0]) <= width:
        return text
    rows = [[*cells, "yes" if path else ""] for *cells, path in rows]
    return grid(rows, [*columns[:-1], "here"], alignment)


def _weights_path(record: Record, root: Path | None) -> str:
    """Return the path of a record's weights, or what is wrong with them; empty if they are not on this machine."""
    try:
        path = record.locate() if isinstance(record, Checkpoint) else record.file and weights.find(record.file, root)
        return printable(os.path.relpath(path) if path and path.is_relative_to(Path.cwd()) else path or "")
    except UserError as error:
        return printable(f"({error})")


def layer_table(described: network.Network, image: tuple[int, int, int]) -> str:
    """Format a row for each layer; outputs and multiply-adds are for an `image` (3, H, W)."""
    shapes = described.shapes(image)
    rows = []
    for layer in described.layers:
        shape = shapes[layer.name]
        counts = map(_number, (network.count(layer), layer.multiply_adds(shape)))
        rows.append([layer.name if layer.parameters else "", layer.operator, "x".join(map(str, shape)), *counts])
    rows.append(["together", "", "", *map(_number, described.complexity(image))])
    columns = ["layer", "operator", "output", "params", "mult-adds"]
    return grid(rows, columns, ["left", "left", "left", "right", "right"])


def _number(value: int) -> str:
    return f"{value:,}" if value else ""
