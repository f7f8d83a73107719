"""`compare`: the lowest error first, errors of other images apart, what is missing said, hostile names escaped."""

import csv
import io
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from helpers import commander, epoch
from test_html import Page

import pydmobilenet
from pydmobilenet import catalog
from pydmobilenet.data import get_task
from pydmobilenet.errors import MissingFileError
from pydmobilenet.metrics import wilson
from pydmobilenet.reporting import comparison
from pydmobilenet.training import results
from pydmobilenet.training.checkpoint import Run, State
from pydmobilenet.training.history import OPTIMISM, History

CONFIG = {"epochs": 3, "patience": 0, "seed": 0, "initialiser": "msra", "learning_rate": 0.1}


def make_run(directory, errors, test_error=None, digest="aa", engine="pytorch", model="pyd-add-11-0.25", **config):
    """Write the run of such errors, one an epoch; with a `test_error`, of the validation images."""
    values = {**CONFIG, **config}
    split = "test" if test_error is None else "val"
    others = {} if split == "test" else {"test_loss": None, "test_error": None, "val_loss": 1.0}
    history = History(
        rows=[epoch(number, **{**others, f"{split}_error": error}) for number, error in enumerate(errors, 1)]
    )
    images = {"images": 360, "images_per_class": [36] * 10}
    data = {"test": {**images, "sha256": digest}, **({"val": {**images, "sha256": "vv"}} if split == "val" else {})}
    task = get_task("digits")
    metadata = {
        "model": model,
        "dataset": values.pop("dataset", "digits"),
        "engine": engine,
        **{key: getattr(task, key) for key in ("classes", "outputs", "mean", "std", "image_size")},
        "config": {**values, "dataset": "digits"},
        "data": data,
        "initial_weights": {"source": f"msra, seed {values['seed']}", "sha256": str(values["seed"])},
        "sessions": [],
    }
    state = State({"x": np.zeros(1, np.float32)}, {}, {"history": history.to_dicts()})
    run = Run.create(directory, "model: x\n", state, metadata)
    if errors:
        last, best = ({"epoch": row.epoch, f"{split}_error": row.error} for row in (history.last, history.best))
        run.save(state, {"last.params": last, "best.params": best})
        if test_error and (len(errors) == values["epochs"] or values["patience"]):
            run.record("best.params", test_error=test_error)
    run.lock.release()
    return directory


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return commander(monkeypatch, capsys)


def names(group):
    return [result.directory.name for result in group.results]


def test_the_lowest_error_stands_first_with_its_interval(tmp_path):
    for name, error in (("a", 20.0), ("b", 10.0), ("c", 30.0)):
        make_run(tmp_path / name, [50.0, error, error + 1])
    compared = pydmobilenet.compare(tmp_path)
    (group,) = compared.groups
    assert names(group) == ["b", "a", "c"]
    assert [result.error for result in compared] == [10.0, 20.0, 30.0]
    assert compared[0].interval == wilson(36, 360)
    assert compared[0].parameters == catalog.describe("pyd-add-11-0.25", "digits").complexity().parameters
    text = str(compared)
    assert "Digits: test error on 360 images" in text
    assert "10.00*" in text
    assert f"Marked by *: t{OPTIMISM[1:]}" in text


def test_errors_of_other_images_are_never_in_one_table(tmp_path):
    make_run(tmp_path / "one", [30.0, 20.0, 20.0])
    make_run(tmp_path / "other-images", [30.0, 10.0, 10.0], digest="bb")
    make_run(tmp_path / "unfinished", [5.0], test_error=99)  # its only error is of validation images
    make_run(tmp_path / "none", [])
    compared = pydmobilenet.compare(tmp_path)
    assert sorted(map(names, compared.groups)) == [["none"], ["one"], ["other-images"], ["unfinished"]]
    assert [group.split for group in compared.groups] == ["test", "test", "val", ""]
    titles = [table.title for table in compared.tables()]
    assert len(set(titles)) == 4
    assert all("SHA-256" in title for title in titles[:2])
    assert "validation error" in titles[2]
    assert "The tables are of different images" in str(compared)


def test_a_test_error_measured_once_is_not_marked(tmp_path):
    make_run(tmp_path / "once", [30.0, 9.0, 10.0], test_error=12.5)
    make_run(tmp_path / "chosen", [30.0, 9.0, 10.0])
    text = str(pydmobilenet.compare(tmp_path))
    assert "12.50 " in text
    assert "9.00*" in text
    assert "The tables are of different images" not in text


@pytest.mark.parametrize(
    ("errors", "values", "finished", "shown"),
    [
        ([9, 8], {}, False, "2/3, unfinished"),
        ([9, 8, 8.5], {}, True, " 3 "),
        ([9, 8, 8.5], {"epochs": 20, "patience": 1, "test_error": 7}, True, "3/20, stopped early"),
        ([9, 8, 7], {"epochs": 20, "patience": 1, "test_error": 7}, False, "3/20, unfinished"),
        ([], {}, False, "0/3, unfinished"),
    ],
)
def test_how_far_a_run_has_come_is_shown(errors, values, finished, shown, tmp_path):
    compared = pydmobilenet.compare(make_run(tmp_path / "run", errors, **values))
    assert compared[0].finished is finished
    assert shown in str(compared)


def test_what_cannot_be_read_is_one_line_and_the_others_go_on(command, tmp_path):
    make_run(tmp_path / "runs" / "good", [9.0, 8.0, 8.5])
    for name, content in (("cut", '{"model": "pyd'), ("list", "[]"), ("forged", '{"model": "pyd-add-11-0.25"}')):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "run.json").write_text(content)
    (tmp_path / "empty").mkdir()
    code, out, err = command("compare", "runs", "empty", "rns", "runs/good")
    assert code == 1
    assert out.count("runs/good") == 1
    assert len(err.splitlines()) == 5
    assert all(line.startswith("pydmobilenet: ") for line in err.splitlines())
    for words in ("run.json does not describe a run", "empty holds no run", "no such directory; nearest: runs"):
        assert words in err
    assert "empty holds no run" in str(pydmobilenet.compare("runs", "empty"))
    code, out, err = command("compare", "empty", "rns")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "empty holds no run; cannot read rns" in err
    with pytest.raises(MissingFileError):
        pydmobilenet.compare()


@pytest.mark.parametrize("damage", ["images", "epochs", "seed", "checkpoints"])
def test_a_forged_figure_is_no_traceback(damage, command, tmp_path):
    path = make_run(tmp_path / "run", [9.0, 8.0, 8.5]) / "run.json"
    metadata = json.loads(path.read_text())
    if damage == "images":
        metadata["data"]["test"] = {"images": 0, "images_per_class": [], "sha256": ""}
    elif damage == "checkpoints":
        metadata["checkpoints"]["last.params"]["epoch"] = [3]
    else:
        metadata["config"][damage] = ["x"]
    path.write_text(json.dumps(metadata))
    code, _, err = command("compare", "run")
    assert code == (0 if damage == "images" else 2)
    assert len(err.splitlines()) <= 1


def test_csv_has_every_figure_and_exact_names(command, tmp_path):
    make_run(tmp_path / "a, b", [9.0, 8.0, 8.5], test_error=7.5)
    code, out, err = command("compare", "a, b", "--csv")
    assert (code, err) == (0, "")
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["run"] == "a, b"
    assert (row["split"], row["error"], row["last_val_error"], row["best_val_error"]) == ("test", "7.5", "8.5", "8.0")
    assert (row["images"], row["images_sha256"], row["optimistic"], row["finished"]) == ("360", "aa", "False", "True")


def test_moving_averages_have_a_mean_over_seeds_too(tmp_path):
    for seed, error in enumerate([6.0, 8.0]):
        path = make_run(tmp_path / f"s{seed}", [10.0, 9.0, 9.0], test_error=9.5, seed=seed) / "run.json"
        metadata = json.loads(path.read_text())
        metadata["checkpoints"]["ema.params"] = {"epoch": 2, "sha256": "ee", "test_error": error}
        path.write_text(json.dumps(metadata))
    compared = pydmobilenet.compare(tmp_path)
    assert compared.seeds[0].spreads[results.Figure("ema", "test")].mean == 7
    assert "moving average," in str(compared)


def test_runs_that_differ_by_their_seed_have_a_mean(tmp_path):
    errors = [10.0, 12.0, 17.0]
    for seed, error in enumerate(errors):
        make_run(tmp_path / f"s{seed}", [50.0, error, error + 1], seed=seed)
    make_run(tmp_path / "again", [50.0, 40.0, 41.0], seed=0)  # in order of the names, the first of this seed
    make_run(tmp_path / "other", [50.0, 40.0, 41.0], seed=3, learning_rate=0.2)
    make_run(tmp_path / "engine", [50.0, 40.0, 41.0], seed=4, engine="gluon")
    make_run(tmp_path / "unfinished", [50.0, 40.0], seed=5)
    make_run(tmp_path / "images", [50.0, 40.0, 41.0], seed=6, digest="bb")
    compared = pydmobilenet.compare(*(tmp_path / name for name in ("s1", "s0", "s2", "other", "engine", "unfinished")))
    ((members, spreads),) = compared.seeds
    assert [result.seed for result in members] == [0, 1, 2]
    spread = spreads[results.Figure("last", "test")]
    assert spread == (statistics.mean([11, 13, 18]), statistics.stdev([11, 13, 18]), 3)
    assert spreads[results.Figure("best", "test")].mean == 13
    assert "13.00 ± 3.61" in str(compared)
    ((members, _),) = pydmobilenet.compare(tmp_path).seeds
    assert [result.directory.name for result in members][1:] == ["s1", "s2"]
    assert len(members) == 3


def test_no_line_joins_runs_of_several_recipes(tmp_path):
    joined = []
    for rate in (0.1, 0.2):
        make_run(tmp_path / f"rate-{rate}", [50.0, 20.0, 21.0], learning_rate=rate)
        (group,) = pydmobilenet.compare(tmp_path).groups
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comparison.plots, "cost_plots", lambda points, *_: joined.extend(points) or [])
            comparison.Section(group, group.table())
    assert [point.joined for point in joined] == [True, False, False]


HOSTILE = '<script>alert("1")</script>$x$ & \n_b"'


def test_hostile_names_are_escaped_on_the_page(tmp_path):
    make_run(tmp_path / HOSTILE.replace("/", "|"), [30.0, 20.0, 20.0])
    make_run(tmp_path / "_hidden", [30.0, 20.0, 25.0], dataset="folder:/x/<b>photos")
    output = tmp_path / "page"
    pydmobilenet.compare(tmp_path, output=output)
    text = (output / "comparison.html").read_text()
    page = Page(text)
    assert page.errors == []
    assert not page.of("script")
    assert not page.of("b")
    assert sum("<script>alert" in name for name in page.of("th")) == 1
    assert any("<script>alert" in title for title in page.of("title"))  # the tooltip of its curve
    assert sorted(path.name for path in output.iterdir()) == ["comparison.csv", "comparison.html", "comparison.md"]


def test_the_page_has_the_published_curve_beside_runs_of_that_data(tmp_path):
    make_run(tmp_path / "run", [30.0, 20.0, 20.0], dataset="cifar10", model="pyd-add-29-0.25")
    pydmobilenet.compare(tmp_path / "run", output=tmp_path / "page")
    page = Page((tmp_path / "page" / "comparison.html").read_text())
    titles = page.of("title")
    published = catalog.find("pyd-add-29-1", "cifar10")
    assert any("pyd-add-29-1: 6.00 % published" in title for title in titles)
    assert published.top1_error == 6.0
    assert not any("-56-" in title.partition(":")[0] for title in titles)
    assert "published figures, of the best test epoch" in " ".join(page.of("p", "key"))


def test_a_directory_that_cannot_be_written_is_one_line(command, tmp_path):
    make_run(tmp_path / "run", [30.0, 20.0, 20.0])
    (tmp_path / "file").write_text("")
    code, _, err = command("compare", "run", "--output", "file")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "cannot make the directory file" in err


def test_runs_with_and_without_a_teacher_have_no_common_mean(tmp_path):
    plain, taught = (make_run(tmp_path / name, [30.0, 20.0, 20.0], seed=seed) for seed, name in enumerate("ab"))
    assert len(pydmobilenet.compare(plain, taught).seeds) == 1
    metadata = json.loads((taught / "run.json").read_text())
    (taught / "run.json").write_text(json.dumps({**metadata, "teacher": {"sha256": "cc"}}))
    assert pydmobilenet.compare(plain, taught).seeds == []


def test_runs_with_relative_and_absolute_paths_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"), [30.0, 20.0, 20.0], seed=0)
    make_run(tmp_path / "other|b", [30.0, 20.0, 20.0], seed=1)
    text = str(pydmobilenet.compare("a", tmp_path / "other|b"))
    assert "n - 1" in text
    assert r"other\|b" in text
