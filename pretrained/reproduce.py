#!/usr/bin/env python3
"""Train the bundled digits networks again, and compare their files bit for bit.

The same bits are expected on any processor with AVX2, the limit of training (`pydmobilenet/gluon/runtime.py`), and were
seen on two kinds for version 0.2. They are not promised: oneDNN may choose its kernels by cache sizes too.

    python pretrained/reproduce.py                         # all four: some minutes each, on one thread
    python pretrained/reproduce.py --model mobilenet-29-0.5
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="*", metavar="PATTERN", help="as 'pyd-*' (default: all)")
    pattern = parser.parse_args().model
    entries = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    chosen = [entry for entry in entries if fnmatch.fnmatchcase(entry["model"], pattern)]
    if not chosen:
        models = ", ".join(entry["model"] for entry in entries)
        parser.error(f"no bundled network is called {pattern!r} (allowed: {models}, or a wildcard)")
    different = 0
    for entry in chosen:
        with tempfile.TemporaryDirectory() as folder:
            run = train(entry["command"], Path(folder) / "run")
        checkpoint, environment = run["checkpoints"]["last.params"], run["sessions"][-1]["environment"]
        same = checkpoint["sha256"] == entry["sha256"]
        different += not same
        errors = f"error {checkpoint['test_error']:.2f} %, recorded {entry['test_error']:.2f} %"
        machine = f"{environment['processor']}, {environment['instruction_set']}"
        print(f"{entry['file']}: {'the same bit for bit' if same else 'other bits'}; {errors} ({machine})", flush=True)
    return 1 if different else 0


def train(command: str, directory: Path) -> dict:
    """Run a command of the manifest, ``NAME=VALUE python train.py ...``, in a directory; return its ``run.json``."""
    words = shlex.split(command)
    start = words.index("python")
    settings = dict(word.split("=", 1) for word in words[:start])
    arguments = [*words[start + 2 :], "--output", str(directory), "--quiet"]
    code = subprocess.run(
        [sys.executable, HERE.parent / "train.py", *arguments], env={**os.environ, **settings}
    ).returncode
    if code:
        raise SystemExit(code)  # it has printed why
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
