"""One's own arrays: checked in one line, and as good as a folder for training, validation and prediction."""

import json

import numpy as np
import pytest
from helpers import TRAINERS, commander, content, make_classes

import pydmobilenet
from pydmobilenet import provenance
from pydmobilenet.data import batches, get_dataset, given_splits
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError, UserError
from pydmobilenet.training import checkpoint

MODEL = "pyd-add-11-0.125"
SHORT = {"epochs": 2, "warmup_epochs": 0, "batch_size": 32, "device": "cpu", "progress": False}
HOME = {"engine": "pytorch"}
GREY = np.zeros((4, 8, 8), np.uint8)
GOOD = np.zeros((4, 8, 8, 3), np.uint8)
LABELS = [0, 1, 2, 1]


def digits(split="train", number=200, **others):
    images = get_dataset("digits", split).head(number)
    return pydmobilenet.array_dataset(images.images, images.labels, mirrored=False, **others)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (GOOD / 255, r"images are float64 \(allowed: uint8; of values from 0 to 1: multiply by 255 and convert"),
        (GOOD.astype(np.int64), r"images are int64 \(allowed: uint8; of whole numbers from 0 to 255"),
        (GREY, r"grey ones become colour by np.stack\(\[images\] \* 3, axis=-1\)"),
        (GREY[..., None], r"grey ones become colour by images.repeat\(3, axis=3\)"),
        (GREY[:, None], r"grey ones become colour by images.repeat\(3, axis=1\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"leave out transparency: images\[..., :3\]"),
        (np.zeros((4, 8, 12, 3), np.uint8), r"images have 12x8 pixels \(allowed: square ones\)"),
        (np.zeros((4, 3, 8, 3), np.uint8), "images have 8x3 pixels"),  # of two axes with 3, the last one is colour
        (np.zeros((4, 10, 10, 3), np.uint8), "image_size is 10 .*nearest: 8"),
        (np.zeros((4, 3, 3, 3), np.uint8), "image_size is 3 "),
        (GOOD[:0], "there are no images"),
        (np.zeros(4, np.uint8), r"images are \(4,\)"),
        ([GOOD[0], GOOD[0, :4]], "images are no array: "),
        ("photos", r"images are \(\)"),
    ],
)
def test_wrong_images_are_refused_with_the_way_out(images, words):
    with pytest.raises(InvalidValueError, match=words) as caught:
        pydmobilenet.array_dataset(images, LABELS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        (LABELS[:3], None, "there are 4 images and 3 labels"),
        (np.eye(4), None, r"labels are \(4, 4\) \(allowed: \(4,\)\); nearest: labels.argmax\(axis=1\)"),
        (np.array([LABELS]).T, None, r"nearest: labels.ravel\(\)"),
        ([0.0, 1, 2, 1], None, r"labels are float64 \(allowed: whole numbers\)"),
        ([True, False, True, True], None, "labels are bool"),
        (["cat", "dog", "emu", "dog"], None, r"nearest: class_names, labels = np.unique\(labels"),
        ([0, -1, 2, 1], None, "a label is -1 "),
        ([0, 10**6, 2, 1], None, "a label is 1000000 "),
        (np.array([0, 2**64 - 1, 2, 1], np.uint64), None, "a label is 18446744073709551615 "),
        (LABELS, ["cat", "dog"], "a label is 2 .allowed: 0 to 1, for 2 names"),
        (LABELS, ["cat", "dog", "cat"], "class_names has 'cat' twice"),
        (LABELS, ["cat", "dog", 3], "class_names has '3'"),
        (LABELS, "cat", "class_names is 'cat'"),
    ],
)
def test_wrong_labels_are_refused_with_the_way_out(labels, names, words):
    with pytest.raises(InvalidValueError, match=words):
        pydmobilenet.array_dataset(GOOD, labels, names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (0, 0, 0)}, "pass both mean and std"),
        ({"mean": (0, 0), "std": (1, 1, 1)}, r"mean is \(0, 0\) \(allowed: three numbers"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "three numbers above 0"),
        ({"mean": (0, 0, float("nan")), "std": (1, 1, 1)}, "mean is "),
        ({"name": ""}, "name is ''"),
        ({"name": "a\nb"}, "name is "),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(InvalidValueError, match=words):
        pydmobilenet.array_dataset(GOOD, LABELS, **options)
    with pytest.raises(TypeError, match="no argument 'means'; nearest: mean"):
        pydmobilenet.array_dataset(GOOD, LABELS, means=0)


@pytest.mark.pytorch
def test_lists_and_tensors_are_taken_and_a_mapped_file_stays_one(tmp_path):
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, GOOD.shape, dtype=np.uint8)
    data = pydmobilenet.array_dataset(pixels, LABELS)
    others = (
        (torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(LABELS, dtype=torch.int16)),
        (
            pixels.tolist() and list(pixels),
            np.array(LABELS, np.uint8),
        ),
    )
    for images, labels in others:
        other = pydmobilenet.array_dataset(images, labels, list("abc"))
        assert np.array_equal(other.images, data.images)
        assert (other.labels.tolist(), other.hashes, other.task.classes) == (LABELS, data.hashes, ("a", "b", "c"))
    np.save(tmp_path / "images.npy", data.images)
    mapped = pydmobilenet.array_dataset(np.load(tmp_path / "images.npy", mmap_mode="r"), LABELS)
    assert isinstance(mapped.images, np.memmap)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("torch")
    output = tmp_path_factory.mktemp("arrays") / "run"
    return pydmobilenet.train(MODEL, digits(), test=digits("test", 60), output=output, **SHORT, **HOME)


@pytest.mark.parametrize("engine", TRAINERS)
def test_both_forms_give_the_same_run_and_a_stopped_one_goes_on(engine, tmp_path):
    data, test = digits(), digits("test", 60)
    last = pydmobilenet.array_dataset(data.images.transpose(0, 2, 3, 1), data.labels, mirrored=False)
    options = {**SHORT, "engine": engine, "test": test}
    first = pydmobilenet.train(MODEL, data, output=tmp_path / "a", **options)

    def stop(run, row):
        raise pydmobilenet.StopTraining

    other = pydmobilenet.train(MODEL, last, output=tmp_path / "b", **options, on_epoch=stop)
    assert len(other.history.rows) == 1
    other = pydmobilenet.train(resume=other, dataset=last, test=test, device="cpu", progress=False)
    assert content(first.directory) == content(other.directory)
    metadata = json.loads((tmp_path / "a" / "run.json").read_text())
    assert metadata["dataset"] == "arrays:data"
    assert (metadata["classes"], metadata["mirrored"]) == (list("0123456789"), False)


@pytest.mark.pytorch
def test_a_run_is_validated_on_given_images_and_predicts_and_is_exported(run, tmp_path):
    test = digits("test", 60)
    (result,) = pydmobilenet.validate(run, test, progress=False)
    assert result.verdict == "match"
    assert result.error == pytest.approx(run.test_error)
    for images in (test, test.images, test.images.transpose(0, 2, 3, 1), list(test.images)):
        answers = pydmobilenet.predict(images, weights=run, top=1)
        assert sum(row.classes[0][0] != label for row, label in zip(answers, test.labels)) == result.counts.wrong
    assert pydmobilenet.export(None, tmp_path / "net.onnx", weights=run).classes == 0
    (result,) = pydmobilenet.validate(run, get_dataset("digits", "test"), progress=False)
    assert result.verdict.startswith("not judged")  # there are more images
    with pytest.warns(UserWarning, match=r"200 of 210 images have trained .*: left out"):
        (result,) = pydmobilenet.validate(run, digits(number=210), progress=False)
    assert result.counts.images == 10


@pytest.mark.pytorch
def test_images_that_do_not_fit_are_a_reason_or_an_error(run):
    names = digits("test", 60, class_names=list("abcdefghij"))
    (result,) = pydmobilenet.validate(run, names, progress=False)
    assert "the data has the classes a, b, c" in result.reason
    (result,) = pydmobilenet.validate(run, pydmobilenet.array_dataset(GOOD, LABELS), progress=False)
    assert "images of 8x8 pixels (allowed: 32x32, as learned)" in result.reason
    with pytest.raises(UserError, match="given images are for runs and files"):
        pydmobilenet.validate("*", names)
    again = {**SHORT, "resume": run}
    del again["epochs"], again["warmup_epochs"], again["batch_size"]
    for given, kind, words in (
        ({}, UserError, "was trained on arrays: in Python, pass dataset="),
        ({"dataset": digits()}, BadFileError, "the test data has changed since the run began: there is none"),
        ({"dataset": digits(), "test": digits("test", 61)}, BadFileError, "61 images instead of 60"),
        ({"dataset": digits(), "val": digits("test", 9)}, BadFileError, "200 images instead of"),
        ({"dataset": digits(number=199), "test": digits("test", 60)}, BadFileError, "the train data has changed"),
        ({"dataset": digits(name="x")}, InvalidValueError, "dataset is 'arrays:x', but the run began with"),
        ({"dataset": digits(class_names=list("abcdefghij"))}, InvalidValueError, "classes is "),
        ({"dataset": get_dataset("digits")}, InvalidValueError, "dataset is 'arrays:Digits'"),
    ):
        with pytest.raises(kind, match=words):
            pydmobilenet.train(**again, **given)


def test_a_split_that_a_run_began_without_is_refused():
    splits = given_splits(digits(number=20), None, digits("test", 10))
    metadata = {"data": {"train": provenance.of_data(splits.train)}}
    with pytest.raises(BadFileError, match="data: the run began without test data"):
        checkpoint.check_data(splits, metadata)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": GOOD}, r"dataset is a ndarray \(allowed: an array_dataset\(images, labels\)"),
        ({"dataset": "digits", "val": digits()}, "val belongs to arrays: pass dataset=array_dataset"),
        ({"dataset": digits(), "test": LABELS}, "test is a list "),
        ({"dataset": digits(), "test": pydmobilenet.array_dataset(GOOD, LABELS)}, "test has images of 8x8 pixels"),
        ({"dataset": digits(), "image_size": 64}, "image_size is 64 .allowed: 32"),
        ({"dataset": digits(), "data_dir": "."}, "pass either arrays or data_dir"),
        ({"dataset": digits().with_transform(str)}, "dataset has a transform"),
        ({"dataset": digits().head(0)}, "dataset has no images"),
        ({"dataset": digits(), "test": digits("test"), "test_fraction": 0.2}, "test_fraction 0.2 cannot be used"),
        ({"dataset": digits(), "val_fraction": 0, "test_fraction": 0}, "has no images to choose the best epoch"),
        ({"dataset": digits(), "on_epoch": 3}, "on_epoch is '3' .allowed: a function"),
        ({"dataset": "arrays:data"}, "arrays:data is the name of arrays"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line_and_leaves_no_directory(arguments, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        pydmobilenet.train(MODEL, output=tmp_path / "run", progress=False, **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.pytorch
def test_images_are_held_out_by_their_pixels_and_weights_bring_their_normalisation(run, tmp_path, capsys):
    test = digits("test", 100)
    options = {**SHORT, "epochs": 1, "progress": None, **HOME}
    tuned = pydmobilenet.train(dataset=test, weights=run, output=tmp_path / "tuned", val_fraction=0.3, **options)
    metadata = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert {name: data["images"] for name, data in metadata["data"].items()}.keys() == {"train", "val", "test"}
    assert sum(data["images"] for data in metadata["data"].values()) == 100
    assert "normalised as" not in capsys.readouterr().err
    assert tuned.test_error is not None
    options["output"] = tmp_path / "other"
    pydmobilenet.train(dataset=digits("test", 100, mean=(0.3,) * 3, std=(0.4,) * 3), weights=run, **options)
    assert "data: normalised as the loaded weights want it: mean 0.485/0.456/0.406" in capsys.readouterr().err
    with pytest.raises(InvalidValueError, match=r"was trained on \d+ of the 60 test images, or chosen by them"):
        pydmobilenet.train(dataset=digits(), test=digits("test", 60), weights=tuned, output=tmp_path / "no", **SHORT)


@pytest.mark.pytorch
def test_training_images_that_are_test_images_too_are_left_out(tmp_path):
    data, twins = digits(number=100), digits(number=3)
    with pytest.warns(UserWarning, match="3 of 100 training images are test images too, as image 0: left out"):
        run = pydmobilenet.train(MODEL, data, test=twins, output=tmp_path / "run", **{**SHORT, "epochs": 1}, **HOME)
    metadata = json.loads((run.directory / "run.json").read_text())
    assert metadata["data"]["train"]["images"] + metadata["data"]["val"]["images"] == 97


@pytest.mark.pytorch
def test_commands_know_a_run_of_arrays(run, tmp_path, monkeypatch, capsys):
    call = commander(monkeypatch, capsys)
    code, out, _ = call("info", run.directory)
    assert code == 0
    assert out.startswith(f"{MODEL} for data\nclasses: 0, 1, 2")
    code, out, _ = call("validate", run.directory)
    assert code == 3
    assert "arrays:data is the name of arrays" in out
    make_classes(tmp_path / "photos", "0123456789", {".": 2})
    with pytest.warns(UserWarning, match="records its images by other hashes: some of these may be among them"):
        code, out, err = call("validate", run.directory, "--data-dir", tmp_path / "photos")
    assert code == 0, err
    assert "20" in out
    assert call("predict", tmp_path / "photos" / "0", "--weights", run.directory)[0] == 0
    code, _, err = call("export", "--weights", run.directory, "--no-measure", "--output", tmp_path / "net.onnx")
    assert (code, err) == (0, "")
    code, _, err = call("train", "--resume", run.directory)
    assert code == 2
    assert err.splitlines()[-1].endswith("was trained on arrays: in Python, pass dataset= (and val=, test=) again")
    assert call("export", "--weights", run.directory, "--format", "huggingface", "--output", tmp_path / "hf")[0] == 0
    assert pydmobilenet.get_model(weights=tmp_path / "hf", engine="pytorch") is not None


def test_a_name_of_arrays_is_on_no_disk():
    with pytest.raises(MissingFileError, match="arrays:data is the name of arrays"):
        get_dataset("arrays:data")
    with pytest.raises(MissingFileError, match="arrays:a/b is the name of arrays"):
        pydmobilenet.get_model(MODEL, "arrays:a/b")


def test_images_of_a_folder_are_known_again_as_arrays(tmp_path):
    make_classes(tmp_path / "photos", "ab", {".": 6})
    images = get_dataset(tmp_path / "photos", "all")
    arrays = pydmobilenet.array_dataset(images.images, images.labels, images.task.classes)
    given, other = given_splits(images, None, None), given_splits(arrays, None, None)
    assert given.train.hashes == other.train.hashes


def test_a_map_with_changes_in_memory_trains_on_these(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((4, 3, 8, 8), np.uint8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="c")
    mapped[:] = 255
    dataset = pydmobilenet.array_dataset(mapped, [0, 1, 0, 1], mean=[0, 0, 0], std=[1, 1, 1])
    images, _ = next(batches(dataset, 4, train=False))
    assert (images > 0.99).all()


def test_class_names_are_a_list():
    with pytest.raises(InvalidValueError, match="class_names is '5'"):
        pydmobilenet.array_dataset(np.zeros((1, 3, 8, 8), np.uint8), [0], 5)
