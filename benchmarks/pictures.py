#!/usr/bin/env python3
"""Pictures a second from folders of photos and of small JPEGs, first and second start, against torchvision.

Ours is `pydmobilenet.get_dataset` with an empty cache, then with a full one. The conventional way is ``ImageFolder``
with ``Resize((32, 32))``, ``ToTensor`` and a ``DataLoader`` of two workers, which decodes at every start and epoch. The
sides take turns; photos have 12 megapixels, small JPEGs 40x40 pixels. All files are in the page cache.

    python benchmarks/pictures.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pydmobilenet import provenance
from pydmobilenet.data import cache, get_dataset
from pydmobilenet.machine import available_processors

CLASSES, SIDE = 10, 32


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Draw smooth noise at several scales, and shapes with sharp edges."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 120, np.float32)
    for cells, amplitude in ((4, 90), (16, 45), (64, 25), (256, 14), (1024, 9)):
        for colour in range(3):
            noise = generator.normal(size=(cells * 3 // 4, cells)).astype(np.float32)
            pixels[..., colour] += amplitude * np.asarray(Image.fromarray(noise).resize((width, height)))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for x, y, radius, *colour in generator.integers(0, (width, height, width // 8, 256, 256, 256), (40, 6)).tolist():
        shape = draw.ellipse if radius % 2 else draw.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour))
    return image


def write(root: Path, number: int, different: int, size: tuple[int, int]) -> Path:
    """Write so many JPEGs (quality 90, 4:2:0) in class folders; of `different` ones, the others are brighter."""
    drawn = [photo(seed, *size) for seed in range(different)]
    for label in range(CLASSES):
        (root / f"class{label}").mkdir(parents=True)
    for index in range(number):
        level = index // different % 64
        image = drawn[index % different].point(lambda value, level=level: min(255, value + level))
        image.save(root / f"class{index % CLASSES}" / f"{index:05}.jpg", quality=90)
    return root


def ours(root: Path) -> int:
    return len(get_dataset(root, "all", progress=False))


def torchvision(root: Path) -> int:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])
    images = datasets.ImageFolder(root, steps)
    return sum(len(labels) for _, labels in DataLoader(images, batch_size=128, num_workers=2))


def seconds(read, root: Path) -> float:
    start = time.perf_counter()
    read(root)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--photos", type=int, default=120, help="of 12 megapixels (default: 120)")
    option("--small", type=int, default=50_000, help="small JPEGs (default: 50,000)")
    option("--rounds", type=int, default=3, help="default: 3")
    arguments = parser.parse_args()
    print(f"{provenance.summary()}, {available_processors()} processors")
    print("| pictures | way | pictures/s, median | lowest to highest | times as fast | seconds |")
    print("| --- | --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as directory:
        os.environ.pop(cache.VARIABLE, None)
        cache.directory = lambda: Path(directory, "cache")
        photos = write(Path(directory, "photos"), arguments.photos, 12, (4000, 3000))
        small = write(Path(directory, "small"), arguments.small, 100, (40, 40))
        time.sleep(3)  # a younger file is read again at the second start
        for name, root, number in (("photos", photos, arguments.photos), ("small", small, arguments.small)):
            rates: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):
                for path in Path(directory, "cache").glob("*"):
                    path.unlink()
                for way, read in (("torchvision", torchvision), ("first start", ours), ("second start", ours)):
                    rates.setdefault(way, []).append(number / seconds(read, root))
            for way, values in rates.items():
                ratio = statistics.median(mine / theirs for mine, theirs in zip(values, rates["torchvision"]))
                median = statistics.median(values)
                spread = f"{min(values):,.0f} to {max(values):,.0f}"
                print(f"| {number:,} {name} | {way} | {median:,.0f} | {spread} | {ratio:.1f} | {number / median:.2f} |")


if __name__ == "__main__":
    main()
