"""ImageNet32: both official forms, their conversion, and all that can be wrong with the files."""

import json
import os
import pickle

import numpy as np
import pytest

import pydmobilenet
from pydmobilenet.data import imagenet32
from pydmobilenet.data.imagenet32 import FILES, Arrays, convert, find_sources
from pydmobilenet.errors import BadFileError, MissingFileError, UnusableError

EACH = 40  # images in a file


def batch(seed, number=EACH):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (number, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": rng.integers(1, 1001, number).tolist(), "mean": pixels.mean(axis=0)}


def save(path, content, form="pickled"):
    if form == "npz":
        np.savez(f"{path}.npz", **content)
    else:
        path.write_bytes(pickle.dumps(content))


@pytest.fixture(params=["pickled", "npz"])
def form(request):
    return request.param


@pytest.fixture
def folder(tmp_path, form):
    """A small ImageNet32 in its full layout: ten files for training, one for validation."""
    folder = tmp_path / "imagenet32"
    folder.mkdir()
    for seed, name in enumerate(FILES["train"] + FILES["test"]):
        save(folder / name, batch(seed), form)
    return folder


def expected(split):
    seeds = range(10) if split == "train" else [10]
    parts = [batch(seed) for seed in seeds]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return pixels, np.concatenate([part["labels"] for part in parts]) - 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_forms_give_images_in_the_files_order_with_labels_from_0(folder, split):
    images, labels = expected(split)
    for _ in range(2):  # converted, then opened
        dataset = pydmobilenet.get_dataset("imagenet32", split, folder.parent)
        np.testing.assert_array_equal(dataset.images, images)
        np.testing.assert_array_equal(dataset.labels, labels)
        assert isinstance(dataset.images, np.memmap)
        assert dataset.labels.dtype == np.int64
        assert not dataset.official
    assert dataset.labels.min() >= 0
    assert dataset.labels.max() <= 999


def test_the_subfolders_of_the_official_archives_are_found(folder, form):
    suffix = "_npz" if form == "npz" else ""
    for kind, names in (("train", FILES["train"]), ("val", FILES["test"])):
        target = folder.parent / f"Imagenet32_{kind}{suffix}"
        target.mkdir()
        for name in names:
            ending = ".npz" if form == "npz" else ""
            (folder / f"{name}{ending}").rename(target / f"{name}{ending}")
    assert len(pydmobilenet.get_dataset("imagenet32", "train", folder.parent)) == 10 * EACH
    assert len(pydmobilenet.get_dataset("imagenet32", "test", folder.parent)) == EACH


def test_convert_once(folder, monkeypatch):
    pydmobilenet.get_dataset("imagenet32", "train", folder)
    monkeypatch.setattr(imagenet32, "load", lambda *_: pytest.fail("read again"))
    assert len(pydmobilenet.get_dataset("imagenet32", "train", folder)) == 10 * EACH
    for source in find_sources(folder, "train"):
        source.unlink()  # they may be deleted to save space
    assert len(pydmobilenet.get_dataset("imagenet32", "train", folder)) == 10 * EACH


@pytest.mark.parametrize("after", [0, 1, 9])
def test_an_interrupted_conversion_leaves_nothing_and_begins_again(folder, monkeypatch, after):
    real, loaded, there = imagenet32.load, [], set(folder.iterdir())

    def interrupted(source):
        if len(loaded) == after:
            raise KeyboardInterrupt
        loaded.append(source.name)
        return real(source)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet32, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pydmobilenet.get_dataset("imagenet32", "train", folder)
    assert {path.name for path in set(folder.iterdir()) - there} <= {".download.lock"}
    dataset = pydmobilenet.get_dataset("imagenet32", "train", folder)
    np.testing.assert_array_equal(dataset.images, expected("train")[0])
    np.testing.assert_array_equal(dataset.labels, expected("train")[1])


def test_open_an_earlier_versions_conversion(folder, monkeypatch):
    pydmobilenet.get_dataset("imagenet32", "test", folder)
    path = folder / "imagenet32-test.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "sources": [{**one, "crc32": 1} for one in record["sources"]]}))
    monkeypatch.setattr(imagenet32, "load", lambda *_: pytest.fail("read again"))
    np.testing.assert_array_equal(pydmobilenet.get_dataset("imagenet32", "test", folder).images, expected("test")[0])
    path.write_text(json.dumps({**record, "complete": False}))  # which was interrupted
    with pytest.raises(pytest.fail.Exception, match="read again"):
        pydmobilenet.get_dataset("imagenet32", "test", folder)


def test_refuse_truncated_arrays(folder):
    pydmobilenet.get_dataset("imagenet32", "test", folder)
    arrays = Arrays(folder, "test")
    os.truncate(arrays.images, 1000)
    with pytest.raises(BadFileError, match=r"has another size than recorded; delete .*json"):
        pydmobilenet.get_dataset("imagenet32", "test", folder)
    arrays.path(".json").unlink()
    assert len(pydmobilenet.get_dataset("imagenet32", "test", folder)) == EACH


def test_a_damaged_record_means_to_convert_again(folder):
    for text in (
        "{",
        "[]",
        '{"complete": true}',
        '{"complete": true, "sources": 5}',
        '{"complete": true, "sources": [1]}',
    ):
        (folder / "imagenet32-test.json").write_text(text)
        np.testing.assert_array_equal(
            pydmobilenet.get_dataset("imagenet32", "test", folder).images, expected("test")[0]
        )


def test_convert_changed_files_again(folder, form):
    pydmobilenet.get_dataset("imagenet32", "test", folder)
    for seed, number in ((99, 7), (98, 7)):  # fewer images, then others of the same size
        save(folder / "val_data", batch(seed, number), form)
        dataset = pydmobilenet.get_dataset("imagenet32", "test", folder)
        np.testing.assert_array_equal(dataset.images.reshape(number, -1), batch(seed, number)["data"])


def test_discard_the_old_record_before_converting(folder, form, monkeypatch):
    pydmobilenet.get_dataset("imagenet32", "test", folder)
    save(folder / "val_data", batch(99), form)
    monkeypatch.setattr(imagenet32, "load", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pydmobilenet.get_dataset("imagenet32", "test", folder)
    assert not Arrays(folder, "test").sources()


def test_tell_read_only_directories_apart(folder, form, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    save(other / "val_data", batch(77), form)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path not in (folder, other) and real(path, mode))
    first = pydmobilenet.get_dataset("imagenet32", "test", folder)
    second = pydmobilenet.get_dataset("imagenet32", "test", other)
    np.testing.assert_array_equal(first.images, expected("test")[0])
    np.testing.assert_array_equal(second.images.reshape(EACH, -1), batch(77)["data"])


def test_a_stray_file_of_the_other_form_is_no_obstacle(folder, form):
    stray = folder / ("train_data_batch_1" if form == "npz" else "train_data_batch_1.npz")
    stray.write_bytes(b"")
    assert len(pydmobilenet.get_dataset("imagenet32", "train", folder)) == 10 * EACH
    next(path for path in find_sources(folder, "train") if "_3" in path.name).unlink()  # converted by now
    assert len(pydmobilenet.get_dataset("imagenet32", "train", folder)) == 10 * EACH


def test_convert_a_read_only_directory_at_home(folder, home, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(folder)) and real(path, mode))
    for _ in range(2):
        dataset = pydmobilenet.get_dataset("imagenet32", "test", folder)
        np.testing.assert_array_equal(dataset.images, expected("test")[0])
    assert dataset.source.startswith(str(home / "project" / "datasets" / "imagenet32" / "converted-"))
    assert not list(folder.glob("imagenet32-*"))


def test_name_a_directory_without_write_access(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnusableError, match=f"cannot write {tmp_path}/file"):
        convert(find_sources(folder, "test"), Arrays(tmp_path / "file" / "x", "test"))


def test_use_unofficial_data_only_from_a_given_directory(folder, home):
    (home / "mxnet" / "datasets").mkdir(parents=True)
    folder.rename(home / "mxnet" / "datasets" / "imagenet32")
    with pytest.raises(BadFileError, match="has 40 images, not the 50000 of ImageNet32"):
        pydmobilenet.get_dataset("imagenet32", "test")


def test_the_official_number_of_images_counts_as_official(folder, monkeypatch):
    monkeypatch.setitem(imagenet32.OFFICIAL_IMAGES, "test", EACH)
    assert pydmobilenet.get_dataset("imagenet32", "test", folder).official


def test_a_miss_names_the_site_the_files_and_the_directory(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        pydmobilenet.get_dataset("imagenet32", "train", tmp_path)
    for part in ("image-net.org", "train_data_batch_1 to train_data_batch_10", f"into {tmp_path}"):
        assert part in str(caught.value)
    with pytest.raises(MissingFileError, match="val_data"):
        pydmobilenet.get_dataset("imagenet32", "test", tmp_path)


def test_a_file_missing_among_ten_is_named(folder, form):
    (folder / f"train_data_batch_7{'.npz' if form == 'npz' else ''}").unlink()
    with pytest.raises(BadFileError, match="train_data_batch_7"):
        pydmobilenet.get_dataset("imagenet32", "train", folder)


def changed(**change):
    return {**batch(0), **change}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(labels=[1] * (EACH - 1)), "40 images and 39 labels"),
        (changed(labels=[0] * EACH), "labels from 0 to 0 .*counted from 0"),
        (changed(labels=[1001] * EACH), "labels from 1001 to 1001"),
        (changed(data=np.zeros((EACH, 3 * 64 * 64), np.uint8)), r"64x64 pixels \(allowed: 32x32\)"),
        (changed(data=np.zeros((EACH, 3072), np.float32)), "float32"),
        (changed(data=np.zeros((0, 3072), np.uint8), labels=np.zeros(0, int)), "0 images"),
        ({"data": np.zeros((EACH, 3072), np.uint8)}, "labels"),
    ],
)
def test_a_bad_file_is_named(content, words, tmp_path, form):
    save(tmp_path / "val_data", content, form)
    with pytest.raises(BadFileError, match=f"val_data.*{words}"):
        pydmobilenet.get_dataset("imagenet32", "test", tmp_path)
    assert not (tmp_path / "imagenet32-test.json").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"<html></html>", pickle.dumps(print)])
def test_refuse_other_files(content, tmp_path):
    for name in ("val_data", "val_data.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadFileError, match=name):
            pydmobilenet.get_dataset("imagenet32", "test", tmp_path)
        (tmp_path / name).unlink()


def test_pickles_inside_an_npz_are_not_opened(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    np.savez(tmp_path / "val_data.npz", data=np.array([Malicious()], dtype=object), labels=[1])
    with pytest.raises(BadFileError, match=r"val_data\.npz"):
        pydmobilenet.get_dataset("imagenet32", "test", tmp_path)
    assert not (tmp_path / "was here").exists()


def test_record_the_converted_files(folder):
    pydmobilenet.get_dataset("imagenet32", "train", folder)
    state = json.loads((folder / "imagenet32-train.json").read_text())
    assert state["complete"]
    assert [source["images"] for source in state["sources"]] == [EACH] * 10
