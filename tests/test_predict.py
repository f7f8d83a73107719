"""pydmobilenet predict, run as a user runs it: text, CSV, JSON, and what cannot be read."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import oracle
import pytest
from helpers import ROOT, commander
from PIL import Image

import pydmobilenet
from pydmobilenet import checkpoints, engine
from pydmobilenet.checkpoints import formats
from pydmobilenet.data import get_dataset

MODEL = ["-m", "pyd-add-29-0.25", "-d", "digits"]


@pytest.fixture
def run(monkeypatch, capsys):
    return commander(monkeypatch, capsys)


@pytest.fixture(scope="module")
def digits():
    return get_dataset("digits", "test").head(60)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, digits):
    """A folder of digits, every other one larger than networks see, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for number, pixels in enumerate(digits.images):
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        image = image.resize((96, 96)) if number % 2 else image
        image.save(folder / ("below/59.png" if number == 59 else f"{number:02}.png"))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_images_is_classified(run, pictures, digits):
    code, out, err = run("predict", pictures, *MODEL)
    assert code == 0, err
    assert err == "skipped: 1 .txt\n30 of 60 images resized to 32x32\n"
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert len(lines) == 60
    right = 0
    for number, label in enumerate(digits.labels):
        name = "below/59.png" if number == 59 else f"{number:02}.png"
        classes = re.fullmatch(r"(\d) ([\d.]+) %, (\d) ([\d.]+) %, (\d) ([\d.]+) %", lines[str(pictures / name)])
        assert float(classes[2]) >= float(classes[4]) >= float(classes[6])
        right += classes[1] == str(label)
    assert right >= 57


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        (False, r"PyTorch is not installed: pip install 'pydmobilenet\[torch\]'"),
        (True, r"PyTorch cannot be imported \(.*\)"),
    ],
)
def test_without_pytorch_its_name_is_refused_in_one_line(installed, words, run, pictures, monkeypatch):
    find_spec = engine.importlib.util.find_spec
    monkeypatch.setattr(
        engine.importlib.util, "find_spec", lambda name: installed or None if name == "torch" else find_spec(name)
    )
    monkeypatch.setitem(sys.modules, "pydmobilenet.pytorch.devices", None)
    code, out, err = run("predict", pictures / "00.png", *MODEL, "--engine", "pytorch")
    assert (code, out) == (2, "")
    assert re.fullmatch(f"pydmobilenet: error: engine 'pytorch': {words}; nearest: onnxruntime\n", err)


def test_json_has_the_probabilities_of_the_literal_network(run, pictures, digits):
    code, out, err = run("predict", pictures / "00.png", *MODEL, "--json", "--top", 10)
    assert (code, err) == (0, "")
    ((image),) = json.loads(out)
    assert (image["image"], image["size"], image["resized"]) == (str(pictures / "00.png"), [32, 32], False)
    source = checkpoints.find("pyd-add-29-0.25", "digits")
    logits = oracle.logits(source.network, source.arrays(), digits.normalised(0, 1))[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [each["label"] for each in image["classes"]] == np.argsort(-expected).tolist()
    for each in image["classes"]:
        assert each["probability"] == pytest.approx(expected[each["label"]], abs=1e-5)
        assert each["class"] == str(each["label"])


def test_csv_has_an_image_a_row_and_its_classes_from_the_likeliest_on(run, pictures):
    code, out, _ = run("predict", pictures, *MODEL, "--csv", "--top", 2)
    assert code == 0
    header, *rows = csv.reader(out.splitlines())
    assert header == ["image", "class", "probability", "class_2", "probability_2"]
    expected = pydmobilenet.predict(pictures, "pyd-add-29-0.25", dataset="digits", top=2)
    assert [row[0] for row in rows] == [each.image for each in expected]
    for row, each in zip(rows, expected):
        assert [row[1], row[3]] == [name for _, name, _ in each.classes]
        assert [float(row[2]), float(row[4])] == pytest.approx([share for *_, share in each.classes], abs=1e-6)


def test_csv_has_the_probability_of_each_class_where_that_is_asked_for(run, pictures, tmp_path):
    answer = run("predict", pictures, *MODEL, "--csv", "--probabilities", "--output", tmp_path / "answers.csv")
    assert answer[:2] == (0, "")
    rows = list(csv.DictReader((tmp_path / "answers.csv").open()))
    assert list(rows[0]) == ["image", "class", "probability", *"0123456789"]
    for row in rows:
        shares = [float(row[name]) for name in "0123456789"]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["class"] == str(np.argmax(shares))
        assert float(row["probability"]) == max(shares)


def test_names_with_commas_quotes_and_line_breaks_are_exact_in_csv(run, digits, tmp_path):
    name = tmp_path / 'a, "b"\nc.png'
    Image.fromarray(digits.images[0].transpose(1, 2, 0)).save(name)
    run("predict", tmp_path, *MODEL, "--csv", "--output", tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(name)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "jsn"], "unknown format 'jsn'; nearest: json (allowed: text, csv, json)"),
        (["--probabilities"], "--probabilities is for CSV: add --csv"),
        (["--csv", "--json"], "argument --json: not allowed with argument --csv"),
        (["--output", "nowhere/answers.csv"], "cannot write nowhere/answers.csv: no such directory"),
        (["--image-size", "30"], "image_size is 30 (allowed: a multiple of 4 from 8 to 1024; nearest: 28)"),
    ],
)
def test_a_mistake_about_the_answers_is_one_line(options, words, run, pictures):
    code, out, err = run("predict", pictures / "00.png", *MODEL, *options)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]


def test_answers_are_written_whole_or_not_at_all(run, mixed, tmp_path):
    (tmp_path / "answers").write_text("earlier")
    code, out, err = run("predict", mixed, *MODEL, "--output", tmp_path / "answers")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("; --skip-bad (in Python, skip_bad=True) goes on without it")
    assert (tmp_path / "answers").read_text() == "earlier"
    assert not list(tmp_path.glob(".answers*"))


def test_of_answers_that_were_printed_before_an_error_their_number_is_told(run, pictures, mixed):
    code, out, err = run("predict", pictures, mixed / "9.gif", *MODEL, "--csv")
    assert code == 2
    assert len(out.splitlines()) == 1 + 50  # those of the batch before it
    told, error = err.splitlines()[-2:]
    assert told == "stopped after 50 of 61 predictions, already written"
    assert "9.gif cannot be read as an image" in error


def test_a_file_that_is_named_twice_is_answered_twice(run, pictures):
    _, out, _ = run("predict", pictures / "00.png", pictures / "00.png", *MODEL)
    first, second = out.splitlines()
    assert first == second


MANY = """
import sys
from pydmobilenet import cli
options = "-m pyd-add-29-0.25 -d digits --engine onnxruntime --json --top 10 --output".split()
sys.argv = ["pydmobilenet", "predict", sys.argv[1], *options, sys.argv[2]]
try: cli.main()
except SystemExit: print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is in /proc on Linux alone")
def test_many_images_take_no_more_memory_than_a_few(digits, tmp_path):
    """Kept in memory, 2,000 pictures would take 13 MB."""
    Image.fromarray(digits.images[0].transpose(1, 2, 0)).save(tmp_path / "0.png")
    used = []
    for number in (100, 2000):
        folder = tmp_path / str(number)
        folder.mkdir()
        for place in range(number):
            os.link(tmp_path / "0.png", folder / f"{place}.png")
        answer = subprocess.run(
            [sys.executable, "-c", MANY, folder, tmp_path / "answers.json"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        used.append(int(answer.stderr.split()[-1]) / 1024)
        assert len(json.loads((tmp_path / "answers.json").read_text())) == number
    assert used[1] < used[0] + 8


def test_an_image_may_come_from_standard_input(run, pictures, digits):
    code, out, _ = run("predict", "-", *MODEL, stdin=(pictures / "03.png").read_bytes())
    assert code == 0
    assert out.startswith(f"standard input: {digits.labels[3]} ")


@pytest.fixture
def mixed(tmp_path, digits):
    """A folder of three good pictures, one of them transparent, two bad ones, and what is no picture."""
    for number, pixels in enumerate(digits.images[:3]):
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        if number == 2:
            image.putalpha(200)
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "1a.jpg").write_bytes(b"no image")
    (tmp_path / "9.gif").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    (tmp_path / "._0.png").write_bytes(b"no image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"no image")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    return tmp_path


def test_a_bad_image_is_named_and_how_to_go_on_without_it(run, mixed):
    code, out, err = run("predict", mixed, *MODEL)
    assert (code, out) == (2, "")
    skipped, error = err.splitlines()
    assert skipped == "skipped: 2 hidden, 1 broken link or special file"
    assert f"error: {mixed / '1a.jpg'} cannot be read as an image" in error
    assert error.endswith("; --skip-bad (in Python, skip_bad=True) goes on without it")


@pytest.mark.parametrize("format", [[], ["--json"], ["--csv"]])
def test_bad_images_are_passed_over_on_request_and_the_others_answered(format, run, mixed, digits):
    with pytest.warns(UserWarning, match="skipped") as warned:
        code, out, err = run("predict", mixed, "--skip-bad", *MODEL, *format)
    assert [str(each.message) for each in warned if each.category is UserWarning] == [
        f"{mixed}/1a.jpg cannot be read as an image (allowed: PNG, JPEG, WebP, BMP, TIFF, GIF): skipped",
        f"{mixed}/9.gif cannot be read as an image: image file is truncated: skipped",
    ]
    assert (
        err
        == "skipped: 2 hidden, 1 broken link or special file\n1 of 3 images had transparency: composited on white\n"
        + ("2 of 5 images skipped as unreadable\n")
    )
    assert code == 1  # some were not answered
    names = [str(mixed / f"{number}.png") for number in range(3)]
    if format == ["--json"]:
        assert [each["image"] for each in json.loads(out)] == names
    elif format:
        assert [each["image"] for each in csv.DictReader(out.splitlines())] == names
    else:
        assert [line.split(": ")[0] for line in out.splitlines()] == names
        assert out.startswith(f"{names[0]}: {digits.labels[0]} ")


def test_where_all_images_are_bad_there_is_no_answer_to_give(run, mixed):
    with pytest.warns(UserWarning, match="skipped"):
        code, out, err = run("predict", mixed / "1a.jpg", mixed / "9.gif", "--skip-bad", *MODEL)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("error: none of the 2 images can be read")


def test_a_file_of_weights_or_a_run_may_be_named(run, pictures):
    file = ROOT / "pretrained" / "digits-pyd-add-29-0.25.params"
    assert run("predict", pictures / "00.png", *MODEL, "--weights", file) == run("predict", pictures / "00.png", *MODEL)


def test_nothing_is_predicted_with_parameters_that_are_not_finite(run, pictures, tmp_path):
    arrays = {**formats.read_params(ROOT / "pretrained" / "digits-pyd-add-29-0.25.params")}
    arrays["head.dense.bias"] = np.full(10, np.nan, np.float32)
    (tmp_path / "bad.params").write_bytes(formats.dump_params(arrays))
    code, out, err = run("predict", pictures / "00.png", *MODEL, "--weights", tmp_path / "bad.params")
    assert (code, out) == (2, "")
    assert "bad.params holds numbers that are not finite: in 'head.dense.bias'" in err
