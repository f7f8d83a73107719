"""Write a labelled grid of random images of all classes, raw and augmented. Seeing is checking."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..data import Dataset, batches, get_dataset, get_task
from ..data.batching import draw
from ..data.datasets import located
from ..data.splits import kinds
from ..errors import UnusableError
from ..text import printable
from . import options

COLUMNS = 8  # images beside each other; below each its augmented forms
VARIANTS = 3
SIDE, MARGIN, LINE = 96, 6, 14  # screen pixels: of a small image, between images, and of a line of text
LETTER = 6  # pixels, on average


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    text = "as cifar10, digits, or a folder of images (default: cifar10)"
    option("-d", "--dataset", default="cifar10", metavar="NAME", help=text)
    option("--split", help="train (default), test, of a folder val too; of class folders alone all (default)")
    options.add_data_dir(parser)
    text = "the picture to write, as grid.png; - for standard output"
    option("--output", required=True, type=options.output_file, metavar="FILE", help=text)
    option("--images", type=options.positive, default=2 * COLUMNS, metavar="N", help="how many (default: 16)")
    option("--seed", type=options.natural, default=0, help="of their choice and the augmentation (default: 0)")
    option("--image-size", type=options.positive, metavar="N", help="pixels, wide and high, of a folder's images")
    options.add_skip_bad(parser)


def grid(dataset: Dataset, seed: int = 0):
    """A picture (Pillow) of a data set's images: each raw, with its label, and below it as three epochs augment it."""
    from PIL import Image, ImageDraw

    raw, rows = dataset.images, [dataset.images]
    for epoch in range(VARIANTS):
        rows.append(_augmented(dataset, seed, epoch))
    side = raw.shape[2] * max(1, round(SIDE / raw.shape[2]))
    block = (VARIANTS + 1) * (side + MARGIN) + LINE + MARGIN
    columns = min(COLUMNS, len(raw))
    lines = -(-len(raw) // columns)
    picture = Image.new("RGB", (columns * (side + MARGIN) + MARGIN, lines * block + MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    for number in range(len(raw)):
        x = MARGIN + number % columns * (side + MARGIN)
        y = MARGIN + number // columns * block
        name = printable(dataset.task.class_name(int(dataset.labels[number])))
        pen.text((x, y), shortened(name, side // LETTER), fill="black")
        for row, images in enumerate(rows):
            image = Image.fromarray(images[number].transpose(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(image, (x, y + LINE + row * (side + MARGIN)))
    return picture


def sample(dataset: Dataset, number: int, seed: int = 0) -> Dataset:
    """So many random images, of all classes in turn."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    labels = dataset.labels[order]
    turns = np.empty(len(order), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        turns[own] = np.arange(len(own))
    return dataset.take(order[np.lexsort((labels, turns))[:number]], dataset.split)


def shortened(name: str, room: int) -> str:
    """A name in so many letters: its beginning and its end, by which long names differ."""
    return name if len(name) <= room else f"{name[: room - 7]}…{name[-6:]}"


def _augmented(dataset: Dataset, seed: int, epoch: int) -> np.ndarray:
    """An epoch's images, in the data set's order, as uint8: what a network gets, with the normalisation undone."""
    mean, std = (np.array(values)[:, None, None] for values in (dataset.task.mean, dataset.task.std))
    order = draw(len(dataset), seed, epoch).order
    ((images, _),) = batches(dataset, len(dataset), train=True, seed=seed, epoch=epoch)
    restored = np.rint((images * std + mean) * 255).astype(np.uint8)
    return restored[np.argsort(order)]


def run(
    dataset: str, split: str | None, data_dir: Path | None, output: Path, images: int, seed: int, **reading: Any
) -> int:
    suffix = output.suffix.lower()
    if suffix not in (".png", ".jpg") and files.stream(output) is None:
        raise UnusableError(f"cannot write a picture to {output} (allowed: .png, .jpg; nearest: {output}.png)")
    files.check(output)
    name = located(dataset, data_dir)
    has = kinds(name)
    task = get_task(name, reading["image_size"])
    split = split or ("train" if "train" in has else has[0])
    found = get_dataset(name, split, data_dir, reading["skip_bad"], task)
    if found.note:
        print(printable(f"data: {found.note}"), file=sys.stderr)
    found = sample(found, images, seed)
    content = io.BytesIO()
    grid(found, seed).save(content, "JPEG" if suffix == ".jpg" else "PNG")
    files.write(output, content.getvalue())
    what = f"{len(found)} images of {task.title}, raw and below it augmented three times"
    print(printable(f"wrote {output}: {what}"), file=options.status_stream(output))
    return 0
