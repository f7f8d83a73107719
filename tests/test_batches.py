"""Batches: what a network gets, in which order, and how it was changed on the way."""

import dataclasses

import numpy as np
import pytest
from helpers import with_gluoncv

from pydmobilenet.data import Dataset, batches, get_task, normalise
from pydmobilenet.data.dataset import draw
from pydmobilenet.errors import BadFileError, InvalidValueError

TASK = get_task("cifar10")


def make(number=300, seed=0, task=TASK):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (number, 3, 32, 32), dtype=np.uint8)
    return Dataset(task, "train", images, np.arange(number) % 10, False, "here")


def collect(*arguments, **options):
    """All batches of an epoch, copied: their buffers are used again."""
    return [(images.copy(), labels.copy()) for images, labels in batches(*arguments, **options)]


def restore(images):
    """The bytes that normalised images were made of."""
    mean, std = (np.array(values)[:, None, None] for values in (TASK.mean, TASK.std))
    return np.rint((images * std + mean) * 255).astype(np.uint8)


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in zip(first, second)
    )


@pytest.mark.parametrize("batch_size", [1, 7, 32, 64, 300, 500])
def test_validation_gives_every_image_once_in_order(batch_size):
    dataset = make()
    found = collect(dataset, batch_size, train=False)
    assert [len(labels) for _, labels in found[:-1]] == [batch_size] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in found]), dataset.normalised())
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), dataset.labels)


def test_train_on_each_image_once_an_epoch():
    dataset = dataclasses.replace(make(), labels=np.arange(300))
    found = collect(dataset, 64, train=True)
    assert [images.shape for images, _ in found] == [(64, 3, 32, 32)] * 4
    assert found[0][0].dtype == np.float32
    numbers = np.concatenate([labels for _, labels in found])
    assert len(set(numbers)) == 256
    whole = np.concatenate([labels for _, labels in collect(dataset, 60, train=True)])
    assert sorted(whole) == list(range(300))


def test_training_images_are_padded_cropped_and_mirrored_as_drawn():
    dataset = dataclasses.replace(make(100), labels=np.arange(100))
    plan = draw(100, 5, 3)
    found = collect(dataset, 50, train=True, seed=5, epoch=3)
    images, numbers = (np.concatenate(parts) for parts in zip(*found))
    np.testing.assert_array_equal(numbers, plan.order)
    padded = np.pad(dataset.images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    for position, number in enumerate(numbers):
        row, column = plan.offsets[position]
        expected = padded[number, :, row : row + 32, column : column + 32]
        if plan.flips[position]:
            expected = expected[:, :, ::-1]
        np.testing.assert_array_equal(restore(images[position]), expected)


@pytest.mark.slow
@pytest.mark.gluon
def test_pad_as_gluoncvs_random_crop(tmp_path):
    image = make(1).images[0]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, ((0, 0), (4, 4), (4, 4))), (32, 32), axis=(1, 2))
    ours = {windows[:, row, column].tobytes() for row in range(9) for column in range(9)}
    assert len(ours) == 81
    np.save(tmp_path / "image.npy", image.transpose(1, 2, 0))
    code = (
        "import gluoncv; mxnet.random.seed(0); crop = gluoncv.data.transforms.RandomCrop(32, pad=4)\n"
        "image = mxnet.nd.array(numpy.load('image.npy'), dtype='uint8')\n"
        "numpy.save('crops.npy', [crop(image).asnumpy() for _ in range(200)])\n"
    )
    with_gluoncv(code, tmp_path)
    crops = np.load(tmp_path / "crops.npy").astype(np.uint8).transpose(0, 3, 1, 2)
    theirs = {crop.tobytes() for crop in crops}
    assert theirs <= ours
    assert len(theirs) > 40


def test_crops_and_mirrorings_are_uniform():
    number = 10_000
    plan = draw(number, 0, 0)
    cells = np.bincount(plan.offsets[:, 0] * 9 + plan.offsets[:, 1], minlength=81)
    assert len(cells) == 81
    error = np.sqrt(number * (1 / 81) * (80 / 81))
    assert abs(cells - number / 81).max() <= 4 * error
    assert abs(plan.flips.sum() - number / 2) <= 4 * np.sqrt(number / 4)
    assert sorted(plan.order) == list(range(number))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("train", [True, False])
def test_the_number_of_threads_changes_nothing(threads, train):
    dataset = make()
    assert same(collect(dataset, 20, train, seed=1, threads=threads), collect(dataset, 20, train, seed=1, threads=2))


def test_another_seed_or_epoch_is_another_order():
    dataset = make()
    first = collect(dataset, 20, train=True, seed=1, epoch=0)
    assert same(first, collect(dataset, 20, train=True, seed=1, epoch=0))
    assert not same(first, collect(dataset, 20, train=True, seed=2, epoch=0))
    assert not same(first, collect(dataset, 20, train=True, seed=1, epoch=1))


def test_a_resumed_epoch_goes_on_as_it_would_have():
    dataset = make()
    whole = collect(dataset, 20, train=True, seed=3, epoch=7)
    assert same(whole[6:], collect(dataset, 20, train=True, seed=3, epoch=7, start=6))
    assert collect(dataset, 20, train=True, start=99) == []


def test_buffers_are_no_larger_than_the_data():
    ((images, _),) = collect(make(30), 10**9, train=False)
    assert len(images) == 30


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_parts_of_several_workers_are_disjoint_equal_and_complete(parts):
    dataset = dataclasses.replace(make(300), labels=np.arange(300))
    shares = [
        np.concatenate([labels for _, labels in collect(dataset, 1, train=True, part=part, parts=parts)])
        for part in range(parts)
    ]
    assert {len(share) for share in shares} == {300 // parts}
    together = np.concatenate(shares)
    assert len(set(together)) == len(together) == 300 // parts * parts


def test_evaluate_all_images_in_parts():
    dataset = dataclasses.replace(make(10), labels=np.arange(10))
    shares = [collect(dataset, 2, train=False, part=part, parts=3) for part in range(3)]
    assert sorted(number for share in shares for _, labels in share for number in labels) == list(range(10))


def test_two_workers_batches_are_together_one_workers():
    dataset = dataclasses.replace(make(300), labels=np.arange(300))
    one = collect(dataset, 40, train=True, seed=2, epoch=1)
    two = [collect(dataset, 20, train=True, seed=2, epoch=1, part=part, parts=2) for part in range(2)]
    assert [len(found) for found in (one, *two)] == [7, 7, 7]
    for (images, labels), *halves in zip(one, *two):
        for part, (half_images, half_labels) in enumerate(halves):
            np.testing.assert_array_equal(half_labels, labels[part::2])
            np.testing.assert_array_equal(half_images, images[part::2])


def test_draw_independently_of_other_generators():
    dataset = make()
    first = collect(dataset, 20, train=True)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    assert same(first, collect(dataset, 20, train=True))
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("train", [True, False])
def test_images_on_disk_give_the_same_batches_as_images_in_memory(train, tmp_path):
    dataset = make(3000)
    dataset.images.tofile(tmp_path / "images")
    images = np.memmap(tmp_path / "images", np.uint8, "r", shape=(3000, 3, 32, 32))
    for part in (slice(None), slice(None, 1000), slice(500, 2000), slice(0, 3000, 2)):
        here, there = (
            dataclasses.replace(dataset, images=source[part], labels=dataset.labels[part])
            for source in (dataset.images, images)
        )
        assert same(collect(here, 20, train), collect(there, 20, train))


def test_report_a_shrinking_file(tmp_path):
    dataset = make(100)
    dataset.images.tofile(tmp_path / "images")
    images = np.memmap(tmp_path / "images", np.uint8, "r", shape=(100, 3, 32, 32))
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(BadFileError, match="became shorter"):
        collect(dataclasses.replace(dataset, images=images), 20, True)


def test_buffers_are_used_again():
    seen = {images.__array_interface__["data"][0] for images, _ in batches(make(), 20, train=True, threads=2)}
    assert len(seen) == 3


def test_an_epoch_may_be_left_early():
    for images, _ in batches(make(), 20, train=True):
        assert images.shape == (20, 3, 32, 32)
        break


def test_digits_are_not_mirrored():
    task = dataclasses.replace(TASK, mirrored=False)
    images = np.zeros((200, 3, 32, 32), np.uint8)
    images[:, :, :, 20:] = 200  # bright on the right
    dataset = Dataset(task, "train", images, np.zeros(200, int), False, "here")
    for found, _ in batches(dataset, 50, train=True):
        assert (found[:, 0, 16, 26] > found[:, 0, 16, 8]).all()


def test_normalised_values_are_those_of_the_formula():
    images = make(64).images
    mean, std = (np.array(values)[:, None, None] for values in (TASK.mean, TASK.std))
    np.testing.assert_allclose(normalise(images, TASK), (images / 255 - mean) / std, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"threads": 0},
        {"start": -1},
        {"seed": -1},
        {"epoch": -1},
        {"part": 2, "parts": 2},
        {"batch_size": 301},
    ],
)
def test_refuse_invalid_numbers(options):
    arguments = {"batch_size": 10, **options}
    with pytest.raises(InvalidValueError, match=r"allowed|no full batch of 300 images"):
        next(iter(batches(make(), arguments.pop("batch_size"), True, **arguments)))
