"""Training, validation and test images: those that a data set has, and those that are put aside."""

import shutil

import numpy as np
import pytest
from helpers import make_classes

import pydmobilenet
from pydmobilenet.data import Fractions, folder, get_splits, get_task
from pydmobilenet.data.splits import stratified
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError, UnusableError


@pytest.fixture
def alone(tmp_path):
    """Class folders alone, of ten images each."""
    return make_classes(tmp_path / "photos", "abc", {".": 10})


def test_class_folders_alone_are_split_in_the_same_shares_of_each_class(alone):
    splits = get_splits(alone, Fractions(val=0.2, test=0.3))
    assert [np.bincount(each.labels).tolist() for each in splits] == [[5, 5, 5], [2, 2, 2], [3, 3, 3]]
    assert [each.split for each in splits] == ["train", "val", "test"]
    files = [set(each.files) for each in splits]
    assert set.union(*files) == {f"{name}/{number:02}.png" for name in "abc" for number in range(10)}
    assert sum(map(len, files)) == 30
    assert splits.val.note == f"val: 6 images (a 2, b 2, c 2), of {alone}"
    for dataset in splits:
        for file, label, image in zip(dataset.files, dataset.labels, dataset.images):
            assert "abc"[label] == file[0]
            np.testing.assert_array_equal(image, folder.images.read(alone / file).pixels)


def test_a_split_is_the_same_each_time_and_the_test_images_whatever_is_put_aside_for_validation(alone):
    first, again = (get_splits(alone, Fractions(0.2, 0.2)) for _ in range(2))
    other = get_splits(alone, Fractions(0.4, 0.2))
    assert [each.files for each in first] == [each.files for each in again]
    assert first.test.files == other.test.files
    assert len(other.val) == 12


def test_what_is_skipped_is_told_with_the_training_images(alone):
    (alone / "a" / "notes.txt").write_text("")
    splits = get_splits(alone, Fractions(0.2, 0.2))
    assert splits.train.note.endswith("; skipped: 1 .txt")
    assert "; skipped" not in splits.val.note


@pytest.mark.parametrize("name", ["digits", "cifar"])
def test_training_images_of_any_data_set_are_put_aside(name, tmp_path):
    if name == "digits":
        data = pydmobilenet.get_dataset("digits")
        splits = get_splits("digits", Fractions(val=0.1))
        assert splits.test.official
    else:
        make_classes(tmp_path, pydmobilenet.data.cifar.CIFAR10.classes, {"train": 10, "test": 2})
        data = pydmobilenet.get_dataset("cifar10", "train", tmp_path)
        splits = get_splits("cifar10", Fractions(val=0.1), tmp_path)
    assert len(splits.train) + len(splits.val) == len(data)
    shares = np.bincount(splits.val.labels) / np.bincount(data.labels)
    assert abs(shares - 0.1).max() < 0.01
    pixels = {image.tobytes() for image in data.images}
    assert {image.tobytes() for each in splits[:2] for image in each.images} == pixels


def test_a_folder_s_own_validation_images_are_taken(tmp_path):
    make_classes(tmp_path, "ab", {"train": 4, "val": 3, "test": 2})
    splits = get_splits(tmp_path, Fractions(val=0.2, test=0.2))
    assert list(map(len, splits)) == [8, 6, 4]
    assert splits.val.files[0] == "val/a/00.png"


def test_without_test_images_there_are_none(tmp_path):
    make_classes(tmp_path, "ab", {"train": 4, "val": 3})
    assert get_splits(tmp_path).test is None
    (tmp_path / "val").rename(tmp_path / "test")
    assert get_splits(tmp_path).val is None


def test_trains_are_a_class_beside_other_vehicles_and_a_split_where_they_have_classes(tmp_path):
    make_classes(tmp_path, ["car", "train"], {".": 3})
    assert get_task(tmp_path).classes == ("car", "train")
    (tmp_path / "train" / "ice").mkdir()
    assert get_task(tmp_path).classes == ("ice",)


def test_splits_without_classes_are_no_classes_themselves(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(BadFileError, match="test has no folder of images, one a class"):
        get_task(tmp_path)


def test_a_class_that_is_too_small_is_named(alone):
    for path in sorted((alone / "b").iterdir())[2:]:
        path.unlink()
    with pytest.raises(InvalidValueError, match=r"class 'b' has 2 images, too few .* \(allowed: from 3 images on"):
        get_splits(alone, Fractions(0.2, 0.2))
    assert len(get_splits(alone, Fractions(0.2, 0)).val) == 2 + 1 + 2


def test_of_imagenet32_nothing_is_put_aside(monkeypatch):
    monkeypatch.setattr("pydmobilenet.data.splits.get_dataset", lambda *_: None)
    with pytest.raises(InvalidValueError, match=r"val_fraction: of imagenet32.*\(allowed: 0\)"):
        get_splits("imagenet32", Fractions(val=0.1))


def test_a_folder_without_training_images_is_named(tmp_path):
    make_classes(tmp_path, "ab", {"test": 2})
    with pytest.raises(InvalidValueError, match=r"has no train/ to learn from \(it has: test\)"):
        get_splits(tmp_path)
    with pytest.raises(MissingFileError, match=r"has no val/ \(it has: test\)"):
        pydmobilenet.get_dataset(tmp_path, "val")


def test_a_plain_path_is_a_folder_unless_it_is_a_data_set_s_name(alone, monkeypatch):
    monkeypatch.chdir(alone.parent)
    assert get_task("photos").name == "folder:photos"
    assert len(pydmobilenet.get_dataset("photos", "all")) == 30
    (alone.parent / "digits").mkdir()
    assert get_task("digits").name == "digits"
    with pytest.raises(InvalidValueError, match="unknown data set 'digit'; nearest: digits"):
        get_task("digit")
    with pytest.raises(MissingFileError, match="no such folder: elsewhere/photos"):
        get_task("elsewhere/photos")


def test_images_of_another_size_are_resized_to_it(alone):
    task = get_task(str(alone), 64)
    assert task.image == (3, 64, 64)
    assert pydmobilenet.get_dataset(alone, "all", task=task).images.shape == (30, 3, 64, 64)
    with pytest.raises(InvalidValueError, match=r"image_size is 64 \(allowed: 32, which the images of digits have"):
        get_task("digits", 64)


def test_images_that_do_not_fit_into_the_memory_are_refused_at_once(alone, monkeypatch):
    monkeypatch.setattr(folder, "available_memory", lambda: 100_000)
    with pytest.raises(UnusableError, match=r"30 images of 32x32 pixels take 0\.0 GB of memory"):
        pydmobilenet.get_dataset(alone, "all")


def test_more_images_change_no_more_than_their_own_class(alone):
    before = get_splits(alone, Fractions(0.2, 0.2))
    shutil.copy(alone / "a" / "00.png", alone / "a" / "99.png")
    after = get_splits(alone, Fractions(0.2, 0.2))
    assert [f for f in before.test.files if f[0] != "a"] == [f for f in after.test.files if f[0] != "a"]


def test_the_parts_are_in_the_order_of_the_images(alone):
    dataset = pydmobilenet.get_dataset(alone, "all")
    for part in stratified(dataset, Fractions(0.3, 0.3)):
        assert (np.diff(part) > 0).all()
