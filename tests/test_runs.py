"""A run describes itself: it is used, and gone on with, as it says, whatever has become of its data."""

import functools
import json
import shutil

import mxnet as mx
import numpy as np
import pytest
from helpers import DIGITS, ROOT, assert_mistake, assert_same, content, listing, options, runner, train_inside
from PIL import Image

import pydmobilenet
from pydmobilenet import checkpoints, cli, data
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError

MODEL = "mobilenet-11-0.125"
COLOURS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)}
RECIPE = {"batch_size": 4, "epochs": 4, "warmup_epochs": 0, "keep_every": 2, "learning_rate": 0.05}


def make(root):
    """Pictures of three classes that a network tells apart by their colour."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 3)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for place in range(number):
                noise = rng.integers(-25, 25, (32, 32, 3))
                Image.fromarray((noise + colour).astype(np.uint8)).save(root / split / name / f"{place}.png")
    return root


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder, and a run that has learned it; both are copied by each test."""
    place = tmp_path_factory.mktemp("original")
    folder = make(place / "photos")
    values = options({**RECIPE, "model": MODEL, "dataset": "folder:photos"})  # as it is seen from there
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        answer = train_inside("--config", DIGITS, *values, "--output", place / "run")
    assert answer.returncode == 0, answer.stderr
    return folder, place / "run"


@pytest.fixture
def moved(original, tmp_path, monkeypatch):
    """The run in another place, on a machine without its data: where that was, nobody is any more."""
    folder, run = original
    shutil.copytree(run, tmp_path / "run")
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())
    assert metadata["dataset"] == f"folder:{folder}"
    metadata["dataset"] = f"folder:{tmp_path / 'gone'}"
    (tmp_path / "run" / "run.json").write_text(json.dumps(metadata))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "run"


@pytest.fixture
def call(monkeypatch, capfd):
    """A command inside this process: exit code, standard output, standard error."""

    def call(*arguments, command=""):
        monkeypatch.setattr("sys.argv", ["pydmobilenet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return call


def renamed(folder, tmp_path):
    """A copy of a folder whose first class has another name, that comes last."""
    copy = tmp_path / "renamed"
    shutil.copytree(folder, copy)
    for split in ("train", "test"):
        (copy / split / "a").rename(copy / split / "z")
    return copy


def test_a_run_is_used_by_its_own_names_without_its_data(original, moved, call, tmp_path):
    picture = original[0] / "test" / "b" / "0.png"
    code, out, err = call("predict", picture, "--weights", moved)
    assert (code, err) == (0, "")
    assert out.startswith(f"{picture}: b ")
    code, out, err = call("predict", picture, "--weights", moved / "last.params", "--json")
    assert json.loads(out)[0]["classes"][0]["class"] == "b"
    code, out, _ = call("info", moved)
    assert code == 0
    assert out.startswith(f"{MODEL} for gone\nclasses: a, b, c\nimages: 32x32 pixels\nbegun 20")
    code, out, err = call("export", "--weights", moved, "--output", tmp_path / "net.onnx")
    assert (code, err) == (0, "")
    import onnx

    metadata = {each.key: each.value for each in onnx.load(str(tmp_path / "net.onnx")).metadata_props}
    assert json.loads(metadata["classes"]) == ["a", "b", "c"]
    assert metadata["model"] == MODEL


def test_a_class_that_was_renamed_in_the_folder_keeps_the_name_that_was_learned(original, moved, call, tmp_path):
    folder = renamed(original[0], tmp_path)
    folder.rename(tmp_path / "gone")  # where the run says that its data is
    code, out, _ = call("predict", tmp_path / "gone" / "test" / "b" / "0.png", "--weights", moved)
    assert code == 0
    assert ": b " in out
    code, out, _ = call("--run", moved, "--device", "cpu", command="validate")
    assert code == 3
    assert "has other classes than those learned: it lacks 'a' and it has 'z'" in out


@pytest.mark.parametrize("option", ["--data-dir", "--dataset"])
def test_a_run_is_evaluated_on_other_data_with_the_same_class_names(option, original, moved, call, tmp_path):
    shutil.copytree(original[0], tmp_path / "new")
    (tmp_path / "new" / "test" / "a" / "0.png").unlink()
    recorded = json.loads((moved / "run.json").read_text())["checkpoints"]["best.params"]["test_error"]
    value = tmp_path / "new" if option == "--data-dir" else f"folder:{tmp_path / 'new'}"
    code, out, _ = call("--run", moved, option, value, "--device", "cpu", "--output", tmp_path, command="validate")
    assert code == 0
    assert recorded == 0
    assert "8 of 8 images from " in out
    (row,) = json.loads((tmp_path / "validation.json").read_text())
    assert (row["images"], row["wrong"]) == (8, 0)
    both = ("--data-dir", tmp_path, "--dataset", f"folder:{tmp_path}")
    code, _, err = call("--run", moved, *both, command="validate")
    assert code == 2
    assert "pass either one --dataset folder:PATH or --data-dir, not both" in err


def test_reports_tell_where_a_run_comes_from(original, moved, call, tmp_path):
    metadata = json.loads((moved / "run.json").read_text())
    code, _, _ = call("--run", moved, "--data-dir", original[0], "--output", tmp_path, command="validate")
    assert code == 0
    for name in ("validation.md", "validation.json", "validation.csv", "report.html"):
        text = (tmp_path / name).read_text()
        assert metadata["data"]["train"]["sha256"] in text, name
        assert metadata["initial_weights"]["sha256"] in text, name
        assert "train.py --config" in text, name
        assert f"numpy {np.__version__}" in text, name


def test_a_run_tells_all_that_its_result_depends_on(original):
    folder, run = original
    metadata = json.loads((run / "run.json").read_text())
    dataset = data.get_dataset(f"folder:{folder}", "train")
    task = dataset.task
    assert (metadata["model"], metadata["classes"], metadata["outputs"]) == (MODEL, ["a", "b", "c"], 3)
    assert (metadata["mean"], metadata["std"]) == (list(task.mean), list(task.std))
    assert metadata["engine"] == "gluon"
    assert metadata["config"]["batch_size"] == 4
    assert metadata["config"]["dataset"] == "folder:photos"
    assert metadata["data"]["train"]["images_per_class"] == [8, 8, 8]
    assert metadata["data"]["test"]["images"] == 9
    assert metadata["initial_weights"]["source"] == "msra, seed 0"
    (session,) = metadata["sessions"]
    assert session["command"].startswith("python train.py --config")
    assert session["device"] == "cpu(0)"
    assert {"pydmobilenet", "python", "numpy", "mxnet", "processor", "instruction_set", "threads"} <= set(
        session["environment"]
    )
    assert sorted(metadata["checkpoints"]) == ["best.params", "epoch-0002.params", "epoch-0004.params", "last.params"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "resnet-11-0.125"), f"is of {MODEL}, not of resnet-11-0.125; nearest: {MODEL}"),
        (("--dataset", "cifar10"), "was trained on folder:"),
        (("--weights-dir", ROOT), "weights_dir is for published weights: pass either weights_dir or weights"),
    ],
)
def test_what_is_given_beside_a_run_and_differs_is_a_mistake(arguments, words, original, moved, call):
    picture = original[0] / "test" / "b" / "0.png"
    code, out, err = call("predict", picture, "--weights", moved, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_what_is_given_beside_a_run_and_is_the_same_is_none(original, moved, call):
    picture = original[0] / "test" / "b" / "0.png"
    given = ("--model", MODEL, "--dataset", f"folder:{original[0]}")
    code, out, _ = call("predict", picture, "--weights", moved, *given)
    assert code == 0
    assert ": b " in out


def test_parameters_that_no_run_tells_of_need_a_model(original, call, tmp_path):
    shutil.copy(original[1] / "best.params", tmp_path / "mine.params")
    picture = original[0] / "test" / "b" / "0.png"
    code, _, err = call("predict", picture, "--weights", tmp_path / "mine.params")
    assert code == 2
    assert "does not record its model and data set; pass both, or" in err
    given = ("--model", MODEL, "--dataset", f"folder:{original[0]}")
    code, out, _ = call("predict", picture, "--weights", tmp_path / "mine.params", *given)
    assert code == 0
    assert ": b " in out
    code, _, err = call("predict", picture)
    assert code == 2
    assert "no network is named: pass a model, or the weights of a run" in err


# Going on with a run.


@pytest.fixture
def train(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def after_two_epochs(original, tmp_path_factory):
    """The run as it was after two of its four epochs, and the folder beside it."""
    place = tmp_path_factory.mktemp("interrupted")
    folder, run = place / "photos", place / "run"
    shutil.copytree(original[0], folder)
    with pytest.MonkeyPatch.context() as patch:
        from pydmobilenet.gluon import trainer
        from pydmobilenet.training import loop, session

        patch.chdir(place)
        patch.setattr(loop, "draw", lambda *_: None)
        recipe = session.read_config(original[1])
        make_trainer = functools.partial(trainer.make, contexts=[mx.cpu()])
        finish, patched = loop.Loop._finish_epoch, []

        def finish_two(training):
            finish(training)
            patched.append(1)
            if len(patched) == 2:
                raise KeyboardInterrupt

        patch.setattr(loop.Loop, "_finish_epoch", finish_two)
        begun = session.Session(recipe, run, progress=False)
        with pytest.raises(KeyboardInterrupt), session.opened(begun, make_trainer) as training:
            training.run()
    return place


@pytest.fixture
def interrupted(after_two_epochs, tmp_path):
    """A copy of the folder, and of the run that has learned it for two epochs."""
    folder, run = tmp_path / "photos", tmp_path / "run"
    for path in (folder, run):
        shutil.copytree(after_two_epochs / path.name, path)
    change_metadata(run, lambda metadata: metadata.update(dataset=f"folder:{folder}"))
    return folder, run


def spoil_pixel(folder):
    image = np.array(Image.open(folder / "train" / "a" / "0.png"))
    image[0, 0, 0] ^= 1
    Image.fromarray(image).save(folder / "train" / "a" / "0.png")


def swap(folder):
    a, b = folder / "train" / "a" / "0.png", folder / "train" / "b" / "0.png"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: shutil.copy(f / "train/a/0.png", f / "train/a/1b.png"), "25 images instead of 24"),
        (lambda f: (f / "test" / "c" / "0.png").unlink(), "8 images instead of 9"),
        (
            lambda f: (f / "train/a/0.png").rename(f / "train/b/0b.png"),
            "7 images of class 'a' instead of 8",
        ),
        (spoil_pixel, "other pixels, or the same in another order"),
        (swap, "other pixels, or the same in another order"),
        (lambda f: [(f / s / "a").rename(f / s / "z") for s in ("train", "test")], "it lacks 'a' and it has 'z'"),
        (lambda f: shutil.rmtree(f), "no such folder: "),
    ],
    ids=["doubled", "cut", "moved", "a pixel", "swapped", "renamed", "gone"],
)
def test_a_run_does_not_go_on_with_other_data(change, words, interrupted, train):
    folder, run = interrupted
    change(folder)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert_mistake(train("--resume", run, "--quiet"), words)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(("key", "value", "begun"), [("seed", "7", "0"), ("epochs", "9", "4"), ("mixup", "0.3", "1.0")])
def test_a_run_does_not_go_on_with_another_configuration(key, value, begun, interrupted, train):
    _, run = interrupted
    path = run / "config.yaml"
    lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert_mistake(train("--resume", run, "--quiet"), f"config.yaml: {key} is {value}, but the run began with {begun}")


def test_a_run_goes_on_from_anywhere_and_where_its_data_has_moved(interrupted, original, train, tmp_path, monkeypatch):
    folder, run = interrupted
    monkeypatch.chdir(ROOT)
    shutil.copytree(run, tmp_path / "other")
    folder.rename(tmp_path / "new place")
    assert_mistake(train("--resume", run, "--quiet"), "no such folder: ")
    assert train("--resume", run, "--data-dir", tmp_path / "new place").returncode == 0
    (tmp_path / "new place").rename(folder)
    assert train("--resume", tmp_path / "other").returncode == 0
    first, second, expected = (content(each) for each in (run, tmp_path / "other", original[1]))
    assert_same(second, first)
    for each in (first, expected):  # the folder is another one
        del each["metadata"]["dataset"]
    assert_same(first, expected)
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert ["--resume" in each["command"] for each in sessions] == [False, True]


def change_metadata(run, change):
    metadata = json.loads((run / "run.json").read_text())
    change(metadata)
    (run / "run.json").write_text(json.dumps(metadata))


def without_origin(metadata):
    for key in ("engine", "config", "data", "initial_weights", "sessions"):
        del metadata[key]


@pytest.mark.parametrize(
    "age",
    [
        lambda run: change_metadata(run, lambda metadata: metadata.pop("engine")),
        lambda run: change_metadata(run, without_origin),
        lambda run: (run / "run.json").unlink(),
    ],
    ids=["0.2", "0.1", "0.1, before its first checkpoint"],
)
def test_a_run_of_an_earlier_version_does_not_go_on_by_another_update(age, interrupted, train):
    _, run = interrupted
    age(run)
    before = listing(run)
    words = f"{run} was begun by version 0.2 or earlier, with MXNet's own momentum: to train on, start a new run"
    assert_mistake(train("--resume", run, "--quiet"), words)
    assert listing(run) == before


def test_the_weights_of_a_run_of_an_earlier_version_are_a_beginning(interrupted, train, tmp_path):
    folder, run = interrupted
    change_metadata(run, without_origin)
    recipe = ["-m", MODEL, "-d", f"folder:{folder}", "--config", DIGITS, *options({**RECIPE, "epochs": 1, "mixup": 0})]
    beginning = ["--device", "cpu", "--weights", run / "last.params", "--output", tmp_path / "on"]
    answer = train(*recipe, *beginning)
    assert answer.returncode == 0, answer.stderr
    begun = json.loads((tmp_path / "on" / "run.json").read_text())["initial_weights"]
    assert begun["source"] == str(run / "last.params")


def test_a_run_of_another_engine_does_not_go_on(interrupted, train):
    _, run = interrupted
    change_metadata(run, lambda metadata: metadata.update(engine="pytorch"))
    before = listing(run)
    words = "last.state is of engine 'pytorch', not 'gluon': pass --engine pytorch; to train on, start a new run with "
    assert_mistake(train("--resume", run, "--engine", "gluon", "--quiet"), f"{run}/{words}")
    assert listing(run) == before


def test_a_run_that_has_saved_nothing_yet_says_so(interrupted, call):
    _, run = interrupted
    change_metadata(run, lambda metadata: metadata.update(checkpoints={}))
    with pytest.raises(MissingFileError, match="has no checkpoint yet: its first epoch is not finished"):
        checkpoints.inspect(run)


# What Python is given.


def test_a_run_tells_python_its_data_set_and_outputs(original, moved):
    net = pydmobilenet.get_model(MODEL, weights=moved)
    assert net.head.dense.weight.shape[0] == 3


@pytest.mark.parametrize(
    "forged",
    [
        {"classes": "abc"},
        {"classes": ["a", 1, "c"]},
        {"classes": ["a", "a", "c"]},
        *({"outputs": number} for number in (True, 2, 2**31)),
        {"mean": [1, 2]},
        *({"std": [1.0, 1.0, last]} for last in (0.0, "1")),
        {"sessions": [{}]},
        {"sessions": [3]},
        {"data": {"train": {"images": 3}}},
        {"data": 3},
        {"initial_weights": {"source": 3}},
    ],
    ids=str,
)
def test_forged_descriptions_are_refused(forged, moved):
    metadata = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**metadata, **forged}))
    with pytest.raises(BadFileError, match=r"run\.json does not describe a run"):
        checkpoints.inspect(moved)


def test_data_with_other_classes_is_refused_wherever_it_is_read(original, tmp_path):
    task = checkpoints.inspect(original[1]).task
    with pytest.raises(BadFileError, match="it lacks 'a' and it has 'z'"):
        data.get_dataset(f"folder:{renamed(original[0], tmp_path)}", "test", task=task)
    with pytest.raises(InvalidValueError, match="unknown split"):
        data.get_dataset("digits", "val")
