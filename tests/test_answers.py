"""The answers for single images: written, compared with earlier ones, of mirror images, in batches of any size."""

import csv
import dataclasses
import json
import math

import numpy as np
import oracle
import pytest
from helpers import commander

import pydmobilenet
from pydmobilenet import answers, catalog, metrics, validation
from pydmobilenet import engine as engines
from pydmobilenet.data import Dataset, get_task
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError, UnusableError
from pydmobilenet.metrics import NO_CLASS, Answers, Score, mcnemar
from pydmobilenet.reporting import html, tables
from pydmobilenet.validation import Result

RECORD = catalog.find("pyd-add-29-0.25", "cifar10")
ENGINES = [
    pytest.param("gluon", marks=pytest.mark.gluon),
    pytest.param("pytorch", marks=pytest.mark.pytorch),
    "onnxruntime",
]


def dataset(labels=range(10), name="cifar10", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, 32, 32), np.uint8)
    return Dataset(get_task(name), "test", pixels, np.array(labels, np.int64), True, "here", **options)


def given(*classes):
    return Answers(np.array(classes, np.uint16), np.linspace(0, 1, len(classes), dtype=np.float32))


def write(path, data, *networks):
    text = answers.to_csv(data, networks)
    path.write_bytes((answers.HEADER + text).encode())
    return path


# McNemar's exact test


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1), (3, 3, 1), (5, 0, 1 / 16), (0, 6, 1 / 32), (1, 7, 9 / 128)]
)
def test_mcnemar_is_the_binomial_test_of_equal_odds(lost, gained, p):
    assert mcnemar(lost, gained) == p
    n = lost + gained
    tails = [math.comb(n, i) for i in range(n + 1) if abs(i - n / 2) >= abs(lost - n / 2)]  # at least as far off
    assert mcnemar(lost, gained) == min(1, sum(tails) / 2**n)


def test_mcnemar_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for lost, gained in ((29, 46), (400, 300), (1, 900), (5_000, 5_001)):
        assert mcnemar(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=1e-9)
    assert mcnemar(0, 5_000) == 0  # below the smallest number
    assert str(answers.Change("net", 5_000, 5_000, 0, 5_000)).endswith("p < 1e-300")


# The file


def test_answers_are_a_row_for_each_image_of_each_network(tmp_path):
    labels, files = [3, 0, 1], ("a/1\r.png", 'b/"x",\n=1.png', "c/\udce9.png")
    data = dataset(labels, files=files, hashes=("aa", "bb", "cc"))
    other = catalog.find("resnet-29-0.5", "cifar10")
    path = write(tmp_path / "answers.csv", data, (RECORD, given(3, 1, NO_CLASS)), (other, given(0, 0, 1)))
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == 3 * ["pyd-add-29-0.25"] + 3 * ["resnet-29-0.5"]
    assert [row["index"] for row in rows] == 2 * ["0", "1", "2"]
    assert [row["file"] for row in rows[:3]] == [files[0], files[1], "c/\\udce9.png"]
    assert [(row["label"], row["class"], row["confidence"]) for row in rows[:3]] == [
        ("3", "3", "0.000000"),
        ("0", "1", "0.500000"),
        ("1", "", "1.000000"),
    ]
    first, second = answers.read(path).networks
    assert (first.classes, second.classes) == ([3, 1, NO_CLASS], [0, 0, 1])
    assert first.hashes == ["aa", "bb", "cc"]


def test_images_without_files_have_the_hashes_of_their_pixels(tmp_path):
    data = dataset()
    (network,) = answers.read(write(tmp_path / "answers.csv", data, (RECORD, given(*range(10))))).networks
    assert len({*network.hashes}) == 10
    other = dataclasses.replace(data, images=data.images ^ 1)  # the same labels
    with pytest.raises(BadFileError, match="not of these images of CIFAR-10: it has other images, labels or another"):
        answers.read(tmp_path / "answers.csv").of(other, [RECORD])


def test_the_answers_of_the_first_images_are_of_these(tmp_path):
    data = dataset()
    path = write(tmp_path / "answers.csv", data, (RECORD, given(0, 1, 2)))
    assert answers.read(path).of(data.head(3), [RECORD]).change(RECORD, given(0, 1, 9)).changed == 1


GOOD = "cifar10,pyd-add-29-0.25,,0,,ab,3,5,0.5\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "its columns are not dataset, model, "),
        (b"image,class,probability\na,b,1\n", "its columns are not dataset, model, "),
        (b"\x00\xff\xfe", "codec can't decode"),
        (GOOD.replace("ab,3", "ab"), "line 2"),
        (GOOD.replace("0.5", "0.5,1"), "line 2"),
        (GOOD.replace(",3,", ",three,"), "line 2"),
        (GOOD.replace(",3,", ",-1,"), "line 2"),
        (GOOD.replace(",5,", ",65536,"), "line 2"),
        (GOOD.replace(",5,", f",{'9' * 5000},"), "line 2"),
        (GOOD.replace("0.5", "nan"), "line 2"),
        (GOOD.replace("0.5", "-inf"), "line 2"),
        (GOOD.replace(",0,", ",1,"), "line 2"),  # the first rows are missing
        (GOOD + GOOD.replace(",0,", ",2,"), "line 3"),  # a row is missing
        (GOOD + GOOD.replace(",0,", ",1,").replace("add", "concat"), "line 3"),
        (GOOD.replace(",ab,", ',"ab,'), "unexpected end of data"),
        (GOOD.replace(",ab,", f",{'a' * 200_000},"), "field larger than field limit"),
    ],
)
def test_a_damaged_file_of_answers_is_one_line(tmp_path, content, words):
    header = answers.HEADER if isinstance(content, str) else ""
    (tmp_path / "x.csv").write_bytes(content if isinstance(content, bytes) else (header + content).encode())
    with pytest.raises(BadFileError, match=words) as caught:
        answers.read(tmp_path / "x.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'x.csv'} is no answers.csv of validate --output: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_is_no_file_of_answers_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.csv"):
        with pytest.raises(MissingFileError, match="no such file of answers"):
            answers.read(path)


def test_a_file_saved_by_a_spreadsheet_is_read(tmp_path):
    text = answers.HEADER + GOOD
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    assert answers.read(tmp_path / "x.csv").networks[0].labels == [3]


# The comparison


def test_changes_are_counted_image_by_image(tmp_path):
    data = dataset([0, 1, 2, 3, 4, 5])
    before, now = given(0, 1, 9, 9, 9, NO_CLASS), given(0, 9, 2, 3, 8, NO_CLASS)
    earlier = answers.read(write(tmp_path / "answers.csv", data, (RECORD, before))).of(data, [RECORD])
    change = earlier.change(RECORD, now)
    assert change == ("pyd-add-29-0.25", 6, 4, 1, 2)
    assert change.p == mcnemar(1, 2) == 1
    assert str(change) == "4 of 6 answers changed, 1 from right to wrong, 2 from wrong to right, p = 1"
    assert str(earlier.change(RECORD, before)) == "0 of 6 answers changed"


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, 1], "it has 3 images, not 2"), ([0, 1, 3], "other images, labels or another order"), ([], "3 images, not 0")],
)
def test_earlier_answers_of_other_images_are_refused(tmp_path, labels, words):
    earlier = answers.read(write(tmp_path / "answers.csv", dataset([0, 1, 2]), (RECORD, given(0, 0, 0))))
    with pytest.raises(BadFileError, match=words):
        earlier.of(dataset(labels), [RECORD])


def test_a_network_is_compared_with_itself_or_with_the_only_one(tmp_path):
    data, other = dataset([0]), catalog.find("resnet-29-0.5", "cifar10")
    third = catalog.find("mobilenet-29-1", "cifar10")
    both = answers.read(write(tmp_path / "both.csv", data, (RECORD, given(0)), (other, given(1))))
    assert both.change(other, given(0)) == ("resnet-29-0.5", 1, 1, 0, 1)
    assert both.change(third, given(0)) is None
    assert both.of(data, [third, other]).networks == both.networks
    with pytest.raises(BadFileError, match=r"has the answers of pyd-add-29-0\.25, resnet-29-0\.5: it is unclear which"):
        both.of(data, [third])
    one = answers.read(write(tmp_path / "one.csv", data, (RECORD, given(0))))
    assert one.of(data, [third]).change(third, given(1)) == ("pyd-add-29-0.25", 1, 1, 1, 0)


def test_of_several_networks_in_a_file_none_is_the_only_one(tmp_path):
    data, other = dataset([0, 1]), catalog.find("resnet-29-0.5", "cifar10")
    path = write(tmp_path / "cut.csv", data, (RECORD, given(0, 1)), (other, given(1, 1)))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))  # the other one lacks an image
    with pytest.raises(BadFileError, match="it is unclear which"):
        answers.read(path).of(data, [other])


def test_runs_of_the_same_seed_keep_apart(tmp_path):
    data = dataset([0])
    runs = [dataclasses.replace(RECORD, path=tmp_path / name / "seed-0" / "best.params") for name in "ab"]
    earlier = answers.read(write(tmp_path / "answers.csv", data, *zip(runs, [given(0), given(1)])))
    assert [earlier.of(data, runs).change(run, given(0)).changed for run in runs] == [0, 1]


def test_of_two_runs_of_a_model_the_one_at_the_same_path_is_meant(tmp_path):
    data = dataset([0])
    runs = [dataclasses.replace(RECORD, path=tmp_path / name / "best.params") for name in "abc"]
    earlier = answers.read(write(tmp_path / "answers.csv", data, *zip(runs, [given(0), given(1)])))
    assert [earlier.change(run, given(0)) and earlier.change(run, given(0)).changed for run in runs] == [0, 1, None]
    same = answers.read(write(tmp_path / "same.csv", data, (runs[0], given(0)), (runs[0], given(1))))
    assert same.change(runs[0], given(0)) is None  # it cannot tell them apart


class Fake:
    """An engine whose networks take the class from the first pixel of an image."""

    batch_size = 4

    def load(self, network, arrays):
        return lambda images: np.eye(10)[np.rint(images[:, 0, 0, 0]).astype(int) % 10]


def fake_data(first, last, labels):
    """Images whose first and last pixel, of the first row, a `Fake` network answers with."""
    data = dataset(labels)
    task = dataclasses.replace(data.task, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    data.images[:, 0, 0, 0], data.images[:, 0, 0, -1] = first, last
    return dataclasses.replace(data, task=task, official=True)


def evaluate(monkeypatch, data, record=RECORD, **options):
    monkeypatch.setattr(validation, "get_dataset", lambda *_, **__: data)
    ((_, results),) = validation.validate([record], Fake(), lambda record: {}, keep_answers=True, **options)
    return results


def test_the_mirror_column_is_beside_the_error_and_never_in_the_verdict(monkeypatch):
    data = fake_data([0, 1, 7, 7, 4, 5], [0, 1, 2, 3, 9, 1], [0, 1, 2, 3, 4, 5])
    (plain,) = evaluate(monkeypatch, data)
    (result,) = evaluate(monkeypatch, data, mirror=True)
    assert plain.mirror_error is None
    # Of 7 and 2, or of 7 and 3, the lower class wins; of 4 and 9 too; of 5 and 1 it is wrong.
    assert (result.counts.wrong, result.counts.wrong_mirror) == (2, 1)
    assert result.mirror_error == pytest.approx(100 / 6)
    assert (result.error, result.verdict, result.differs) == (plain.error, plain.verdict, plain.differs)
    table = tables.markdown(data, [result])
    assert "|   mirror, % | verdict" in table
    assert "|       16.67 | differs" in table
    assert "mirror" not in tables.markdown(data, [plain])
    assert tables.summary([result]).endswith(": 16.67 % with mirror images, 33.33 % without")
    assert tables.to_dict(result)["mirror_error"] == result.mirror_error


def test_mirror_images_are_averaged_by_softmax():
    """The means: of the probabilities 0.44, 0.19, 0.37, and of the logits -2.5, 3, -3."""
    logits = {True: np.array([[5.0, 3.0, -10.0]]), False: np.array([[-10.0, 3.0, 4.0]])}
    for label, wrong in ((0, 0), (1, 1)):
        data = fake_data([1], [0], [label])
        score = metrics.evaluate(lambda batch: logits[bool(batch[0, 0, 0, 0] == 1)], data, 1, mirror=True)
        assert score.wrong_mirror == wrong
    score = metrics.evaluate(lambda batch: np.full((1, 10), np.nan), data, 1, mirror=True)
    assert (score.wrong, score.wrong_mirror) == (1, 1)


def test_digits_are_not_mirrored(monkeypatch):
    with pytest.raises(InvalidValueError, match="digits has no mirror images: leave out mirror"):
        pydmobilenet.validate("pyd-add-29-0.25", "digits", mirror=True, engine="onnxruntime", progress=False)


def test_answers_are_checked_before_a_network_is_evaluated(monkeypatch, tmp_path):
    data = fake_data([0, 1], [0, 1], [0, 1])
    earlier = answers.read(write(tmp_path / "answers.csv", data, (RECORD, given(0, 5))))
    (result,) = evaluate(monkeypatch, data, earlier=earlier)
    assert result.change == ("pyd-add-29-0.25", 2, 1, 0, 1)
    monkeypatch.setattr(Fake, "load", None)
    with pytest.raises(BadFileError, match="2 images, not 1"):
        evaluate(monkeypatch, data, earlier=earlier, limit=1)


def test_changes_are_in_the_table_the_summary_the_page_and_the_fields(tmp_path):
    data = dataset([0, 1])
    other = catalog.find("resnet-29-0.5", "cifar10")
    change = answers.Change("<b>\x1b", 2, 1, 0, 1)
    rows = [Result(RECORD, RECORD.exact, Score(0, 1, 2), answers=given(0, 2), change=change)]
    rows.append(Result(other, other.exact, Score(0, 1, 2), answers=given(0, 2)))
    line = (
        "pyd-add-29-0.25, before <b>\\x1b: 1 of 2 answers changed, 0 from right to wrong, 1 from wrong to right, p = 1"
    )
    missing = "resnet-29-0.5: not in the file of earlier answers"
    assert f"\n\n- {line}\n- {missing}\n" in tables.markdown(data, rows)
    assert tables.summary(rows).endswith(f"\n{line}\n{missing}")
    page = html.page([html.Section(data, rows, 0)], rows)
    assert f"<li>{line.replace('<b>', '&lt;b&gt;')}</li>" in page
    fields = tables.to_dict(rows[0])
    assert [fields[name] for name in ("changed", "right_to_wrong", "wrong_to_right", "mcnemar_p")] == [1, 0, 1, 1]
    assert tables.to_dict(rows[1])["mcnemar_p"] is None


# The commands


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    options = {"limit": 40, "engine": "onnxruntime", "progress": False, "output": path}
    pydmobilenet.validate("pyd-add-29-0.25", "digits", **options)
    return path


def test_a_report_has_the_answers_and_timm_s_columns(directory):
    assert sorted(path.name for path in directory.iterdir()) == sorted(tables.FILES)
    with open(directory / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row)[:9] == [
        *("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation")
    ]
    (fields,) = json.loads((directory / "validation.json").read_text())
    assert float(row["top1_err"]) == fields["top1_error"]
    assert float(row["top1"]) == 100 - fields["top1_error"]
    assert (row["model"], row["img_size"], row["crop_pct"]) == ("pyd-add-29-0.25", "32", "1.0")
    assert (row["param_count"], row["dataset"]) == ("0.059592", "digits")
    (network,) = answers.read(directory / "answers.csv").networks
    assert len(network.labels) == fields["images"] == 40
    assert sum(answer != label for answer, label in zip(network.classes, network.labels)) == fields["wrong"]


@pytest.mark.parametrize("name", ["answers.csv", "results.csv"])
def test_a_report_overwrites_no_table_of_somebody_else(directory, tmp_path, name):
    html.Report(directory)  # its own
    (tmp_path / name).write_text("image,class,probability\n")
    with pytest.raises(UnusableError, match=f"{name} is not of a report: choose another directory"):
        html.Report(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnusableError):
        html.Report(tmp_path)


def test_the_command_compares_with_an_earlier_report(directory, monkeypatch, capsys, tmp_path):
    call = commander(monkeypatch, capsys)
    digits = ("validate", "-d", "digits", "-m", "pyd-add-29-0.25", "--engine", "onnxruntime")
    against = ("--against", directory / "answers.csv")
    code, out, _ = call(*digits, "--limit", "40", *against, "--output", tmp_path / "new")
    line = "pyd-add-29-0.25 (pretrained/digits-pyd-add-29-0.25.params): 0 of 40 answers changed"
    assert code == 0
    assert f"\n- {line}\n" in out
    assert f"\n- {line}\n" in (tmp_path / "new" / "validation.md").read_text()
    assert (tmp_path / "new" / "answers.csv").read_bytes() == (directory / "answers.csv").read_bytes()
    for words, message in (
        (against, "is not of these images of Digits: it has 40 images, not 360"),
        (("--against", tmp_path / "none.csv"), f"no such file of answers: {tmp_path / 'none.csv'}"),
        (("--against", directory / "validation.csv"), "is no answers.csv of validate --output: its columns are not"),
        (("--mirror",), "digits has no mirror images"),
    ):
        code, out, err = call(*digits, "-q", *words)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert message in err


# Batches


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "model", ["resnet-11-0.25", "mobilenet-11-0.25", "pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-1"]
)
def test_the_logits_of_an_image_do_not_depend_on_its_batch(model, engine):
    """Measured: 8.2e-7 of the largest logit in Gluon, 5.1e-7 in PyTorch, 0 in ONNX Runtime."""
    network = catalog.describe(model, "cifar10")
    predict = engines.choose(engine, "cpu").engine.load(network, oracle.random_arrays(network))
    images = np.random.default_rng(0).standard_normal((128, 3, 32, 32)).astype(np.float32)
    expected = np.array(predict(images))
    for size in (1, 10, 25):
        logits = np.concatenate([predict(images[start : start + size]) for start in range(0, 128, size)])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
