"""CIFAR-10 and CIFAR-100: every layout, every kind of damage, the downloads."""

import os
import pickle

import numpy as np
import pytest
from helpers import GOOD, archive_of, as_binary, as_pickle, batch, first_images, png, split_contents
from PIL import Image

import pydmobilenet
from pydmobilenet import data
from pydmobilenet.data import cifar, normalise
from pydmobilenet.errors import BadFileError, MissingFileError

SETS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("form", ["binary", "pickled"])
@pytest.mark.parametrize("spot", ["flat", "folder", "archive"])
@pytest.mark.parametrize("name", SETS)
def test_every_layout_gives_the_same_images_and_labels(name, spot, form, split, tmp_path):
    layout = SETS[name]
    contents, images, labels = split_contents(layout, form, split)
    if spot == "archive":
        archive = layout.archives[0 if form == "binary" else 1]
        (tmp_path / archive).write_bytes(archive_of(contents, "some-folder/"))
    else:
        folder = tmp_path / ("" if spot == "flat" else layout.folders[1 if form == "binary" else 2])
        folder.mkdir(exist_ok=True)
        for file, content in contents.items():
            (folder / file).write_bytes(content)
    dataset = pydmobilenet.get_dataset(name, split, tmp_path)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels[:, -1])
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    assert not dataset.official
    assert not dataset.doubt
    assert str(tmp_path) in dataset.source
    if name == "cifar100":
        coarse = pydmobilenet.get_dataset("cifar100-coarse", split, tmp_path)
        np.testing.assert_array_equal(coarse.labels, labels[:, 0])


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(protocol):
    images, labels = batch(cifar.CIFAR10)
    read = cifar.parse_pickle(cifar.CIFAR10, "x", as_pickle(cifar.CIFAR10, images, labels, protocol))
    np.testing.assert_array_equal(read[0], images)


def test_pickles_of_python_2_are_read():
    # As Python 2 writes {'labels': [3], 'data': <one image of sevens>}: byte strings, and NumPy's old module name.
    seven = b"\x07" * 3072
    content = (
        b"\x80\x02}q\x01(U\x06labels]q\x02K\x03aU\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + (3072).to_bytes(4, "little")
        + seven
        + b"tbu."
    )
    images, labels = cifar.parse_pickle(cifar.CIFAR10, "x", content)
    assert labels.tolist() == [[3]]
    assert (images == 7).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("name", SETS)
def test_folders_of_images_are_read_with_classes_in_turn(name, suffix, tmp_path):
    layout = SETS[name]
    some = layout.classes[2:5]
    for label in some:
        (tmp_path / "test" / label).mkdir(parents=True)
        for number in range(4):
            colour = (10 * layout.classes.index(label) % 256, 50 * number, 0)
            Image.new("RGB", (32, 32), colour).save(tmp_path / "test" / label / f"{number}.{suffix}")
    dataset = pydmobilenet.get_dataset(name, "test", tmp_path)
    assert dataset.labels.tolist() == [2, 3, 4] * 4
    assert all(name in dataset.doubt for name in (*layout.binary["test"], *layout.pickled["test"], *layout.archives))
    assert abs(dataset.images[4, :, 16, 16].astype(int) - (30, 50, 0)).max() <= (0 if suffix == "png" else 3)
    if name == "cifar100":
        coarse = pydmobilenet.get_dataset("cifar100-coarse", "test", tmp_path)
        assert coarse.labels.tolist() == cifar.COARSE_OF_FINE[[2, 3, 4]].tolist() * 4


def test_read_the_first_real_images(shared, tmp_path):
    os.symlink(shared / "datasets" / "cifar10-test-first1000.bin", tmp_path / "test_batch.bin")
    dataset = pydmobilenet.get_dataset("cifar10", "test", tmp_path)
    assert len(dataset) == 1000
    np.testing.assert_array_equal(dataset.images, first_images())
    assert [dataset.task.classes[label] for label in dataset.labels[:4]] == ["cat", "ship", "ship", "airplane"]


def test_superclasses_are_numbered_as_in_the_official_files():
    # The widely used table of CIFAR-100: the superclass of each class, in the classes' order.
    expected = """4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
    5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13
    16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"""
    assert [str(label) for label in cifar.COARSE_OF_FINE] == expected.split()
    assert list(cifar.SUPERCLASSES) == sorted(cifar.SUPERCLASSES)
    assert len(set(cifar.FINE_CLASSES)) == 100


@pytest.mark.gluon
def test_normalise_as_gluons_transforms():
    from mxnet import nd
    from mxnet.gluon.data.vision import transforms

    images = batch(cifar.CIFAR10)[0]
    task = data.get_task("cifar10")
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(task.mean, task.std)])
    expected = np.stack([reference(nd.array(image, dtype="uint8")).asnumpy() for image in images.transpose(0, 2, 3, 1)])
    found = normalise(images, task)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# Damage


def put(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return pytest.raises(BadFileError)


@pytest.mark.parametrize("content", [b"", GOOD[:-1], GOOD + b"x", b"<html></html>"])
def test_a_binary_file_of_a_wrong_size_is_refused(content, tmp_path):
    with put(tmp_path, "test_batch.bin", content) as caught:
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)
    assert f"{tmp_path}/test_batch.bin is truncated, or not of CIFAR-10" in str(caught.value)


def test_a_label_out_of_range_is_named_with_its_image(tmp_path):
    images, labels = batch(cifar.CIFAR10)
    labels[17] = 10
    with put(tmp_path, "test_batch.bin", as_binary(images, labels)) as caught:
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)
    assert "label 10 of image 17 is invalid (allowed: 0 to 9)" in str(caught.value)


def test_a_superclass_out_of_range_is_named(tmp_path):
    images, labels = batch(cifar.CIFAR100)
    labels[3, 0] = 20
    with put(tmp_path, "test.bin", as_binary(images, labels)) as caught:
        pydmobilenet.get_dataset("cifar100", "test", tmp_path)
    assert "label 20 of image 3 is invalid (allowed: 0 to 19)" in str(caught.value)


def test_a_missing_batch_of_several_is_named(tmp_path):
    for name in cifar.CIFAR10.binary["train"][:-1]:
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(BadFileError, match=r"lacks data_batch_5\.bin"):
        pydmobilenet.get_dataset("cifar10", "train", tmp_path)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/pydmobilenet-was-here",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"data": Malicious(), "labels": []}), "posix.system"),
        (pickle.dumps(Malicious(), protocol=0), "posix.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c_codecs\nencode\n(Vx\nVzip\ntR.", "encoded as 'zip'"),
        # Two that would have NumPy's own classes take bytes for pointers:
        (b"cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(S'O8'\nI00\nI01\ntRC\x08AAAAAAAAtR.", "not a pickled batch"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01tcnumpy\ndtype\n"
            b"(S'O8'\nI00\nI01\ntR(K\x03S'|'\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nC\x08AAAAAAAAtb.",
            "no plain number",
        ),
        (pickle.dumps({"data": np.zeros((1, 3072), ">u2"), "labels": [1]}), ">u2"),
        (pickle.dumps({"data": np.array([None]), "labels": [1]}), "no plain number"),
        (b"c_codecs\nencode\n}X\x0c\x00\x00\x00__defaults__K\x01sb.", "it holds a function"),
        (b"\x80\x04\x8f.", "holds a set"),
        (b"c" + b"m" * 100_000 + b"\nx\n.", "it calls mmm"),  # on one line all the same
        (b"B" + (3_500_000_000).to_bytes(4, "little") + b"..", "not a pickled batch"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "not a pickled batch of CIFAR-10"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [1]}), "float32"),
        (pickle.dumps({"data": np.zeros((1, 100), np.uint8), "labels": [1]}), "100"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}), "not a pickled batch"),
        (pickle.dumps({"labels": [1]}), "'data'"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1]})[:-9], "not a pickled batch"),
        (b"", "not a pickled batch"),
    ],
)
def test_a_bad_or_malicious_pickle_is_refused(content, words, tmp_path):
    with put(tmp_path, "test_batch", content) as caught:
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)
    assert words in str(caught.value)
    assert f"{tmp_path}/test_batch" in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 250
    assert not os.path.exists("/tmp/pydmobilenet-was-here")


@pytest.mark.parametrize("damage", ["truncated", "text", "without the file"])
def test_a_damaged_archive_is_refused(damage, tmp_path):
    content = archive_of({"test_batch.bin": GOOD})
    content = {"truncated": content[:-2000], "text": b"<html>", "without the file": archive_of({"x": b"y"})}[damage]
    with put(tmp_path, "cifar-10-binary.tar.gz", content) as caught:
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)
    assert f"{tmp_path}/cifar-10-binary.tar.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "file", "content", "words"),
    [
        ("airplaine", "1.png", b"", "class 'airplaine'; nearest: airplane"),
        ("airplane", "1.png", b"no image", "1.png cannot be read as an image"),
        ("airplane", "1.txt", b"no image", "no folder of images"),
    ],
)
def test_a_bad_folder_of_images_is_refused(folder, file, content, words, tmp_path):
    (tmp_path / "test" / folder).mkdir(parents=True)
    (tmp_path / "test" / folder / file).write_bytes(content)
    (tmp_path / "test" / "cat").mkdir()
    with pytest.raises(BadFileError, match=words):
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)


def test_hidden_files_are_passed_over(tmp_path):
    for folder in ("cat", ".ipynb_checkpoints"):
        (tmp_path / "test" / folder).mkdir(parents=True)
    (tmp_path / "test" / "cat" / "._1.jpg").write_bytes(b"no image")
    Image.new("RGB", (32, 32)).save(tmp_path / "test" / "cat" / "1.png")
    with pytest.warns(UserWarning, match="images of one class only, 'cat'"):
        dataset = pydmobilenet.get_dataset("cifar10", "test", tmp_path)
    assert dataset.labels.tolist() == [3]
    assert dataset.note.endswith("; skipped: 2 hidden")


def test_a_folder_of_one_data_set_does_not_stand_in_the_way_of_another(tmp_path):
    (tmp_path / "test" / "airplane").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "test" / "airplane" / "1.png")
    with pytest.raises(MissingFileError, match="CIFAR-100 are not in"):
        pydmobilenet.get_dataset("cifar100", "test", tmp_path)


def test_refuse_a_huge_image_unread(tmp_path):
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "1.png").write_bytes(png([], 1, 0, size=(60_000, 60_000)))
    with pytest.raises(BadFileError, match=r"1\.png"):
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)


def test_an_image_of_another_size_is_refused(tmp_path):
    (tmp_path / "test" / "cat").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "test" / "cat" / "1.png")
    with pytest.raises(BadFileError, match=r"64x48 pixels \(allowed: 32x32\)"):
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("mnist",), "data set 'mnist'"), (("cifar10", "val"), "split 'val'"), (("Cifar10",), "nearest: cifar10")],
)
def test_list_the_allowed_names_for_an_unknown_one(arguments, words):
    with pytest.raises(ValueError, match=words):
        pydmobilenet.get_dataset(*arguments)
