"""The answers of networks for single images, as ``answers.csv``, and their comparison with those of an earlier file.

The file has a row for each image of each network. This long form has the same columns for any number of networks and
data sets, and keeps networks of the same name apart. Classes are numbers, as two of ImageNet's share their name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .catalog import Record, parse_name
from .data import Dataset, folder
from .data.splits import pixel_hashes
from .errors import BadFileError, InvalidValueError, MissingFileError
from .metrics import NO_CLASS, Answers, mcnemar
from .text import encodable

COLUMNS = ("dataset", "model", "checkpoint", "index", "file", "hash", "label", "class", "confidence")
LINE_END = "\r\n"  # RFC 4180; after "\n", Python before 3.13 does not quote a "\r" in a file's name
MAX_PATH = 500  # characters of a checkpoint's
HEADER = ",".join(COLUMNS) + LINE_END


class Change(NamedTuple):
    """The difference from the answers of an `earlier` network: images, answers changed, right ones lost and gained."""

    earlier: str
    images: int
    changed: int
    lost: int
    gained: int

    @property
    def p(self) -> float:
        """The p-value of McNemar's exact test."""
        return mcnemar(self.lost, self.gained)

    def __str__(self) -> str:
        text = f"{self.changed:,} of {self.images:,} answers changed"
        if not self.changed:
            return text
        p = f"p = {self.p:.2g}" if self.p else "p < 1e-300"
        return f"{text}, {self.lost:,} from right to wrong, {self.gained:,} from wrong to right, {p}"


def change(earlier: str, before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> Change:
    """Compare classes (N,) with those of an `earlier` network."""
    was_right, is_right = before == labels, after == labels
    counts = (before != after, was_right & ~is_right, is_right & ~was_right)
    return Change(earlier, len(labels), *(int(count.sum()) for count in counts))


def name(record: Record) -> str:
    """Name a network, with its checkpoint unless it is a published one."""
    return f"{record.model} ({record.short_path})" if record.short_path else record.model


def to_csv(dataset: Dataset, networks: Iterable[tuple[Record, Answers]]) -> str:
    """Format the answers of networks for a data set as CSV, without the `HEADER`.

    An image has the hash of its file, or of its pixels. The class is empty for logits that are not finite.
    """
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator=LINE_END)
    images = list(zip(dataset.files or [""] * len(dataset), _hashes(dataset), dataset.labels.tolist()))
    for record, answers in networks:
        classes = ["" if answer == NO_CLASS else answer for answer in answers.classes.tolist()]
        for index, (image, answer, confidence) in enumerate(zip(images, classes, answers.confidences.tolist())):
            names = (_shared_name(record.dataset), record.model, record.short_path)
            writer.writerow((*names, index, *image, answer, f"{confidence:.6f}"))
    return encodable(sheet.getvalue())


def _shared_name(dataset: str) -> str:
    """Name a data set in a file that may be passed on: of a folder, not where it is."""
    return f"folder:{folder.title(dataset)}" if dataset.startswith("folder:") else dataset


def _hashes(dataset: Dataset) -> Sequence[str]:
    return dataset.hashes or pixel_hashes(dataset)


@dataclass
class _Network:
    """The answers of one network in a file."""

    model: str
    checkpoint: str
    hashes: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.model} ({self.checkpoint})" if self.checkpoint else self.model


@dataclass(frozen=True)
class Earlier:
    """The answers in a file."""

    path: Path
    networks: list[_Network]
    single: bool  # the file has one network

    def of(self, dataset: Dataset, records: Iterable[Record]) -> Earlier:
        """Return the answers for the images of a data set. Raises BadFileError without any, or without `records`."""
        hashes, labels = list(_hashes(dataset)), dataset.labels.tolist()
        same = [network for network in self.networks if (network.hashes, network.labels) == (hashes, labels)]
        if not same:
            numbers = sorted({len(network.labels) for network in self.networks})
            what = f"{', '.join(f'{number:,}' for number in numbers[:5])} images, not {len(labels):,}"
            if len(labels) in numbers:
                what = "other images, labels or another order"
            raise BadFileError(f"{self.path} is not of these images of {dataset.task.title}: it has {what}")
        selected = replace(self, networks=same)
        if not any(map(selected._find, records)):
            names = ", ".join(map(str, same[:5]))
            raise BadFileError(f"{self.path} has the answers of {names}: it is unclear which of them is meant")
        return selected

    def change(self, record: Record, answers: Answers) -> Change | None:
        """Compare answers with those of the same network, or of the only one; None without it."""
        network = self._find(record)
        if network is None:
            return None
        return change(str(network), np.array(network.classes), answers.classes, np.array(network.labels))

    def _find(self, record: Record) -> _Network | None:
        """Find the network of the same model and checkpoint, else of the same model, else the only one."""
        same_model = [network for network in self.networks if network.model == record.model]
        same = [network for network in same_model if network.checkpoint == encodable(record.short_path)]
        found = same or same_model or (self.networks if self.single else [])
        return found[0] if len(found) == 1 else None


def read(path: Path) -> Earlier:
    """Read a file of answers. Raises MissingFileError, and BadFileError for a damaged one."""
    if not path.is_file():
        raise MissingFileError(f"no such file of answers: {path}")
    networks: list[_Network] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            if tuple(next(rows, ())) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            for row in filter(None, rows):
                _add(networks, row, rows.line_num)
    except OSError as error:
        raise MissingFileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        raise BadFileError(f"{path} is no answers.csv of validate --output: {error}") from None
    return Earlier(path, networks, len(networks) == 1)


def _add(networks: list[_Network], row: list[str], line: int) -> None:
    """Add a row to the last network, or begin one with the image of index 0. Raises ValueError."""
    try:
        _, model, checkpoint, index, _, content_hash, label, answer, confidence = row
        if index == "0":
            networks.append(_Network(parse_name(model).name, checkpoint[:MAX_PATH]))
        network = networks[-1]
        numbers = [int(label), int(answer) if answer else NO_CLASS]
        follows = (model, checkpoint[:MAX_PATH], int(index)) == (network.model, network.checkpoint, len(network.labels))
        if not (follows and 0 <= min(numbers) <= max(numbers) <= NO_CLASS and 0 <= float(confidence) <= 1):
            raise ValueError
    except (ValueError, IndexError, InvalidValueError):
        raise ValueError(f"line {line}") from None
    network.hashes.append(content_hash)
    network.labels.append(numbers[0])
    network.classes.append(numbers[1])
