"""Training, validation and test images: those that a data set has, and those that are put aside."""

import hashlib
import itertools
import shutil
import warnings

import numpy as np
import pytest
from helpers import make_classes, read_picture

import pydmobilenet
from pydmobilenet import checkpoints
from pydmobilenet.data import Fractions, folder, get_splits, get_task
from pydmobilenet.data.datasets import tell_of_namesake
from pydmobilenet.data.splits import DEFAULT, sides
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError, UnusableError
from pydmobilenet.files import CONFIGS
from pydmobilenet.training import config


@pytest.fixture
def alone(tmp_path):
    """Class folders alone, of ten images each."""
    return make_classes(tmp_path / "photos", "abc", {".": 10})


def sides_of(splits):
    """The side of each image, by the hash of its content."""
    return {each: part.split for part in splits if part for each in part.hashes}


def test_class_folders_alone_are_split_by_the_hashes_of_their_files(alone):
    splits = get_splits(alone, Fractions(val=0.2, test=0.3))
    assert [each.split for each in splits] == ["train", "val", "test"]
    assert sorted(file for each in splits for file in each.files) == [
        f"{c}/{n:02}.png" for c in "abc" for n in range(10)
    ]
    counts = np.bincount(splits.val.labels).tolist()
    assert splits.val.note == f"val: {sum(counts)} images (a {counts[0]}, b {counts[1]}, c {counts[2]}), of {alone}"
    lent = 0
    for dataset in splits:
        for file, label, image, content in zip(dataset.files, dataset.labels, dataset.images, dataset.hashes):
            assert "abc"[label] == file[0]
            np.testing.assert_array_equal(image, read_picture(alone / file).pixels)
            assert hashlib.sha256((alone / file).read_bytes()).hexdigest().startswith(content)
            position = int(content, 16) / 16**16
            expected = "test" if position < 0.3 else "val" if position >= 0.8 else "train"
            lent += dataset.split != expected
    assert lent <= 6


def test_keep_sides_in_a_growing_folder(tmp_path):
    """Whatever is added, renamed, moved or removed; at another size of images too."""
    grown = make_classes(tmp_path / "grown", "abc", {".": 150}, side=4)
    for path in sorted(grown.glob("*/*.png")):
        if int(path.stem) < 50:
            (tmp_path / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "photos" / path.parent.name / f"picture {path.stem}.png")
    before = sides_of(get_splits(tmp_path / "photos", DEFAULT))
    assert len(before) == 150
    assert 10 < list(before.values()).count("test") < 50
    after = get_splits(grown, DEFAULT, task=get_task(grown, 8))
    assert before.items() <= sides_of(after).items()
    assert abs(len(after.test) / 450 - 0.2) < 0.07
    for path in sorted(grown.glob("*/*.png"))[::3]:
        path.unlink()
    (grown / "a").rename(grown / "z")
    (grown / "d").mkdir()
    for path in sorted((grown / "b").iterdir())[:30]:
        path.rename(grown / "d" / f"{path.stem}.jpg")
    fewer = sides_of(get_splits(grown, DEFAULT))
    assert len(fewer) == 300
    assert fewer.items() <= sides_of(after).items()


def test_another_share_for_one_split_moves_no_image_of_the_other(alone):
    splits = {(val, test): get_splits(alone, Fractions(val, test)) for val in (0.1, 0.3) for test in (0.1, 0.3)}
    for share in (0.1, 0.3):
        assert splits[0.1, share].test.files == splits[0.3, share].test.files
    assert set(splits[0.1, 0.1].test.files) <= set(splits[0.1, 0.3].test.files)


def place(position, extra=0):
    """A hash that stands at a position from 0 to 1."""
    return f"{int(position * 16**13):013x}{extra:03x}"


def split(positions, labels, val=0.2, test=0.2):
    found = sides(tuple(map(place, positions)), np.array(labels), Fractions(val, test))
    return "".join("-vt"[side] for side in found.tolist())


def test_split_at_the_fractions():
    assert split([0, 0.1999, 0.2001, 0.5, 0.7999, 0.8001, 0.9999], [0] * 7) == "tt---vv"
    assert split([0, 0.3, 0.5, 0.7, 0.9999], [0] * 5, val=0) == "t----"
    assert split([0, 0.3, 0.5, 0.7, 0.9999], [0] * 5, test=0) == "----v"
    assert sides(("f" * 16, place(0.5)), np.array([0, 0]), Fractions(0, 0)).tolist() == [0, 0]


def test_a_class_without_images_on_a_side_lends_the_nearest_until_it_has_some():
    assert split([0.3, 0.4, 0.6, 0.7], [0] * 4) == "t--v"
    assert split([0.3, 0.4, 0.6, 0.7, 0.1], [0] * 5) == "---vt"  # the lent one learns again
    assert split([0.3, 0.4, 0.6, 0.7, 0.1, 0.9], [0] * 6) == "----tv"
    assert split([0.3, 0.4, 0.6, 0.1, 0.9], [0, 0, 0, 1, 1], val=0) == "t--t-"


def test_a_class_with_nothing_to_train_on_takes_a_validation_image_back_and_never_a_test_image():
    assert split([0.81, 0.9, 0.95], [0] * 3, test=0) == "-vv"
    assert split([0.1, 0.15, 0.9], [0] * 3) == "tt-"
    assert split([0.1, 0.15, 0.9, 0.5], [0] * 4) == "ttv-"
    assert split([0.1, 0.15], [0] * 2) == "tt"


def test_put_equal_images_on_one_side():
    assert split([0.3, 0.4, 0.5, 0.6, 0.3, 0.1, 0.9, 0.5], [0, 0, 0, 0, 1, 1, 1, 1]) == "t--vttv-"


def test_twins_of_one_folder_are_on_the_same_side(alone):
    for number in range(10):
        shutil.copy(alone / "a" / f"{number:02}.png", alone / "b" / f"twin {number}.png")
    splits = get_splits(alone, DEFAULT)
    for first, second in itertools.permutations(splits, 2):
        assert not set(first.hashes) & set(second.hashes)
    assert sum(map(len, splits)) == 40


def test_leave_out_training_images_held_out_too(tmp_path):
    make_classes(tmp_path, "ab", {"train": 8, "val": 4, "test": 4})
    shutil.copy(tmp_path / "test" / "a" / "01.png", tmp_path / "train" / "b" / "x.png")
    shutil.copy(tmp_path / "val" / "a" / "01.png", tmp_path / "train" / "b" / "y.png")
    with pytest.warns(UserWarning, match="are (val|test) images too, as train/b/[xy].png: left out") as warned:
        splits = get_splits(tmp_path)
    assert len(warned) == 2
    assert list(map(len, splits)) == [16, 8, 8]
    assert not set(splits.train.hashes) & {*splits.val.hashes, *splits.test.hashes}
    for path in (tmp_path / "train" / "a").iterdir():
        shutil.copy(tmp_path / "test" / "a" / "01.png", path)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(BadFileError, match="train has a class with only test images"),
    ):
        get_splits(tmp_path)


def test_return_the_splits_of_training(alone):
    splits = get_splits(alone, DEFAULT)
    for recipe in ("folder", "finetune"):
        values = config.read(CONFIGS / f"{recipe}.yaml")
        assert (values["val_fraction"], values["test_fraction"]) == DEFAULT
    for part in splits:
        assert pydmobilenet.get_dataset(alone, split=part.split).files == part.files
    assert len(pydmobilenet.get_dataset(alone, "all")) == 30
    own = get_splits(alone, Fractions(0, 0.4))
    for part in (own.train, own.test):
        other = pydmobilenet.get_dataset(alone, part.split, val_fraction=0, test_fraction=0.4)
        assert other.files == part.files
    digits = pydmobilenet.get_dataset("digits", "val", val_fraction=0.1)
    np.testing.assert_array_equal(digits.images, get_splits("digits", Fractions(0.1)).val.images)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("digits", {"split": "val"}, "unknown split 'val'"),
        ("digits", {"test_fraction": 0.1}, "test_fraction 0.1 cannot be used: the data has train, test; nearest: 0"),
        ("digits", {"val_fraction": 0.9}, r"fractions are 0.9 and 0 \(allowed: 0 to 0.5\)"),
        ("alone", {"split": "val", "val_fraction": 0}, "val_fraction 0 leaves no val images; nearest: 0.2"),
    ],
)
def test_refuse_unusable_fractions(name, given, words, alone):
    with pytest.raises(InvalidValueError, match=words):
        pydmobilenet.get_dataset(alone if name == "alone" else name, **given)


def test_note_skipped_files_with_the_training_images(alone):
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
    assert np.bincount(splits.val.labels).min() > 0
    assert abs(len(splits.val) / len(data) - 0.1) < 0.07
    pixels = {image.tobytes() for image in data.images}
    assert {image.tobytes() for each in splits[:2] for image in each.images} == pixels


def test_take_a_folders_validation_images(tmp_path):
    make_classes(tmp_path, "ab", {"train": 4, "val": 3, "test": 2})
    splits = get_splits(tmp_path, DEFAULT)
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
    (tmp_path / "train" / "00.png").rename(tmp_path / "train" / "ice" / "00.png")
    assert get_task(tmp_path).classes == ("ice",)


def test_splits_without_classes_are_no_classes_themselves(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(BadFileError, match="test has no folder of images for each class"):
        get_task(tmp_path)


def test_name_a_class_that_is_too_small(alone):
    for path in sorted((alone / "b").iterdir())[1:]:
        path.unlink()
    words = "class 'b' has no image left for training, of 1: add some, or lower test_fraction"
    with pytest.raises(InvalidValueError, match=words):
        get_splits(alone, DEFAULT)


def test_hold_out_nothing_of_imagenet32(monkeypatch):
    monkeypatch.setattr("pydmobilenet.data.splits.read_split", lambda *_: None)
    with pytest.raises(InvalidValueError, match=r"val_fraction of imagenet32 is not supported \(allowed: 0\)"):
        get_splits("imagenet32", Fractions(val=0.1))


def test_a_folder_without_training_images_is_named(tmp_path):
    make_classes(tmp_path, "ab", {"test": 2})
    with pytest.raises(InvalidValueError, match=r"has no train/ \(it has: test\)"):
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
    with pytest.raises(InvalidValueError, match=r"image_size is 64 \(allowed: 32, as digits has"):
        get_task("digits", 64)


def test_refuse_images_beyond_the_memory(alone, monkeypatch):
    monkeypatch.setattr(folder, "available_memory", lambda: 100_000)
    with pytest.raises(UnusableError, match=r"30 images of 32x32 pixels take 0\.0 GB of memory"):
        pydmobilenet.get_dataset(alone, "all")


def test_the_parts_are_in_the_order_of_the_images(alone):
    files = pydmobilenet.get_dataset(alone, "all").files
    for part in get_splits(alone, Fractions(0.3, 0.3)):
        assert [file for file in files if file in part.files] == list(part.files)


def test_warn_once_of_a_folder_named_as_a_data_set(tmp_path, monkeypatch):
    make_classes(tmp_path / "digits", "ab", {"train": 4, "test": 2})
    monkeypatch.chdir(tmp_path)
    tell_of_namesake.cache_clear()
    with pytest.warns(UserWarning, match="digits is the data set of that name; for the folder, give ./digits"):
        assert len(pydmobilenet.get_dataset("digits", "test")) == 360
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pydmobilenet.get_dataset("digits", "test")
        assert len(pydmobilenet.get_dataset("./digits", "test")) == 4
    tell_of_namesake.cache_clear()
    with pytest.warns(UserWarning, match="digits is the data set of that name"):
        checkpoints.find("pyd-add-29-0.25", "digits")
    tell_of_namesake.cache_clear()


@pytest.mark.trains
@pytest.mark.parametrize("layout", [{"test": 2}, {"test": 2, "val": 2}])
def test_training_on_a_folder_without_train_is_refused(layout, tmp_path):
    make_classes(tmp_path / "photos", "ab", layout)
    with pytest.raises(InvalidValueError, match="has no train/"):
        pydmobilenet.train("pyd-add-11-0.125", tmp_path / "photos", output=tmp_path / "run", progress=False)
