"""The report of a run: its own title, error, curves, classes, mistakes and origin, as a page and as text."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import epoch, history_of
from test_html import Page, page_of

from pydmobilenet import checkpoints, plots, provenance
from pydmobilenet.data import Dataset
from pydmobilenet.metrics import Answers, Score, confusion, recall_precision
from pydmobilenet.reporting import classes, tables
from pydmobilenet.training.checkpoint import Run, State
from pydmobilenet.training.history import History
from pydmobilenet.validation import Result

METADATA = {
    "model": "pyd-add-11-0.125",
    "dataset": "folder:/far/away/photos",
    "outputs": 3,
    "classes": ["cat", "dog", "<emu>"],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "data": {"test": {"images": 9, "images_per_class": [3, 3, 3], "sha256": "00"}},
    "sessions": [
        {"begun": "2026-01-01", "command": "python train.py photos", "device": "cpu", "environment": {"numpy": "2.0"}}
    ],
}


@pytest.fixture
def record(tmp_path):
    """A run of four epochs."""
    state = State({}, {}, {"history": history_of(4).to_dicts()})
    run = Run.create(tmp_path / "run", "model: x\n", state, METADATA)
    run.save(state, {"best.params": {"epoch": 4, "test_error": 100 / 3}})
    run.lock.release()
    return checkpoints.inspect(tmp_path / "run")


def result_of(record):
    """Make nine images and predictions, three of them wrong."""
    labels = np.arange(9) % 3
    answers = Answers(np.array([0, 1, 2, 1, 1, 2, 2, 0, 2], np.uint16), np.linspace(0.4, 0.8, 9).astype(np.float32))
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 48, 48), np.uint8)
    files = tuple(f"test/{number}<b>.jpg" for number in range(9))
    dataset = Dataset(record.task, "test", images, labels, True, "/far/away/photos/test", files=files)
    return dataset, Result(record, counts=Score(0.0, 3, 9), complete=True, answers=answers)


def test_the_page_of_a_run_is_complete(record):
    dataset, result = result_of(record)
    text = page_of((dataset, [result]))
    page = Page(text)
    assert page.errors == []
    assert page.of("h1") == page.of("title")[:1] == ["PydMobileNet: pyd-add-11-0.125 on photos"]
    assert page.of("h2") == []
    assert page.of("p", "headline") == [
        "Error 33.33 % (3 of 9 images; 95 % interval 12.06 to 64.58 %), accuracy 66.67 %."
    ]
    (by_class,) = page.of("table", "classes")
    assert "cat333.350.0\ndog366.766.7\n<emu>3100.075.0" in by_class
    assert [text.rpartition("%")[2] for text in page.of("figcaption")] == [f"test/{n}<b>.jpg" for n in (7, 6, 3)]
    assert "python train.py photos" in page.of("code")
    assert "published" not in text.partition("<body>")[2]
    assert page.of("h1") + page.of("h3") == [*page.of("h1"), "Origin"]


def test_no_heading_has_a_whole_path(record):
    dataset, result = result_of(record)
    page = Page(page_of((dataset, [result]), (dataset, [result, result])))
    headings = [text for tag in ("h1", "h2", "h3", "h4", "title", "summary") for text in page.of(tag)]
    assert "PydMobileNet: 3 runs" in headings
    assert not [text for text in headings if "/far" in text]


def test_the_title_of_a_run_without_results_is_not_the_published_one(record):
    page = Page(page_of((None, [Result(record, reason="no photos")])))
    assert page.of("h1") == ["PydMobileNet: pyd-add-11-0.125 on photos"]
    assert page.of("p", "headline") == []
    assert "[1] no photos" in page.of("p")


def test_the_bundled_networks_are_no_published_ones():
    rows = [Result(record, reason="no images") for record in checkpoints.bundled()]
    assert Page(page_of((None, rows))).of("h1") == ["PydMobileNet: networks trained with this project"]


def test_the_text_of_a_run_tells_classes_confusions_and_files(record):
    dataset, result = result_of(record)
    lines = classes.markdown(dataset, result).splitlines()
    assert lines[0].startswith("Error 33.33 % (3 of 9 images;")
    assert [cell.strip() for cell in lines[6].split("|")[1:-1]] == ["cat", "3", "33.3", "50.0"]
    assert "- test/7<b>.jpg: dog, predicted cat (75.0 %)" in lines
    assert classes.markdown(dataset, dataclasses.replace(result, answers=None)) == ""
    assert "- begun 2026-01-01: python train.py photos (cpu)" in tables.markdown(dataset, [result], origins=True)


@pytest.mark.parametrize(("number", "listed", "matrix"), [(10, 10, True), (20, 20, True), (30, 20, False)])
def test_of_many_classes_the_text_lists_the_worst(record, number, listed, matrix):
    dataset, result = result_of(record)
    names = tuple(f"class{label:02}" for label in range(number))
    task = dataclasses.replace(record.task, classes=names, outputs=number)
    labels = np.repeat(np.arange(number), 30)
    wrong = np.tile(np.arange(30), number) < labels  # the later a class, the lower its recall
    answers = Answers(np.where(wrong, 0, labels).astype(np.uint16), np.ones(len(labels), np.float32))
    many = dataclasses.replace(dataset, task=task, labels=labels, files=())
    text = classes.markdown(many, dataclasses.replace(result, answers=answers))
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| class")][1 : listed + 1]
    assert rows == list(names if number <= 20 else names[:-21:-1])
    assert ("Confusion matrix" in text) == matrix
    assert ("The most frequent confusions" in text) != matrix


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_a_run_without_its_history_has_a_page_without_curves(record, damage):
    dataset, result = result_of(record)
    assert Page(page_of((dataset, [result]))).of("h4") == ["Curves", "Most confident mistakes"]
    path = record.path.parent / "last.state"
    path.unlink() if damage == "missing" else path.write_bytes(b"other")
    assert Page(page_of((dataset, [result]))).of("h4") == ["Most confident mistakes"]


def test_several_runs_are_folded_up_below_their_table(record):
    dataset, result = result_of(record)
    page = Page(page_of((dataset, [result, result])))
    assert page.errors == []
    assert len(page.of("summary")) == 2
    assert page.of("h2") == ["photos, trained with this project"]


def test_the_curves_show_errors_losses_rates_and_the_best_epoch():
    history = history_of(40)
    error, loss, rate = plots.curves(history)
    best = history.best
    assert f"best epoch, {best.epoch}: {best.error:.2f} %" in error
    assert f"best epoch, {best.epoch}" in loss
    assert "best epoch, " not in rate.partition(">")[2]
    assert [Page(text).values("aria-label") for text in (error, loss, rate)] == [
        [f"{what} of 40 epochs; the best is {best.epoch}"] for what in ("error", "loss", "learning rate")
    ]
    assert plots.curves(History()) == []


def test_the_curves_of_a_run_with_validation_images_say_so():
    rows = [epoch(n, None, test_loss=None, val_loss=1.0, val_error=30.0 - n) for n in (1, 2)]
    for text in plots.curves(History(rows=rows))[:2]:
        assert {"train", "val"} < set(Page(text).of("text"))


@pytest.mark.parametrize("value", [0.0, 5e-324, 1.7e308, math.nan])
def test_odd_histories_have_curves(value):
    columns = ("learning_rate", "train_loss", "test_loss")
    rows = [epoch(1, 0.0, train_error=0.0, **dict.fromkeys(columns, value)), epoch(2, 100.0)]
    text = "".join(plots.curves(History(rows=rows)))
    assert Page(text).errors == []
    assert "nan" not in text
    assert "inf" not in text


def test_recall_and_precision_are_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 12, 500), rng.integers(0, 13, 500)
    labels[labels == 5] = 4  # a class without images
    answers[answers == 6] = 7  # and one that nothing is taken for
    counts = confusion(labels, answers, 12)
    expected = metrics.confusion_matrix(labels, answers, labels=range(13))[:12]
    np.testing.assert_array_equal(counts, expected)
    options = {"labels": range(12), "average": None, "zero_division": np.nan}
    recall, precision = recall_precision(counts)
    np.testing.assert_allclose(recall, 100 * metrics.recall_score(labels, answers, **options))
    np.testing.assert_allclose(precision, 100 * metrics.precision_score(labels, answers, **options))


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/x/train.py", "my photos"], "python train.py 'my photos'"),
        (["/x/pydmobilenet/__main__.py", "train"], "python -m pydmobilenet train"),
        (["/x/bin/pydmobilenet", "train"], "pydmobilenet train"),
    ],
)
def test_a_command_can_be_typed_again(argv, command, monkeypatch):
    monkeypatch.setattr("sys.argv", argv)
    assert provenance.command() == command
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert provenance.command() == command.replace("python ", "torchrun --nproc-per-node 2 ")
