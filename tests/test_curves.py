"""The curves of a run: a picture of the measured values alone."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, epoch, history_of
from PIL import Image

from pydmobilenet import plots
from pydmobilenet.plots import draw
from pydmobilenet.training.history import Epoch, History


def pixels(path, colour):
    """Return a mask (height, width) of the pixels of a colour."""
    with Image.open(path) as image:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        return (np.asarray(image.convert("RGB")) == wanted).all(axis=2)


@pytest.mark.parametrize("number", [1, 320])
def test_errors_and_losses_have_two_curves(tmp_path, number):
    draw(history_of(number, 320), tmp_path / "curves.png", "pyd-add-56-1.0 on CIFAR-10")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.size == (1440, 540)
    for colour, drawn in ((plots.TRAIN, "110"), (plots.HELD_OUT, "110"), (plots.RATE, "001")):
        panels = np.split(pixels(tmp_path / "curves.png", colour)[97:481], 3, axis=1)  # below the legends
        assert [panel.sum() > 8 for panel in panels] == [each == "1" for each in drawn]


@pytest.mark.parametrize(("number", "split"), [(1, "test"), (4, "val"), (320, "test")])
def test_the_best_epoch_is_marked_among_errors_and_losses(tmp_path, number, split):
    history = history_of(number)
    if split == "val":
        nothing = {"test_loss": None, "test_error": None}
        history.rows = [
            dataclasses.replace(row, val_loss=row.test_loss, val_error=row.test_error, **nothing)
            for row in history.rows
        ]
    draw(history, tmp_path / "curves.png", "a run")
    black = pixels(tmp_path / "curves.png", plots.INK)[97:481]  # the fields, where only the star is black
    assert [panel.sum() > 8 for panel in np.split(black, 3, axis=1)] == [True, True, False]


@pytest.mark.parametrize("rates", [[0.05] * 3, [0.1, 0.01, 0.0001], [0.02, 0.015, 0.0]])
def test_no_number_of_an_axis_is_cut_off(rates, tmp_path):
    rows = [epoch(number, learning_rate=rate) for number, rate in enumerate(rates, 1)]
    draw(History(rows=rows), tmp_path / "curves.png", "a run")
    white = pixels(tmp_path / "curves.png", "#ffffff")
    assert white[:, :3].all()
    assert white[:, -3:].all()


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$\\frac{", "$\\frac{"),
        ("caf\udcff", r"caf\xff"),
        ("a\nb\0\x1b[31m\u202e", r"a\nb\x00\x1b[31m\u202e"),
        ("\u732b\u72ac \N{GRINNING FACE}", "\u732b\u72ac \N{GRINNING FACE}"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_a_name_of_any_characters_is_drawn_as_well_as_it_can_be(name, shown, tmp_path):
    for file, title in (("name.png", name), ("shown.png", shown), ("other.png", "y")):
        draw(history_of(2), tmp_path / file, title)
    assert (tmp_path / "name.png").read_bytes() == (tmp_path / "shown.png").read_bytes()
    assert (tmp_path / "name.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_the_same_history_gives_the_same_curves(tmp_path):
    for name in ("one.png", "two.png"):
        draw(history_of(8), tmp_path / name, "a run")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_non_finite_values_are_left_out(tmp_path):
    columns = ("train_loss", "train_error", "test_loss", "test_error")
    for name, value in {"nan.png": math.nan, "inf.png": math.inf}.items():
        history = history_of(40)
        history.rows[20:30] = [dataclasses.replace(row, **dict.fromkeys(columns, value)) for row in history.rows[20:30]]
        draw(history, tmp_path / name, "a run")
    assert (tmp_path / "nan.png").read_bytes() == (tmp_path / "inf.png").read_bytes()
    for panel in np.split(pixels(tmp_path / "nan.png", plots.HELD_OUT)[97:481], 3, axis=1)[:2]:
        crossed = panel.any(axis=0).nonzero()[0]
        assert np.diff(crossed).max() > 60  # of some 100 pixels without a curve, where ten of 40 epochs are


@pytest.mark.parametrize("rates", [[0.1, 0.05, 0.01, 0.0], [0.1, 0.05, 1e-9, 1e-12], [0.0, 0.0, 0.0, 0.0]])
def test_a_learning_rate_of_0_or_next_to_it_has_its_point(rates, tmp_path):
    rows = [epoch(number, learning_rate=rate) for number, rate in enumerate(rates, 1)]
    draw(History(rows=rows), tmp_path / "curves.png", "a run")
    field = pixels(tmp_path / "curves.png", plots.RATE)[97:490, 1018:1427]
    assert field.sum(axis=0).max() < 150  # no line that is upright
    crossed = np.flatnonzero(field.any(axis=0))
    assert crossed[0] < 80  # from the first of the four epochs
    assert crossed[-1] > 330  # to the last


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # Matplotlib 3.9 uses old names of pyparsing
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Epoch(1, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 1.0)],
        [epoch(1, 0.0, learning_rate=0.0, train_loss=0.0, test_loss=0.0, train_error=0.0)],
        [epoch(1, learning_rate=0.1), epoch(2, learning_rate=1e-12, train_loss=1e30)],
    ],
    ids=["no epoch", "nothing finite", "zeros", "extremes"],
)
def test_odd_histories_are_drawn_without_a_warning(tmp_path, rows):
    draw(History(rows=rows), tmp_path / "curves.png", "costs $5_{")
    with Image.open(tmp_path / "curves.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_curves_need_neither_mxnet_nor_a_display(tmp_path):
    program = (
        "import sys; from pydmobilenet import plots; from pydmobilenet.training.history import History; "
        "plots.draw(History(), sys.argv[1], 'a run'); "
        "assert not {'mxnet', 'matplotlib.pyplot', 'tensorboardX'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program, tmp_path / "curves.png"], cwd=ROOT, capture_output=True)
    assert (answer.returncode, answer.stderr) == (0, b"")
