"""Nothing that a run has learned, or chosen its epoch by, is ever tested on: not by it, and not by those after it."""

import json
import shutil

import pytest
from helpers import MODEL, assert_mistake, commander, make_classes, options, runner

import pydmobilenet
from pydmobilenet import checkpoints
from pydmobilenet.checkpoints import runs
from pydmobilenet.data import get_splits
from pydmobilenet.data.splits import DEFAULT
from pydmobilenet.training.loop import Loop

pytestmark = pytest.mark.trains

WORDS = "does not record its images: it may have seen test images"
VALUES = {"model": MODEL, "batch_size": 8, "epochs": 1, "warmup_epochs": 0, "device": "cpu"}


@pytest.fixture
def train(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@pytest.fixture
def call(monkeypatch, capsys):
    return commander(monkeypatch, capsys)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Class folders alone, a run on them, and twice as many pictures of the same classes."""
    place = tmp_path_factory.mktemp("learned")
    make_classes(place / "grown", "abc", {".": 30})
    half = shutil.ignore_patterns("1[5-9].png", "2?.png")
    shutil.copytree(place / "grown", place / "photos", ignore=half)
    run = pydmobilenet.train(dataset=place / "photos", output=place / "run", progress=False, **VALUES)
    return place / "photos", run.directory, place / "grown"


@pytest.fixture
def run(learned, tmp_path):
    """A copy of the run."""
    return shutil.copytree(learned[1], tmp_path / "run")


@pytest.fixture
def started(train, tmp_path, monkeypatch):
    """Begin a run, of which no epoch is trained: its answer, and what it records."""

    def start(data, *arguments):
        monkeypatch.setattr(Loop, "run", lambda self: 143)
        values = options({**VALUES, "body_rate": 1})
        answer = train(data, "--output", tmp_path / "next", *values, *arguments)
        recorded = tmp_path / "next" / "run.json"
        return answer, json.loads(recorded.read_text()) if recorded.exists() else {}

    return start


def told(recwarn):
    """What was warned of runs and their images since it was asked last."""
    found = [str(each.message) for each in recwarn if "images" in str(each.message)]
    recwarn.clear()
    return found


def change(run, **values):
    """Change what a run records; without a value, as version 0.4 had it."""
    metadata = json.loads((run / "run.json").read_text())
    metadata.update(values)
    (run / "run.json").write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def test_a_run_records_the_images_that_it_has_learned_or_chosen_by(learned):
    photos, run, _ = learned
    splits = get_splits(photos, DEFAULT)
    seen = checkpoints.inspect(run).seen.split()
    assert seen == sorted({*splits.train.hashes, *splits.val.hashes})
    assert all(len(each) == 16 for each in seen)


def test_a_run_on_a_folder_that_has_grown_starts_from_the_weights_and_inherits_what_they_have_seen(
    learned, started, recwarn
):
    _, run, grown = learned
    answer, metadata = started(grown, "--weights", run)
    assert answer.returncode == 143, answer.stderr
    assert not told(recwarn)
    splits = get_splits(grown, DEFAULT)
    seen = set(metadata["seen_images"].split())
    assert seen == {*splits.train.hashes, *splits.val.hashes, *checkpoints.inspect(run).seen.split()}
    assert not seen & set(splits.test.hashes)


@pytest.mark.parametrize("how", ["fractions", "folders", "inherited"])
def test_a_run_whose_test_images_the_weights_have_seen_is_refused(how, learned, started, run, tmp_path):
    photos, _, grown = learned
    arguments, data = ["--weights", run / "last.params"], grown
    test = get_splits(grown, DEFAULT).test
    if how == "fractions":
        arguments += ["--test-fraction", "0.5"]
    elif how == "folders":
        shutil.copytree(grown, tmp_path / "three" / "train")
        shutil.copytree(photos, tmp_path / "three" / "test")
        for path in (tmp_path / "three" / "test").glob("*/*.png"):
            (tmp_path / "three" / "train" / path.relative_to(tmp_path / "three" / "test")).unlink()
        data = tmp_path / "three"
    else:
        change(run, seen_images=f"{'0' * 16} {test.hashes[0]}")
    answer, metadata = started(data, *arguments)
    assert_mistake(answer, f"{run} was trained on ")
    assert "test images, or chosen by them: pass other weights or test images" in answer.stderr
    if how == "inherited":
        assert f"on 1 of the {len(test)} test images" in answer.stderr
    assert not metadata


def test_weights_that_record_no_images_are_a_beginning_with_a_warning_that_stays(
    learned, started, run, tmp_path, recwarn
):
    photos, _, _ = learned
    change(run, seen_images=None)
    for weights in (run, shutil.copy(run / "best.params", tmp_path / "mine.params")):
        answer, metadata = started(photos, "--weights", weights)
        assert answer.returncode == 143, answer.stderr
        assert told(recwarn) == [f"{weights if weights.is_file() else run / 'best.params'} {WORDS}"]
        assert runs.UNKNOWN in metadata["seen_images"].split()
        shutil.rmtree(tmp_path / "next")
    change(run, seen_images=f"{runs.UNKNOWN} {'0' * 16}")
    started(photos, "--weights", run)
    assert len(told(recwarn)) == 1


def test_published_weights_have_seen_no_image_of_a_folder(learned, started, weights_dir, tmp_path, recwarn):
    photos, _, _ = learned
    file = weights_dir / "resnet" / "cifar10_resnet29-0000.params"
    for number, given in enumerate((["--pretrained", "--weights-dir", weights_dir], ["--weights", file])):
        answer, metadata = started(photos, "--model", "resnet-29-0.5", *given)
        assert answer.returncode == 143, answer.stderr
        assert not told(recwarn)
        assert runs.UNKNOWN not in metadata["seen_images"]
        (tmp_path / "next").rename(tmp_path / str(number))


def test_of_other_data_what_a_run_has_seen_is_left_out_and_nothing_is_judged(learned, call, tmp_path, recwarn):
    photos, run, grown = learned
    unseen = 90 - len(checkpoints.inspect(run).seen.split())
    code, out, _ = call("validate", run, "-d", grown, "--device", "cpu")
    assert code == 0
    assert told(recwarn) == [f"{90 - unseen} of 90 images have trained the run {run} or chosen its epoch: left out"]
    assert (
        f"{unseen} of {unseen} images from {grown} ({90 - unseen} that it has seen are left out). **These are not"
        in out
    )
    splits = get_splits(photos, DEFAULT)
    for file in splits.train.files:
        (tmp_path / "test" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / file, tmp_path / "test" / file)
    code, out, _ = call("validate", run, "-d", tmp_path, "--device", "cpu")
    assert code == 3
    assert f"{len(splits.train)} of {len(splits.train)} images have trained" in out
    assert "none is left to measure its error on" in out


def test_runs_of_version_0_4_whose_images_were_split_by_position_are_named(
    learned, train, call, run, tmp_path, recwarn
):
    photos, _, grown = learned
    change(run, seen_images=None)
    words = f"{run} was begun by version 0.4, which split images by their position"
    assert_mistake(train("--resume", run), f"{words}: to train on, start a new run with --weights on its last.params")
    for data in ([], ["-d", grown]):
        code, out, _ = call("validate", run, *data, "--device", "cpu")
        assert code == 3
        assert f"{words}: validate it on a folder with test/" in out
    make_classes(tmp_path / "other", "abc", {"test": 3}, side=40)
    code, out, _ = call("validate", run, "-d", tmp_path / "other", "--device", "cpu")
    assert code == 0
    assert told(recwarn) == [f"{run} does not record its images: some of these may be among them"]
    assert "9 of 9 images" in out
    picture = photos / "a" / "00.png"
    assert call("predict", picture, "--weights", run)[0] == 0
    assert call("export", "--weights", run, "--output", tmp_path / "net.onnx", "--no-measure")[0] == 0


def test_runs_of_version_0_4_on_splits_of_their_own_go_on_and_are_validated(train, call, tmp_path, recwarn):
    make_classes(tmp_path / "photos", "abc", {"train": 8, "val": 4, "test": 4})
    answer = train(tmp_path / "photos", "--output", tmp_path / "run", *options(VALUES))
    assert answer.returncode == 0, answer.stderr
    change(tmp_path / "run", seen_images=None)
    code, out, _ = call("validate", tmp_path / "run", "--device", "cpu")
    assert code == 0
    assert "| match " in out
    assert not told(recwarn)
    assert train("--resume", tmp_path / "run").returncode == 0


@pytest.mark.parametrize("forged", [3, ["0" * 16], {}], ids=str)
def test_forged_hashes_are_refused(forged, run):
    change(run, seen_images=forged)
    with pytest.raises(pydmobilenet.errors.BadFileError, match="does not describe a run"):
        checkpoints.inspect(run)


def test_digits_put_aside_are_recorded_by_their_pixels(tmp_path):
    values = {**VALUES, "val_fraction": 0.1, "batch_size": 600}
    run = pydmobilenet.train(dataset="digits", output=tmp_path / "run", progress=False, **values)
    splits = get_splits("digits", pydmobilenet.data.Fractions(0.1))
    assert set(checkpoints.inspect(run.directory).seen.split()) == {*splits.train.hashes, *splits.val.hashes}
    (result,) = pydmobilenet.validate(run.directory / "last.params", progress=False)
    assert (result.verdict, result.counts.images) == ("match", len(splits.val))
