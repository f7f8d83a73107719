#!/usr/bin/env python3
"""Fine-tune the authors' weights on a few hundred pictures: test error over several seeds.

python benchmarks/finetune.py --data DIR --weights-dir DIR      # half an hour; DIR has CIFAR-10 as test/<class>/*.jpg

The pictures are of CIFAR-10's test set, unseen by the authors' networks: the first ones of each class are for training
(a part of them for validation, if the recipe says so), all others for the test.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pydmobilenet import provenance
from pydmobilenet.training.checkpoint import read_history
from pydmobilenet.training.history import History

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
WAYS = {
    "cifar-short": ["--config", "cifar-short"],  # what version 0.3 advised
    "finetune": ["--config", "finetune"],
    "adamw": ["--config", "finetune", "--optimizer", "adamw", "--learning-rate", "0.01", "--weight-decay", "0.01"],
    "finetune-all": ["--config", "finetune", "--patience", "0"],
    "freeze": ["--config", "finetune", "--freeze"],
    "freeze-augment": ["--config", "finetune", "--freeze", "--augment", "true"],
    "finetune-64": ["--config", "finetune", "--image-size", "64", "--body-rate", "1"],  # the body has to adapt
    "folder": ["--config", "folder"],
}


def make_photos(source: Path, target: Path, classes: list[str], number: int) -> None:
    """Link the first images of some classes below ``train/``, the others below ``test/``."""
    for name in classes:
        files = sorted((source / "test" / name).iterdir())
        for split, part in (("train", files[:number]), ("test", files[number:])):
            (target / split / name).mkdir(parents=True)
            for file in part:
                (target / split / name / file.name).symlink_to(file.resolve())


def train(options: Iterable[object]) -> tuple[History, dict, float]:
    """Run train.py on one thread; return its history, its checkpoints in ``run.json``, and the processor's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, TRAIN, *options, "--output", run, "--device", "cpu", "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        before = os.times()
        subprocess.run([*map(str, command)], env=environment, check=True, stdout=subprocess.DEVNULL)
        after = os.times()  # of this one thread: other work on the machine does not count
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        checkpoints = json.loads((run / "run.json").read_text(encoding="utf-8"))["checkpoints"]
        return read_history(run), checkpoints, seconds


def test_error(history: History, checkpoints: dict) -> float:
    """Return the test error in % of the chosen epoch: the last one, if only test images could choose the best."""
    return checkpoints["best.params" if history.split == "val" else "last.params"]["test_error"]


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
    # The validation error of the best epoch is for choosing a rate: the test images judge, once.
    print("| recipe | validation errors, % | test errors, % | mean, % | deviation, % | epochs | seconds, median |")
    print("| --- | --- | --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        make_photos(arguments.data, Path(folder), arguments.classes, arguments.number)
        for way in arguments.ways:
            options = [*WAYS[way], "--model", arguments.model, *arguments.options]
            pretrained = [] if way == "folder" else ["--pretrained", "--weights-dir", arguments.weights_dir]
            runs = [train([folder, *options, *pretrained, "--seed", seed]) for seed in range(arguments.seeds)]
            errors = [test_error(history, checkpoints) for history, checkpoints, _ in runs]
            epochs = ", ".join(str(len(history.rows)) for history, _, _ in runs)
            seconds = statistics.median(seconds for _, _, seconds in runs)
            chosen = [history.best.error for history, _, _ in runs if history.best and history.split == "val"]
            listed = " | ".join(", ".join(f"{error:.2f}" for error in of) for of in (chosen, errors))
            deviation = statistics.stdev(errors) if len(errors) > 1 else 0.0
            figures = f"{statistics.mean(errors):.2f} | {deviation:.2f} | {epochs}"
            print(f"| {way} | {listed} | {figures} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
