"""From a folder of class folders to an ONNX file that gives the same answers elsewhere, as a new user would go."""

import csv
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT, make_classes

ELSEWHERE = """
import csv, json, sys
import numpy as np, onnxruntime
from PIL import Image
net = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
classes = json.loads(net.get_modelmeta().custom_metadata_map["classes"])
for row in csv.DictReader(open("answers.csv")):
    pixels = np.asarray(Image.open(row["image"]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    (logits,) = net.run(["logits"], {"images": pixels[np.newaxis]})
    assert classes[int(logits.argmax())] == row["class"]
assert not [name for name in sys.modules if name.startswith(("pydmobilenet", "mxnet", "torch"))]
"""
GLUON = pytest.param("gluon", marks=[pytest.mark.gluon, pytest.mark.fuzz])
COMMANDS = [
    ["train", "photos", "--pretrained", "--weights-dir", "WEIGHTS", "--epochs", "3"],
    ["validate", "runs/pyd-concat-29-0.5-folder-photos", "--output", "report"],
    ["predict", "others", "--weights", "runs/pyd-concat-29-0.5-folder-photos", "--csv", "--output", "answers.csv"],
    ["export", "--weights", "runs/pyd-concat-29-0.5-folder-photos", "--uint8-input", "--output", "net.onnx"],
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param("pytorch", marks=pytest.mark.pytorch), GLUON])
def test_five_commands_lead_from_a_folder_to_an_onnx_file(engine, weights_dir, tmp_path):
    make_classes(tmp_path / "photos", ["cat", "dog", "emu"], {".": 40}, side=48)
    make_classes(tmp_path / "others", ["any"], {".": 5}, side=40)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = []
    for command in COMMANDS:
        words = [str(weights_dir) if word == "WEIGHTS" else word for word in command]
        answer = subprocess.run(
            [sys.executable, "-m", "pydmobilenet", *words, "--engine", engine],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 0, answer.stderr
        printed.append(answer.stdout)
    trained, validated, _, exported = printed
    (error,) = re.findall(r"^Test error of epoch \d, measured once: (\S+) % \(\d+ of \d+ images", trained, re.MULTILINE)
    assert f"{error} |" in validated
    assert re.search(r"^\| cat +\| +\d+ \|", validated, re.MULTILINE)
    assert "| match " in validated
    assert "(p50)" in exported
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<h1>PydMobileNet: pyd-concat-29-0.5 on photos</h1>" in page
    assert "published" not in page.partition("<body>")[2]
    with open(tmp_path / "answers.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, check=True)
