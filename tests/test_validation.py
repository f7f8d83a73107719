"""The arithmetic of validation, its verdicts and exit codes, and the tables."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from pydmobilenet import catalog, validation
from pydmobilenet.data import Dataset, get_task
from pydmobilenet.errors import BadFileError, UnusableError
from pydmobilenet.metrics import Score, count_wrong, evaluate, wilson
from pydmobilenet.network import Complexity
from pydmobilenet.reporting import tables as report
from pydmobilenet.validation import Result, exit_code

RECORD = catalog.find("pyd-concat-56-0.75", "cifar10")  # 4.72 %


def result(wrong=None, images=10_000, complete=True, record=RECORD, **options):
    counts = None if wrong is None else Score(0.0, wrong, images)
    return Result(record, record.exact, counts, complete=complete and wrong is not None, **options)


def dataset(labels, name="cifar10", official=True):
    images = np.zeros((len(labels), 3, 32, 32), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))  # so that a fake network can tell them apart
    return Dataset(get_task(name), "test", images, np.asarray(labels, np.int64), official, "here")


def test_wrong_answers_are_counted_as_by_sorting():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((500, 10)), rng.integers(0, 10, 500)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = (order[:, 0] != labels).sum(), (order[:, :5] != labels[:, None]).all(axis=1).sum()
    assert count_wrong(logits, labels) == expected


def test_of_equal_logits_the_lower_class_wins():
    logits = np.zeros((10, 10))
    assert count_wrong(logits, np.arange(10)) == (9, 5)
    assert (logits.argmax(axis=1) == 0).all()


def test_an_answer_that_is_not_a_number_is_wrong():
    logits = np.eye(3)[[0, 1, 2]]
    logits[0, 0], logits[1, 2], logits[2, 0] = np.nan, np.inf, np.nan
    assert count_wrong(logits, np.array([0, 1, 2])) == (3, 3)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
@pytest.mark.parametrize("limit", [None, 5, 20, 99])
def test_every_image_is_answered_once_whatever_the_batch(batch_size, limit):
    seen = []

    def predict(images):
        seen.append(len(images))
        return np.eye(10)[np.zeros(len(images), int)]  # always class 0

    counts = evaluate(predict, dataset(np.arange(20) % 10).head(limit), batch_size)
    images = min(limit or 20, 20)
    assert sum(seen) == counts.images == images
    assert max(seen) <= batch_size
    assert counts.wrong == images - (images + 9) // 10


@pytest.mark.parametrize(("wrong", "images"), [(0, 10), (1, 10), (71, 1000), (472, 10_000), (1000, 1000)])
def test_wilsons_bounds_are_where_the_observed_rate_is_just_1_96_standard_errors_off(wrong, images):
    for bound in wilson(wrong, images):
        rate = bound / 100
        error = np.sqrt(rate * (1 - rate) / images)
        assert abs(wrong / images - rate) == pytest.approx(1.959964 * error, abs=1e-9)
    low, high = wilson(wrong, images)
    assert low <= 100 * wrong / images <= high


@pytest.mark.parametrize(
    ("row", "verdict", "differs"),
    [
        (result(472), "match", False),
        (result(477), "match", False),
        (result(467), "match", False),
        (result(478), "differs", True),
        (result(466), "differs", True),
        (result(41, 1000, complete=False), "not judged, in interval", False),
        (result(90, 1000, complete=False), "not judged, off interval", False),
        (result(reason="no file"), "not evaluated", False),
        (Result(RECORD, Complexity(489_089, RECORD.exact.multiply_adds)), "differs: counts", True),
        (Result(RECORD, Complexity(RECORD.exact.parameters, 1)), "differs: counts", True),
    ],
)
def test_verdicts(row, verdict, differs):
    assert (row.verdict, row.differs) == (verdict, differs)


def test_top5_is_judged_where_it_was_published():
    record = catalog.find("pyd-concat-56-0.25", "imagenet32")  # 48.18 and 23.70
    right = Result(record, record.exact, Score(0.0, 24_090, 50_000, 11_850), complete=True)
    assert right.verdict == "match"
    wrong = Result(record, record.exact, Score(0.0, 24_090, 50_000, 11_950), complete=True)
    assert wrong.verdict == "differs"


@pytest.mark.parametrize(
    ("rows", "require_all", "code"),
    [
        ([result(472)], False, 0),
        ([result(472), result()], False, 0),
        ([result(472), result()], True, 1),
        ([result(472), result(600)], False, 1),
        ([result(900, 1000, complete=False)], False, 0),
        ([result(), result()], False, 3),
        ([result(), result()], True, 1),
    ],
)
def test_exit_codes(rows, require_all, code):
    assert exit_code(rows, require_all) == code


def itself(record):
    """In the place of a record's weights."""
    return record


class FakeEngine:
    """Answers as told: {model: class that it always answers, or an error}."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}

    batch_size = 50

    def load(self, network, record):
        answer = self.answers.get(record.model, 0)
        if isinstance(answer, Exception):
            raise answer
        return lambda images: np.eye(10)[np.full(len(images), answer)]


def test_one_bad_row_does_not_stop_the_others(monkeypatch):
    monkeypatch.setattr(validation, "get_dataset", lambda *_, **__: dataset(np.arange(10)))
    records = catalog.select(["resnet-*", "pyd-add-29-1"], ["cifar10"])
    engine = FakeEngine()
    for error, reason in ((BadFileError("damaged"), "damaged"), (MemoryError("a\nb"), "MemoryError: a b")):
        engine.answers["pyd-add-29-1"] = error
        ((_, rows),) = validation.validate(records, engine, itself)
        assert [row.verdict for row in rows] == ["differs", "not evaluated", "differs"]
        assert rows[1].reason == reason
        assert rows[0].error == 90


def test_data_that_cannot_be_had_is_asked_for_once_a_data_set(monkeypatch):
    asked = []

    def nowhere(name, *_, **__):
        asked.append(name)
        raise BadFileError(f"no {name}")

    monkeypatch.setattr(validation, "get_dataset", nowhere)
    tables = list(validation.validate(catalog.select(), FakeEngine(), itself))
    assert asked == ["cifar10", "cifar100-coarse", "imagenet32"]
    assert all(row.complexity and row.counts is None and row.reason for _, rows in tables for row in rows)
    assert {row.reason for row in tables[2][1]} == {"no checkpoint is published", "no imagenet32"}


def test_unofficial_or_partial_data_informs_and_does_not_judge(monkeypatch):
    records = catalog.select(["resnet-29-*"], ["cifar10"])
    for official, limit in ((False, None), (True, 5)):
        monkeypatch.setattr(validation, "get_dataset", lambda *_, o=official, **__: dataset(np.arange(10), official=o))
        ((_, (row,)),) = validation.validate(records, FakeEngine(), itself, limit=limit)
        assert not row.complete
        assert exit_code([row]) == 0


def test_the_table_shows_what_was_measured_beside_what_was_published():
    rows = [result(480), result(reason="the file is damaged")]
    table = report.markdown(dataset(np.arange(10)), rows)
    first = [cell.strip() for cell in table.splitlines()[4].split("|")[1:-1]]
    assert first == ["pyd-concat-56-0.75", "0.489088", "0.489", "81.55", "79", "4.80", "4.72", "+0.08", "differs"]
    assert "not evaluated [1]" in table
    assert "[1] the file is damaged" in table
    assert "official test set" in table
    assert len({len(line) for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (None, 9),
        (200, 9),
        (80, 5),
        (62, 4),
        (20, 4),
    ],
)
def test_a_narrow_table_leaves_out_what_is_needed_least(width, columns):
    table = report.markdown(dataset(np.arange(10)), [result(480)], width)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0].count("|") - 1 == columns
    for cell in ("pyd-concat-56-0.75", "4.80", "4.72", "differs"):
        assert cell in lines[2]
    if width and width > 60:
        assert max(map(len, lines)) <= width


def test_a_summary_counts_the_verdicts_and_names_what_differs():
    wide = catalog.find("wrn-28-2", "imagenet32")
    top5 = catalog.find("pyd-concat-56-0.25", "imagenet32")
    rows = [result(472), result(480), result(reason="no file"), Result(RECORD, Complexity(489_089, 1))]
    rows += [
        Result(RECORD, Complexity(489_089, 1), Score(0.0, 472, 10_000), complete=True),
        Result(wide, Complexity(1_700_000, 1)),
        Result(top5, top5.exact, Score(0.0, 24_090, 50_000, 11_950), complete=True),
    ]
    counts = "489,089 parameters and 1 multiply-adds, expected 489,088 and 81,548,544"
    counts = f"pyd-concat-56-0.75: {counts}: differs: counts"
    assert report.summary(rows).splitlines() == [
        "CIFAR-10: 1 match, 2 differs, 1 not evaluated, 3 differs: counts",
        "pyd-concat-56-0.75: 4.80 %, expected 4.72 %: differs",
        counts,
        counts,
        "wrn-28-2: 1,700,000 parameters and 1 multiply-adds, expected 1.6 M parameters: differs: counts",
        "pyd-concat-56-0.25: 48.18 %, top-5 23.90 %, expected 48.18 % and 23.70 %: differs",
    ]


def test_the_table_of_other_data_says_so():
    table = report.markdown(dataset(np.arange(10), official=False), [result(41, 1000, complete=False)])
    assert "**These are not the official test images**" in table
    assert "3.04 to 5.51" in table
    assert "in interval" in table


def test_the_table_of_a_folder_of_images_says_what_can_be_shown_to_be_official():
    doubted = dataclasses.replace(dataset(np.arange(10), official=False), doubt="it is a folder; what can is a file")
    table = report.markdown(doubted, [result(41, 1000, complete=False)])
    assert "**These are not the official test images** (it is a folder; what can is a file): the interval" in table


def test_of_imagenet32_the_size_alone_is_official():
    record = catalog.find("pyd-concat-56-0.5", "imagenet32")
    row = Result(record, record.exact, Score(0.0, 0, 1), complete=True)
    assert "Measured on a test set of the official size, 1 of 1" in report.markdown(dataset([0], "imagenet32"), [row])
    assert "official size" not in report.markdown(dataset(np.arange(10)), [result(472)])


def test_the_cifar100_table_says_that_its_labels_are_superclasses():
    record = catalog.find("resnet-29-0.5", "cifar100-coarse")
    table = report.markdown(None, [Result(record, record.exact, reason="no data")])
    assert table.startswith("## CIFAR-100, 20 superclasses")
    assert "20 superclasses, as in the published CIFAR-100 column, not the 100 classes" in table


def test_the_imagenet32_table_has_top5():
    record = catalog.find("pyd-concat-56-0.5", "imagenet32")
    row = Result(record, record.exact, Score(0.0, 22_350, 50_000, 10_290), complete=True)
    table = report.markdown(dataset([0], "imagenet32"), [row])
    assert [cell.strip() for cell in table.splitlines()[4].split("|")[5:-1]] == [
        *("", "44.70", "44.70", "20.58", "20.58", "+0.00 / +0.00", "match")
    ]
    assert "44.27" in table  # what the authors' file name says


def test_reports_are_written_as_markdown_csv_json_and_a_page(tmp_path):
    rows = [result(472), result(reason="no, file")]
    (tmp_path / "out").mkdir()
    report.write(tmp_path / "out", ["## table"], rows, "<p>page</p>")
    assert (tmp_path / "out" / "validation.md").read_text() == "## table"
    assert (tmp_path / "out" / "report.html").read_text() == "<p>page</p>"
    content = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert content[0]["top1_error"] == 4.72
    assert content[0]["published_top1_error"] == 4.72
    assert content[1]["top1_error"] is None
    with open(tmp_path / "out" / "validation.csv") as file:
        table = list(csv.DictReader(file))
    assert table[0]["wrong"] == "472"
    assert table[1]["reason"] == "no, file"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(report.FILES)


def test_a_report_to_nowhere_is_refused(tmp_path):
    with pytest.raises(UnusableError, match=f"cannot write {tmp_path}/out"):
        report.write(tmp_path / "out", ["## table"], [result(472)], "")
