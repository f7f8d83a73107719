#!/usr/bin/env python3
"""Pictures a second from folders of photos and of small JPEGs, first and second start, against torchvision.

Ours is `pydmobilenet.get_dataset` with an empty cache, then with a full one. The conventional way is ``ImageFolder``
with ``Resize((32, 32))``, ``ToTensor`` and a ``DataLoader`` of two workers, which decodes at every start and epoch;
without torchvision, the same calls of Pillow in a ``DataLoader``. The sides take turns; photos have 12 megapixels,
small JPEGs 40x40 pixels. All files are in the page cache.

    python benchmarks/pictures.py
"""

from __future__ import annotations

import argparse
import io
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
    """Write so many JPEGs (quality 90, 4:2:0) in class folders: some drawings, each file with its number at the end."""
    drawn = []
    for seed in range(different):
        photo(seed, *size).save(content := io.BytesIO(), "JPEG", quality=90)
        drawn.append(content.getvalue())
    for label in range(CLASSES):
        (root / f"class{label}").mkdir(parents=True)
    for index in range(number):
        file = root / f"class{index % CLASSES}" / f"{index:05}.jpg"
        file.write_bytes(drawn[index % different] + index.to_bytes(4, "big"))
    return root


def ours(root: Path) -> int:
    return len(get_dataset(root, "all", progress=False))


class Folder:
    """What ``ImageFolder`` with ``Resize`` and ``ToTensor`` does to a picture."""

    def __init__(self, root: Path):
        self.files = sorted(root.glob("*/*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        import torch

        with Image.open(self.files[index]) as image:
            pixels = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous().float().div(255), 0


def conventional(root: Path):
    try:
        from torchvision import datasets, transforms
    except (ImportError, RuntimeError):  # RuntimeError: it is of another build of PyTorch
        return Folder(root)
    return datasets.ImageFolder(root, transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()]))


def data_loader(root: Path) -> int:
    from torch.utils.data import DataLoader

    return sum(len(labels) for _, labels in DataLoader(conventional(root), batch_size=128, num_workers=2))


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
        photos = write(Path(directory, "photos"), arguments.photos, 4, (4000, 3000))
        small = write(Path(directory, "small"), arguments.small, 100, (40, 40))
        time.sleep(3)  # a younger file is read again at the second start
        for name, root, number in (("photos", photos, arguments.photos), ("small", small, arguments.small)):
            rates: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):
                for path in Path(directory, "cache").glob("*"):
                    path.unlink()
                for way, read in (("DataLoader", data_loader), ("first start", ours), ("second start", ours)):
                    rates.setdefault(way, []).append(number / seconds(read, root))
            for way, values in rates.items():
                ratio = statistics.median(mine / theirs for mine, theirs in zip(values, rates["DataLoader"]))
                median = statistics.median(values)
                spread = f"{min(values):,.0f} to {max(values):,.0f}"
                print(f"| {number:,} {name} | {way} | {median:,.0f} | {spread} | {ratio:.1f} | {number / median:.2f} |")


if __name__ == "__main__":
    main()
