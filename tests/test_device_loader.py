"""Batches made on a device are those of the host, bit for bit. Here the device is the CPU."""

import dataclasses

import numpy as np
import pytest
from helpers import RECIPE

from pydmobilenet.data import Dataset, get_dataset, get_task
from pydmobilenet.training import config
from pydmobilenet.training.loader import Loader

pytestmark = pytest.mark.pytorch
torch = pytest.importorskip("torch")

from pydmobilenet.pytorch import loader  # noqa: E402

CPU = torch.device("cpu")


def images(number=50, task="cifar10"):
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)
    return Dataset(get_task(task), "train", pixels, generator.integers(0, 7, number) ** 2 % 7, False, "here")


def both(dataset, epoch=0, start=0, rank=0, workers=1, batches=5, **values):
    """The batches of the host and of the device."""
    recipe = config.make({**RECIPE, "model": "pyd-add-11-0.125", "dataset": "cifar10", "epochs": 4, **values})
    arguments = dataset, recipe, batches, rank, workers
    host = [(x.copy(), y.copy()) for x, y in Loader(*arguments).epoch(epoch, start)]
    return host, list(loader.DeviceLoader(*arguments, device=CPU).epoch(epoch, start))


def assert_same_bits(host, device):
    assert len(host) == len(device) > 0
    for one, other in zip(host, device):
        for array, tensor in zip(one, other):
            assert tensor.dtype == torch.float32
            assert tensor.numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("mixup", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("augment", [True, False])
def test_seeds_mixup_and_augmentation(seed, mixup, augment):
    for epoch in (0, 3):  # the last one has no mixup
        assert_same_bits(*both(images(), epoch, seed=seed, mixup=mixup, augment=augment))


@pytest.mark.parametrize("values", [{"label_smoothing": 0.1}, {"class_weights": "balanced"}, {"batch_size": 6}])
@pytest.mark.parametrize("start", [0, 3])
def test_targets_sizes_and_a_start_within_the_epoch(values, start):
    assert_same_bits(*both(images(), 1, start, **values))


@pytest.mark.parametrize(
    "values", [{"cutmix": 1.0, "mixup": 0.0}, {"cutmix": 1.0}, {"cutout": 9}, {"cutout": 31}, {"flip": "alternating"}]
)
@pytest.mark.parametrize(("rank", "workers"), [(0, 1), (1, 2)])
def test_cutmix_cutout_and_alternating_flips(values, rank, workers):
    for epoch in (0, 1):
        assert_same_bits(*both(images(), epoch, 0, rank, workers, **values))


@pytest.mark.parametrize(("rank", "workers"), [(0, 2), (1, 2), (3, 4)])
@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_workers_have_their_shards(rank, workers, mixup):
    assert_same_bits(*both(images(47), 1, 1, rank, workers, mixup=mixup))


def test_a_task_without_flips_has_none():
    digits = get_dataset("digits").head(40)
    assert not digits.task.mirrored
    assert_same_bits(*both(digits))


def test_many_images_are_cropped_at_every_place():
    host, device = both(images(700), batch_size=100, batches=7, mixup=0.0)
    assert_same_bits(host, device)
    assert len({x.tobytes() for x, _ in host}) == 7


def test_images_that_do_not_fit_stay_on_the_host(tmp_path, monkeypatch):
    dataset = images()
    free = 16 * 50 * 3 * 40 * 40  # padded, a sixteenth
    for bytes_free, fits in ((free, True), (free - 4, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=bytes_free: (free, 1 << 40))
        assert loader.fits(dataset, CPU) is fits
    mapped = np.memmap(tmp_path / "images", np.uint8, "w+", shape=dataset.images.shape)
    mapped[:] = dataset.images
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=dataset.images.shape)
    assert not loader.fits(dataclasses.replace(dataset, images=mapped), CPU)


def test_a_trainer_takes_the_loader_of_its_device(monkeypatch):
    from pydmobilenet.pytorch import trainer

    recipe = config.make({**RECIPE, "model": "pyd-add-11-0.125", "dataset": "digits", "mixup": 0.2})
    dataset = get_dataset("digits").head(48)
    made = trainer.make(recipe, dataset.task, CPU)
    host = made.loader(dataset, 6)
    assert type(host) is Loader
    reports = [made.train_step(*batch, 0.1)() for batch in host.epoch(0)]
    on_device = loader.DeviceLoader(dataset, recipe, 6, 0, 1, device=CPU)
    other = trainer.make(recipe, dataset.task, CPU)
    assert [other.train_step(*batch, 0.1)() for batch in on_device.epoch(0)] == reports
    monkeypatch.setattr(made, "_device", torch.device("cuda"))
    monkeypatch.setattr(trainer, "fits", lambda dataset, device: True)
    monkeypatch.setattr(trainer, "DeviceLoader", lambda *arguments, device: (arguments, device.type))
    assert made.loader(dataset, 6) == ((dataset, recipe, 6, 0, 1), "cuda")
    # A frozen body answers arrays, and TrivialAugment is the host's.
    for values in ({"body_rate": 0.0}, {"trivial_augment": True}):
        made.config = dataclasses.replace(recipe, **values)
        assert type(made.loader(dataset, 6)) is Loader
