#!/usr/bin/env python3
"""What fine-tuning the authors' weights reaches on a few hundred pictures: test error over several seeds.

python benchmarks/finetune.py --data DIR --weights-dir DIR      # half an hour; DIR has CIFAR-10 as test/<class>/*.jpg

The pictures are of CIFAR-10's test set, which the authors' networks have not seen: of each class the first ones are for
training (a share of these for validation, where the recipe wants it), all others for the test.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pydmobilenet import provenance
from pydmobilenet.training.checkpoint import read_history

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
WAYS = {
    "cifar-short": ["--config", "cifar-short"],  # what version 0.3 advised
    "finetune": ["--config", "finetune"],
    "finetune-64": ["--config", "finetune", "--image-size", "64", "--body-rate", "1"],  # the body has to adapt
    "folder": ["--config", "folder"],
}


def make_photos(source: Path, target: Path, classes: list[str], number: int) -> None:
    """Links to the images of some classes: the first ones below ``train/``, the others below ``test/``."""
    for name in classes:
        files = sorted((source / "test" / name).iterdir())
        for split, part in (("train", files[:number]), ("test", files[number:])):
            (target / split / name).mkdir(parents=True)
            for file in part:
                (target / split / name / file.name).symlink_to(file.resolve())


def train(photos: Path, options: list[str], seed: int, pretrained: list[str]) -> tuple[float, float, int]:
    """The test error in % of a run on one thread, the seconds of its epochs, and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            TRAIN,
            photos,
            *options,
            *pretrained,
            "--seed",
            seed,
            "--output",
            run,
            "--device",
            "cpu",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*map(str, command), "--quiet"], env=environment, check=True, stdout=subprocess.DEVNULL)
        history = read_history(run)
        checkpoints = json.loads((run / "run.json").read_text(encoding="utf-8"))["checkpoints"]
        chosen = "best.params" if history.split == "val" else "last.params"  # never the best one by the test images
        return checkpoints[chosen]["test_error"], sum(row.seconds for row in history.rows), len(history.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with test/<class>/ of CIFAR-10's images")
    parser.add_argument("--weights-dir", required=True, help="where the authors' weights are")
    parser.add_argument("--model", default="pyd-add-29-0.5", help="default: pyd-add-29-0.5")
    parser.add_argument("--classes", nargs="+", default=["cat", "deer", "dog"], help="default: cat deer dog")
    parser.add_argument("--number", type=int, default=280, help="pictures a class to train on (default: 280)")
    text = f"{', '.join(WAYS)} (default: all)"
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY", help=text)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3)")
    text = "for every run, as --epochs 4; stands last"
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help=text)
    arguments = parser.parse_args()
    print(
        f"{provenance.environment()['processor']}, one thread; {arguments.model}, {arguments.number} pictures of each"
    )
    print("| recipe | test errors, % | mean, % | spread | epochs | seconds, median |")
    print("| --- | --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        make_photos(arguments.data, Path(folder), arguments.classes, arguments.number)
        for way in arguments.ways:
            options = [*WAYS[way], "--model", arguments.model, *arguments.options]
            pretrained = [] if way == "folder" else ["--pretrained", "--weights-dir", arguments.weights_dir]
            found = [train(Path(folder), options, seed, pretrained) for seed in range(arguments.seeds)]
            errors, seconds, epochs = zip(*found)
            listed = ", ".join(f"{error:.2f}" for error in errors)
            figures = f"{statistics.mean(errors):.2f} | {max(errors) - min(errors):.2f} | {epochs[0]}"
            print(f"| {way} | {listed} | {figures} | {statistics.median(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
