"""Data sets as PyTorch wants them, and a function of one's own after each epoch."""

import json
import pickle

import numpy as np
import pytest
from helpers import TRAINERS, content, rows
from PIL import Image

import pydmobilenet
from pydmobilenet import api
from pydmobilenet.data import batches, get_dataset
from pydmobilenet.errors import InvalidValueError
from pydmobilenet.training import results
from pydmobilenet.training.checkpoint import Run

MODEL = "pyd-add-11-0.125"
SHORT = {"epochs": 3, "warmup_epochs": 0, "batch_size": 32, "val_fraction": 0.2, "device": "cpu", "progress": False}


def few():
    """The arguments for a run of 100 digits and fewer."""
    train, test = get_dataset("digits").head(100), get_dataset("digits", "test").head(20)
    return {"model": MODEL, "dataset": api.array_dataset(train.images, train.labels, mirrored=False), "test": test}


def mapped(path, number=7):
    """A data set in a file mapped into memory, behind other bytes."""
    digits = get_dataset("digits").head(number)
    path.write_bytes(bytes(100) + digits.images.tobytes())
    images = np.memmap(path, np.uint8, "r", 100, digits.images.shape)
    return digits, api.array_dataset(images, digits.labels, mirrored=False)


def test_an_item_is_a_normalised_image_and_its_label():
    data = get_dataset("digits").head(5)
    image, label = data[3]
    assert (image.dtype, type(label), label) == (np.float32, int, data.labels[3])
    assert np.array_equal(image, data.normalised()[3])
    assert np.array_equal(data[-2][0], image)
    assert [label for _, label in data] == data.labels.tolist()  # ends by IndexError
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            data[wrong]
    with pytest.raises(TypeError, match="slice"):
        data[:2]
    assert repr(data) == "<Dataset digits, train: 5 images>"


def test_a_transform_gets_a_picture_and_training_calls_none():
    data = get_dataset("digits").head(5)
    whole = data.with_transform(lambda picture: picture)
    picture, label = whole[0]
    assert isinstance(picture, Image.Image)
    assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), data.images[0])
    assert (label, data.transform) == (data[0][1], None)
    assert whole.head(2).transform is whole.transform
    with pytest.raises(InvalidValueError, match="batches call no transform"):
        next(batches(whole, 2, train=False))


def shrunk(picture):
    return np.asarray(picture.resize((8, 8)), np.float32)


def test_a_data_set_with_a_transform_pickles_and_a_mapped_file_is_not_copied(tmp_path):
    digits, data = mapped(tmp_path / "images.bin")
    data.padded  # noqa: B018  a cache, which stays behind
    content = pickle.dumps(data.with_transform(shrunk))
    assert len(content) < 3000
    again = pickle.loads(content)
    assert isinstance(again.images, np.memmap)
    assert np.array_equal(again.images, digits.images)
    assert np.array_equal(again[6][0], data.with_transform(shrunk)[6][0])
    part = pickle.loads(pickle.dumps(data.take(np.arange(3, 5), "val")))
    assert np.array_equal(part.images, digits.images[3:5])
    assert np.array_equal(pickle.loads(pickle.dumps(data.head(4))).images, digits.images[:4])


@pytest.mark.pytorch
def test_a_data_loader_stacks_items():
    from torch.utils.data import DataLoader, random_split

    data = get_dataset("digits").head(5)
    (images, labels), _ = DataLoader(data, batch_size=4)
    assert (images.shape, str(images.dtype), str(labels.dtype)) == ((4, 3, 32, 32), "torch.float32", "torch.int64")
    assert np.array_equal(images.numpy(), data.normalised()[:4])
    assert [len(part) for part in random_split(data, [3, 2])] == [3, 2]


@pytest.mark.slow
@pytest.mark.pytorch
def test_two_worker_processes_give_the_same_images(tmp_path):
    from torch.utils.data import DataLoader

    digits, data = mapped(tmp_path / "images.bin")
    for each in (data, digits):
        loader = DataLoader(each, batch_size=4, num_workers=2, multiprocessing_context="spawn")
        found = np.concatenate([images.numpy() for images, _ in loader])
        assert np.array_equal(found, each.normalised())


@pytest.mark.parametrize("engine", TRAINERS)
def test_a_function_gets_each_epoch_once_it_is_on_the_disk(engine, tmp_path):
    seen = []

    def see(run, row):
        saved = rows(run.directory / "history.csv")
        seen.append((row, len(saved), run.history.rows[-1] == row, (run.directory / "best.params").is_file()))

    run = pydmobilenet.train(**few(), output=tmp_path / "run", engine=engine, **SHORT, on_epoch=see)
    assert seen == [(row, row.epoch, True, True) for row in run.history.rows]
    assert [row.epoch for row in run.history.rows] == [1, 2, 3]
    assert "on_epoch=see" in json.loads((run.directory / "run.json").read_text())["sessions"][0]["command"]


@pytest.mark.pytorch
def test_a_run_that_is_stopped_has_its_test_error_and_goes_on(tmp_path):
    options = {**few(), **SHORT, "engine": "pytorch"}
    whole = pydmobilenet.train(output=tmp_path / "whole", **options)

    def stop(run, row):
        if row.epoch == 2:
            raise pydmobilenet.StopTraining("it is enough")

    run = pydmobilenet.train(output=tmp_path / "run", **options, on_epoch=stop)
    assert run.summary.startswith("Stopped by on_epoch after 2 of 3 epochs.\nValidation error after the last epoch (2)")
    assert run.test_error is not None
    assert (run.directory / "curves.png").is_file()
    assert results.read(run.directory).finished
    images = {key: options[key] for key in ("dataset", "test")}
    again = pydmobilenet.train(resume=run, **images, device="cpu", progress=False)
    assert again.summary == whole.summary
    assert content(again.directory) == content(whole.directory)


@pytest.mark.pytorch
@pytest.mark.parametrize("kind", ["ValueError", "an engine's", "KeyboardInterrupt"])
def test_any_other_exception_is_passed_on_and_the_run_is_saved(kind, tmp_path):
    import torch

    error = {"ValueError": ValueError, "an engine's": torch.cuda.OutOfMemoryError}.get(kind, KeyboardInterrupt)("mine")

    def fail(run, row):
        raise error

    with pytest.raises(type(error)) as caught:
        pydmobilenet.train(**few(), output=tmp_path / "run", engine="pytorch", **SHORT, on_epoch=fail)
    assert caught.value is error
    assert [row.epoch for row in api.Run(tmp_path / "run").history.rows] == [1]
    Run(tmp_path / "run").lock.release()  # is free
