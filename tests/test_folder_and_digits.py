"""Any folder of images, the digits, and the picture that shows a data set."""

import os
import shutil
import warnings

import numpy as np
import pytest
from helpers import commander, make_classes
from PIL import Image

import pydmobilenet
from pydmobilenet import catalog
from pydmobilenet.data import get_splits, get_task, splits
from pydmobilenet.data.folder import find
from pydmobilenet.errors import BadFileError, MissingFileError, UnusableError
from pydmobilenet.plots import grid, sample, shortened


@pytest.fixture
def folder(tmp_path):
    """Two classes, four images each for training and two for the test, of different sizes and kinds."""
    for split, number in (("train", 4), ("test", 2)):
        for label, colour in (("zebra", (250, 250, 250)), ("ant", (200, 30, 30))):
            (tmp_path / split / label).mkdir(parents=True)
            for count in range(number):
                size = (32, 32) if count % 2 else (90, 60)
                ending = "jpg" if count % 2 else "png"
                Image.new("RGB", size, colour).save(tmp_path / split / label / f"{count}.{ending}")
    return tmp_path


def test_a_folder_is_a_data_set_with_its_classes_in_sorted_order(folder):
    name = f"folder:{folder}"
    task = get_task(name)
    assert task.classes == ("ant", "zebra")
    assert task.outputs == 2
    train = pydmobilenet.get_dataset(name, "train")
    assert train.images.shape == (8, 3, 32, 32)
    assert train.labels.tolist() == [0, 1] * 4
    for image, label in zip(train.images, train.labels):
        assert abs(image[1, 16, 16].astype(int) - (250 if label else 30)) <= 2
    assert len(pydmobilenet.get_dataset(name, "test")) == 4
    assert catalog.describe("pyd-add-11-0.25", name).head.parameters["weight"] == (2, 128)


def test_grey_images_and_images_with_transparency_are_read(folder):
    Image.new("L", (32, 32), 200).save(folder / "train" / "ant" / "grey.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 4)).save(folder / "train" / "ant" / "clear.png")
    Image.new("P", (32, 32)).save(folder / "train" / "ant" / "palette.png")
    with pytest.warns(UserWarning, match="train: 1 of 11 images had transparency: composited on white"):
        assert len(pydmobilenet.get_dataset(f"folder:{folder}", "train")) == 11


def test_an_unreadable_image_is_named_or_skipped_on_request(folder):
    (folder / "train" / "ant" / "bad.png").write_bytes(b"no image")
    name = f"folder:{folder}"
    with pytest.raises(BadFileError, match=r"ant/bad\.png cannot be read.*--skip-bad"):
        pydmobilenet.get_dataset(name, "train")
    with pytest.warns(UserWarning, match=r"bad\.png.*skipped"):
        assert len(pydmobilenet.get_dataset(name, "train", skip_bad=True)) == 8


def test_images_of_16_bits_are_scaled_not_clipped(folder):
    ramp = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "train" / "ant" / "0.png")
    image = pydmobilenet.get_dataset(f"folder:{folder}", "train").images[0]
    assert abs(image[0].astype(int) - ramp // 256).max() <= 1


def test_refuse_a_class_without_readable_images(folder):
    for path in (folder / "train" / "ant").iterdir():
        path.write_bytes(b"no image")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(BadFileError, match="a class without any readable image"),
    ):
        pydmobilenet.get_dataset(f"folder:{folder}", "train", skip_bad=True)


def test_an_empty_class_is_named(folder):
    (folder / "train" / "bee").mkdir()
    (folder / "train" / "bee" / "1.heic").write_bytes(b"")
    with pytest.raises(BadFileError, match=r"train/bee has no images \(allowed: PNG, JPEG, .*; skipped: 1 .heic\)"):
        pydmobilenet.get_dataset(f"folder:{folder}", "train")


def test_empty_and_hidden_folders_and_those_of_macos_archives_are_skipped_with_a_note(folder):
    (folder / "train" / "bee" / "deeper").mkdir(parents=True)
    (folder / "train" / "bee" / ".DS_Store").write_bytes(b"")
    for place in (folder, folder / "train", folder / "train" / "ant"):
        (place / "__MACOSX").mkdir()
        (place / "__MACOSX" / "0.png").write_bytes(b"no image")
    (folder / "train" / ".cache").mkdir()
    (folder / "val").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = pydmobilenet.get_dataset(folder, "train")
    assert dataset.task.classes == ("ant", "zebra")
    assert dataset.note.endswith("8 images (ant 4, zebra 4); skipped: 4 hidden, 2 empty folder")
    assert splits.kinds(f"folder:{folder}") == ("train", "test")


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_a_split_is_known_by_its_other_names_in_any_case(train, val, tmp_path):
    make_classes(tmp_path, "ab", {train: 3, val: 2, "Test": 1})
    datasets = get_splits(tmp_path)
    assert [(each.split, len(each), each.files[0]) for each in datasets] == [
        ("train", 6, f"{train}/a/00.png"),
        ("val", 4, f"{val}/a/00.png"),
        ("test", 2, "Test/a/00.png"),
    ]


def test_two_names_of_one_split_are_a_mistake(tmp_path):
    make_classes(tmp_path, "ab", {"train": 2, "val": 2, "valid": 2})
    with pytest.raises(BadFileError, match="has val/ and valid/, names of one split: keep one"):
        get_splits(tmp_path)


def test_other_folders_beside_train_are_named(tmp_path):
    make_classes(tmp_path, "ab", {"train": 2, "test": 2, "holdout": 2})
    (tmp_path / "val").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "0.png")  # without classes
    with pytest.warns(UserWarning, match="beside train/, not used: holdout/, val/$"):
        get_splits(tmp_path)


def clutter(folder):
    """Put into a folder what is no image; the number of each kind."""
    (folder / "notes.txt").write_text("no image")
    (folder / "._0.png").write_bytes(b"no image")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"no image")
    (folder / "x.png").mkdir()
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    (folder / "ring").symlink_to(folder)
    (folder / "a.b\x1b[31m").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    return {".txt": 1, "hidden": 2, "broken link or special file": 2, "linked folder": 1, ".b\x1b[31m": 1}


def test_skip_and_count_other_files(folder):
    kinds = clutter(folder / "train" / "ant")
    (folder / "train" / "list.csv").write_text("")
    files, skipped = find(folder / "train" / "ant")
    assert [path.name for path in files] == ["0.png", "1.jpg", "2.png", "3.jpg"]
    assert skipped == kinds
    dataset = pydmobilenet.get_dataset(f"folder:{folder}", "train")
    assert len(dataset) == 8
    figures, _, skipped = dataset.note.partition("; skipped: ")
    assert figures == f"{folder}/train: 8 images (ant 4, zebra 4)"
    assert sorted(skipped.split(", ")) == sorted(
        ["1 outside of classes", *(f"{count} {kind}" for kind, count in kinds.items())]
    )


def test_nested_folders_are_read_with_the_suffixes_of_all_formats_in_any_case(folder):
    deep = folder / "train" / "ant" / "x.png" / "summer"
    deep.mkdir(parents=True)
    names = ("a.PNG", "b.JPG", "c.jpeg", "d.jfif", "e.webp", "f.bmp", "g.tif", "h.TIFF", "i.gif")
    for name in names:
        Image.new("RGB", (8, 8)).save(deep / name)
    dataset = pydmobilenet.get_dataset(f"folder:{folder}", "train")
    assert dataset.note == f"{folder}/train: {8 + len(names)} images (ant {4 + len(names)}, zebra 4)"
    assert (dataset.labels == 0).sum() == 4 + len(names)


def test_note_the_range_of_many_classes(tmp_path):
    for number in range(25):
        (tmp_path / "test" / f"{number:02}").mkdir(parents=True)
        for image in range(1 + number // 24):
            Image.new("L", (8, 8)).save(tmp_path / "test" / f"{number:02}" / f"{image}.png")
    note = pydmobilenet.get_dataset(f"folder:{tmp_path}", "test").note
    assert note == f"{tmp_path}/test: 26 images of 25 classes, 1 to 2 each"


def test_one_class_only_is_a_warning(folder):
    shutil.rmtree(folder / "train" / "zebra")
    with pytest.warns(UserWarning, match="train has images of one class only, 'ant'"):
        pydmobilenet.get_dataset(f"folder:{folder}", "train")


def test_name_an_unreadable_folder(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if "ant" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UnusableError, match=r"cannot read .*/train/ant: Permission denied"):
        find(folder / "train")


def test_name_a_class_only_in_the_test(folder):
    (folder / "test" / "zebra").rename(folder / "test" / "zebras")
    with pytest.raises(BadFileError, match="class 'zebras'; nearest: zebra"):
        pydmobilenet.get_dataset(f"folder:{folder}", "test")


def test_a_folder_without_images_or_splits_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="neither train/ nor test/"):
        pydmobilenet.get_dataset(f"folder:{tmp_path}", "train")
    (tmp_path / "train").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "0.png")
    with pytest.raises(BadFileError, match="no folder of images"):
        pydmobilenet.get_dataset(f"folder:{tmp_path}", "train")
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "train" / "0.png").rename(tmp_path / "train" / "ant" / "0.png")
    with pytest.raises(MissingFileError, match="has no test/"):
        pydmobilenet.get_dataset(f"folder:{tmp_path}", "test")


def test_digits_are_scikit_learns_with_its_last_360_as_the_test():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    train, test = (pydmobilenet.get_dataset("digits", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), digits.target)
    assert train.images.shape == (1437, 3, 32, 32)
    np.testing.assert_array_equal(np.rint(train.images[:, 0, ::4, ::4] / 255 * 16), digits.images[:1437])
    np.testing.assert_array_equal(train.images[5, 0], train.images[5, 2])
    assert train.images.max() == 255
    assert test.official
    normalised = train.normalised()
    assert abs(normalised.mean()) < 1e-3
    assert abs(normalised.std() - 1) < 1e-3


def test_show_images_raw_and_augmented(folder):
    picture = np.asarray(grid(pydmobilenet.get_dataset(f"folder:{folder}", "train")))
    assert picture.shape == (6 + 14 + 6 + 4 * (96 + 6), 6 + 8 * (96 + 6), 3)
    for row in range(4):  # the first image is an ant
        y, x = 6 + 14 + row * 102 + 48, 6 + 48
        assert abs(picture[y, x].astype(int) - (200, 30, 30)).max() <= 2


def test_the_picture_s_images_are_random_ones_of_all_classes_in_turn():
    train = pydmobilenet.get_dataset("digits")
    chosen = sample(train, 25)
    assert chosen.labels.tolist() == [*range(10), *range(10), *range(5)]
    assert {image.tobytes() for image in chosen.images} <= {image.tobytes() for image in train.images}
    np.testing.assert_array_equal(chosen.images, sample(train, 25).images)
    assert (chosen.images != sample(train, 25, seed=1).images).any()


def test_the_picture_has_room_for_larger_images(show, tmp_path):
    make_classes(tmp_path / "photos", "abc", {".": 4}, side=64)
    code, _, err = show("--dataset", tmp_path / "photos", "--image-size", 64, "--output", tmp_path / "grid.png")
    assert code == 0, err
    assert Image.open(tmp_path / "grid.png").size == (6 + 8 * (128 + 6), 6 + 2 * (14 + 6 + 4 * (128 + 6)))


@pytest.mark.parametrize(
    "name", ["ant", "sixteen_letters_", "a_long_name_of_the_class_1", "a_long_name_of_the_class_2"]
)
def test_shorten_long_names_in_the_middle(name):
    shown = shortened(name, 16)
    assert (shown == name) == (len(name) <= 16)
    assert len(shown) <= 16
    assert shown[-6:] == name[-6:]


@pytest.fixture
def show(monkeypatch, capsys):
    """Run the command in this process."""
    run = commander(monkeypatch, capsys)
    return lambda *arguments: run("show", *arguments)


def test_the_command_writes_the_picture(show, folder, tmp_path):
    code, _, err = show("--dataset", f"folder:{folder}", "--output", tmp_path / "grid.png", "--images", 3)
    assert code == 0, err
    assert err == f"data: {folder}/train: 8 images (ant 4, zebra 4)\n"
    assert Image.open(tmp_path / "grid.png").size == (6 + 3 * 102, 6 + 14 + 6 + 4 * 102)


def test_replace_no_other_file_by_the_picture(show, folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    code, _, err = show("--dataset", f"folder:{folder}", "--output", tmp_path / "pipe.png")
    assert (code, err.count("\n")) == (2, 1)
    assert f"cannot write {tmp_path}/pipe.png: it is a pipe, a socket or a device" in err
    (tmp_path / "grid.jpg.part.jpg").write_text("mine")
    assert show("--dataset", f"folder:{folder}", "--output", tmp_path / "grid.jpg", "--images", 3)[0] == 0
    assert Image.open(tmp_path / "grid.jpg").format == "JPEG"
    assert (tmp_path / "grid.jpg.part.jpg").read_text() == "mine"
    assert (tmp_path / "pipe.png").is_fifo()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "grid.gif"], "allowed: .png, .jpg"),
        (["--dataset", "digit", "--output", "grid.png"], "nearest: digits"),
        (["--data-dir", "/nowhere", "--output", "grid.png"], "no such directory: /nowhere"),
        (["--dataset", "digits", "--output", "/nowhere/grid.png"], "cannot write /nowhere/grid.png"),
        ([], "required: --output"),
        (["--output", "grid.png", "--seed", "-1"], "'-1' (allowed: a whole number from 0)"),
        (["--output", "grid.png", "--datset", "digits"], "nearest: --dataset"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(show, arguments, words):
    code, _, err = show(*arguments)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
