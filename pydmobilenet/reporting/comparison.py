"""Runs beside each other: tables, CSV, and a web page with their curves. Errors of other images stay apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from .. import catalog, files, plots
from ..checkpoints import runs
from ..errors import MissingFileError, UserError, nearest
from ..text import printable
from ..training import results
from ..training.history import OPTIMISM
from ..training.results import FIGURES, SPLITS, Figure, RunResult, Seeds
from . import html
from .tables import Column, Table, to_csv

FILES = ("comparison.md", "comparison.csv", "comparison.html")
CHOSEN_BY_VAL = "The validation images have chosen the best epoch, so its error leans optimistic."
APART = "The tables are of different images: an error of one says nothing beside an error of another."


class Comparison(list[RunResult]):
    """The results of runs, the lowest error first, in `groups` of the same images; `problems` say what is missing."""

    def __init__(self, groups: Sequence[Group], problems: Sequence[str]):
        super().__init__(result for group in groups for result in group.results)
        self.groups, self.problems = list(groups), list(problems)
        self.seeds = results.over_seeds(self)

    def __str__(self) -> str:
        return "\n".join([self.text(), *map(printable, self.problems)])

    def text(self, width: int | None = None) -> str:
        """Format the tables in Markdown, no wider than `width` if possible."""
        return (
            "\n\n".join(
                text for table in self.tables() for text in (f"## {table.title}", table.grid(width), *table.notes)
            )
            + "\n"
        )

    def tables(self) -> list[Table]:
        """Return a table for each group, and one of the means over seeds."""
        tables = [group.table() for group in self.groups]
        if sum(bool(group.split) for group in self.groups) > 1:
            tables[0].notes.append(f"**{APART}**")
        return [*tables, *([seeds_table(self.seeds)] if self.seeds else [])]

    def csv(self) -> str:
        """Format a row for each run, with every figure."""
        rows = list(map(to_dict, self))
        return to_csv(list(rows[0]), rows)

    def write(self, directory: Path) -> None:
        """Write the tables as Markdown and CSV, and the web page. Raises UnusableError."""
        html.make_directory(directory)
        sections = [Section(group, table) for group, table in zip(self.groups, self.tables())]
        seeds = seeds_table(self.seeds) if self.seeds else None
        title = f"PydMobileNet: {len(self)} runs beside each other"
        page = html.render("comparison.html.j2", title=title, sections=sections, seeds=seeds, problems=self.problems)
        for name, text in zip(FILES, (self.text(), self.csv(), page)):
            files.write(directory / name, text)


class Group:
    """Runs with errors of the same images, the lowest error first."""

    def __init__(self, results: Iterable[RunResult], digest: str = ""):
        self.results = sorted(results, key=lambda result: (result.error, result.parameters, str(result.directory)))
        self.first, self.digest = self.results[0], digest
        self.split = self.first.split

    @property
    def title(self) -> str:
        """The data set, and the kind and number of the images."""
        task = self.first.task
        size = f", {task.image_size}x{task.image_size}" if task.name.startswith("folder:") else ""
        if not self.split:
            return f"{task.title}{size}: no epoch is finished"
        number, _ = self.first.images.get(self.split, (0, ""))
        images = f" on {number:,} images" if number else ", images not recorded"
        return f"{task.title}{size}: {SPLITS[self.split]} error{images}{self.digest}"

    def table(self) -> Table:
        """Build the table, with the notes below it."""
        rows, marked = self.results, self.split == "test"
        columns = [
            Column(4, "run", [printable(row.directory) for row in rows]),
            Column(3, "model", [row.model for row in rows]),
            Column(2, "params, M", [f"{row.parameters / 1e6:.6f}" for row in rows]),
        ]
        if self.split:
            stars = ["*" if marked and row.optimistic else "" for row in rows]
            intervals = ["{:.2f} to {:.2f}".format(*row.interval) if row.interval else "" for row in rows]
            columns += [
                Column(4, "error, %", [f"{row.error:.2f}{star}" for row, star in zip(rows, stars)]),
                Column(2, "95 % interval", intervals),
            ]
        columns += [
            Column(3, "epochs", list(map(_epochs, rows))),
            Column(1, "time", [tqdm.format_interval(row.seconds) if row.seconds else "" for row in rows]),
        ]
        notes = []
        if self.split and any(row.optimistic for row in rows):
            notes.append(f"Marked by *: {OPTIMISM[0].lower()}{OPTIMISM[1:]}" if marked else CHOSEN_BY_VAL)
        return Table(printable(self.title), columns, notes, [], [])


def _epochs(result: RunResult) -> str:
    if result.finished and result.epochs >= result.planned:
        return str(result.epochs)
    return f"{result.epochs}/{result.planned}, {'stopped early' if result.finished else 'unfinished'}"


def _parents(group: Seeds) -> str:
    return ", ".join(dict.fromkeys(printable(result.directory.parent) for result in group.results))


def seeds_table(groups: Sequence[Seeds]) -> Table:
    """Build the table of means and standard deviations over seeds, each of its own images."""
    figures = [figure for figure in FIGURES if any(figure in group.spreads for group in groups)]
    firsts = [group.results[0] for group in groups]
    columns = [
        Column(3, "runs", list(map(_parents, groups))),
        Column(4, "model", [first.model for first in firsts]),
        Column(3, "data", [printable(first.task.title) for first in firsts]),
        Column(3, "engine", [first.engine for first in firsts]),
        Column(2, "seeds", [", ".join(str(row.seed) for row in group.results) for group in groups]),
        Column(4, "n", [str(len(group.results)) for group in groups]),
    ]
    for figure in figures:
        spreads = [group.spreads.get(figure) for group in groups]
        columns.append(Column(4, f"{figure}, %", [str(spread or "") for spread in spreads]))
    note = "Of finished runs that differ only by their seed. The standard deviation is by n - 1."
    return Table("Mean ± standard deviation over seeds", columns, [note], [], [])


def to_dict(result: RunResult) -> dict[str, object]:
    """Return a result as flat fields for CSV: errors in %, and which images they are of."""
    images, digest = result.images.get(result.split, ("", ""))
    low, high = result.interval or ("", "")
    return {
        "run": os.fspath(result.directory),
        "model": result.model,
        "dataset": result.task.name,
        "engine": result.engine,
        "seed": result.seed,
        "parameters": result.parameters,
        "error": result.error if result.split else "",
        "interval_low": low,
        "interval_high": high,
        "split": result.split,
        "images": images,
        "images_sha256": digest,
        "optimistic": result.optimistic,
        **{f"{epoch}_{split}_error": result.errors.get(Figure(epoch, split), "") for epoch, split in FIGURES},
        "epochs": result.epochs,
        "planned_epochs": result.planned,
        "finished": result.finished,
        "seconds": round(result.seconds, 3),
        "command": result.command,
    }


def compare(paths: Sequence[Path]) -> Comparison:
    """Read runs, and those inside of other directories. Raises MissingFileError without any run."""
    read: dict[str, RunResult] = {}
    problems: list[str] = []
    for path in paths:
        try:
            directories = find(path)
            for directory in directories:
                try:
                    read.setdefault(os.path.realpath(directory), results.read(directory))
                except UserError as error:
                    problems.append(str(error))
            if not directories:
                problems.append(f"{path} holds no run")
        except OSError as error:
            problems.append(f"cannot read {path}: {error.strerror}")
    if not read:
        raise MissingFileError("; ".join(problems) or "no run is given")
    return Comparison(_groups(list(read.values())), problems)


def find(path: Path) -> list[Path]:
    """Return a run itself, those of its seeds, or all inside of a directory."""
    if os.path.isfile(path / runs.METADATA):
        seeds = [runs.seed_directory(path, seed) for seed in runs.seeds(path)]
        return [directory for directory in seeds if directory.exists()] if seeds else [path]
    if not path.is_dir():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(None, f"no such directory{nearest(path.name, names)}")
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    return [run for child in inside if os.path.isfile(child / runs.METADATA) for run in find(child)]


def _groups(compared: Sequence[RunResult]) -> list[Group]:
    """Group runs by the images of their errors: test images first, runs without an epoch last."""
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    for result in compared:
        _, digest = result.images.get(result.split, (0, ""))
        same = digest or (result.task.name if not result.split else os.fspath(result.directory))
        groups.setdefault((result.split, same), []).append(result)
    order = ["test", "val", ""]
    made = [Group(members) for members in groups.values()]
    made.sort(key=lambda group: (order.index(group.split), group.title))
    titles = Counter(group.title for group in made)
    for group in made:
        if titles[group.title] > 1 and group.split:
            _, digest = group.first.images.get(group.split, (0, ""))
            group.digest = f" (SHA-256 {digest[:12]}…)"
    return made


class Section:
    """The part of the page about one group: its table, the line of each row in the picture of the curves, pictures."""

    def __init__(self, group: Group, table: Table):
        self.table, rows = table, group.results
        self.curves = plots.numbered([printable(row.directory) for row in rows], [row.history for row in rows])
        self.published = False
        self.figures: list[str] = []
        if not group.split:
            return
        splits = sorted({SPLITS[row.history.split] for row in rows if row.history.rows})
        if splits:
            self.figures.append(plots.compared_curves(self.curves, f"{' or '.join(splits)} error by epoch, %"))
        beside = published(group)
        recipes = Counter(model for model, _ in {(row.model, row.recipe) for row in rows})
        own = []
        for row, curve in zip(rows, self.curves):
            point = plots.Point(row.model, True, row.parameters / 1e6, row.error, row.interval, curve.name)
            own.append(point._replace(joined=recipes[row.model] == 1))
        self.published = bool(beside)
        self.figures += plots.cost_plots([*own, *beside], table.title, "parameters")


def published(group: Group) -> list[plots.Point]:
    """Return the published points beside a group: of its data set, with the depths of its networks."""
    depths = {catalog.parse_name(row.model).depth for row in group.results}
    return [
        plots.Point(record.model, False, record.params_m, record.top1_error)
        for record in catalog.RECORDS
        if record.dataset == group.first.task.name and record.depth in depths and record.params_m and record.top1_error
    ]
