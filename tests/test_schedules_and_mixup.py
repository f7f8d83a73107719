"""The learning rate of each update, the targets, and which epochs are mixed."""

import math
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from pydmobilenet.data import Dataset, Splits, batches, get_task
from pydmobilenet.training import config
from pydmobilenet.training.loader import Loader, make_targets, mix, mixup_lam
from pydmobilenet.training.loop import Loop, Progress, updates_per_epoch
from pydmobilenet.training.trainer import Score, learning_rates

MODEL = "pyd-add-11-0.25"
CIFAR = config.make({**config.read(ROOT / "configs" / "cifar.yaml"), "model": MODEL})
IMAGENET32 = config.make({**config.read(ROOT / "configs" / "imagenet32.yaml"), "model": MODEL})


def recipe(base=CIFAR, **values):
    return config.make({**vars(base), **values})


STEPS = {"schedule": "step", "milestones": (3, 6), "decay": 0.5, "learning_rate": 0.8, "epochs": 8}
COSINE = {"schedule": "cosine", "learning_rate": 0.8, "epochs": 8}
CASES = {  # a recipe, its updates an epoch, and the updates of its warm-up
    "the authors' for CIFAR": (CIFAR, 50_000 // 128, 0),
    "the authors' for ImageNet32": (IMAGENET32, 1_281_167 // 256, 5 * 5004),
    "steps": (recipe(**STEPS), 5, 0),
    "steps, warm-up": (recipe(**STEPS, warmup_epochs=2), 5, 10),
    "steps up to the first milestone in warm-up": (recipe(**STEPS, warmup_epochs=3), 5, 15),
    "steps, part of an epoch in warm-up": (recipe(**STEPS, warmup_epochs=0.3), 10, 3),
    "steps that are never reached": (recipe(**{**STEPS, "milestones": (8, 9)}), 5, 0),
    "no steps": (recipe(**{**STEPS, "milestones": ()}, warmup_epochs=1), 5, 5),
    "cosine": (recipe(**COSINE), 5, 0),
    "cosine, warm-up": (recipe(**COSINE, warmup_epochs=2), 5, 10),
    "cosine, part of an epoch in warm-up": (recipe(**COSINE, warmup_epochs=2.5), 6, 15),
    "cosine, warm-up of a single update": (recipe(**COSINE, warmup_epochs=0.2), 5, 1),
    "cosine, an update an epoch": (recipe(**COSINE, warmup_epochs=1), 1, 1),
    "htd": (recipe(**{**COSINE, "schedule": "htd"}), 5, 0),
    "htd, part of an epoch in warm-up": (recipe(**{**COSINE, "schedule": "htd"}, warmup_epochs=2.5), 6, 15),
    "cosine, all but the last update in warm-up": (recipe(**{**COSINE, "epochs": 2}, warmup_epochs=1.8), 5, 9),
}
MXNETS = {name: case for name, case in CASES.items() if case[0].schedule != "htd"}


def closed_form(config, updates, warmup, update):
    """The learning rate of an update, from 1 on."""
    if update < warmup:
        return config.learning_rate * update / warmup
    total = config.epochs * updates
    if config.schedule == "htd":  # 1 - tanh(x) is 2 / (1 + exp(2 x))
        return config.learning_rate / (1 + math.exp(2 * (-6 + 9 * (update - warmup) / (total - warmup))))
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * (update - warmup) / (total - warmup))) / 2
    return config.learning_rate * config.decay ** sum(update > epoch * updates for epoch in config.milestones)


def boundaries(config, updates, warmup):
    """The updates on both sides of whatever happens."""
    total = config.epochs * updates
    events = [0, 1, warmup, total // 2, total, *(epoch * updates for epoch in config.milestones)]
    around = {update + offset for update in events for offset in (-1, 0, 1, 2)}
    return sorted(update for update in around if 1 <= update <= total)


@pytest.mark.parametrize(("config", "updates", "warmup"), CASES.values(), ids=CASES)
def test_a_schedule_is_its_closed_form_on_both_sides_of_every_boundary(config, updates, warmup):
    rate = learning_rates(config, updates)
    for update in boundaries(config, updates, warmup):
        expected = closed_form(config, updates, warmup, update)
        assert rate(update) == pytest.approx(expected, rel=1e-12, abs=1e-15), update


@pytest.mark.parametrize(("config", "updates", "warmup"), MXNETS.values(), ids=MXNETS)
def test_every_rate_is_that_of_mxnet_to_the_last_bit(config, updates, warmup):
    """The bundled checkpoints were trained with MXNet's schedulers, and are to come out the same again."""
    mx = pytest.importorskip("mxnet", exc_type=ImportError)
    total, begin = config.epochs * updates, {"base_lr": config.learning_rate, "warmup_steps": warmup}
    if config.schedule == "cosine":
        scheduler = mx.lr_scheduler.CosineScheduler(total, final_lr=0, **begin)
    else:
        milestones = [epoch * updates for epoch in config.milestones] or [total + 1]  # MXNet's wants one at least
        scheduler = mx.lr_scheduler.MultiFactorScheduler(milestones, config.decay, **begin)
    rate = learning_rates(config, updates)
    assert [update for update in range(1, total + 1) if rate(update) != scheduler(update)] == []


@pytest.mark.parametrize("name", [name for name in CASES if "authors" not in name])
def test_a_schedule_has_no_memory(name):
    config, updates, _ = CASES[name]
    rate, total = learning_rates(config, updates), config.epochs * updates
    forwards = [rate(update) for update in range(1, total + 1)]
    shuffled = np.random.default_rng(0).permutation(total)
    assert [rate(int(update) + 1) for update in shuffled] == [forwards[update] for update in shuffled]
    assert min(forwards[:-1]) > 0
    assert max(forwards) <= config.learning_rate


@pytest.mark.parametrize(
    ("config", "updates", "values"),
    [
        # 150 and 225 epochs of 390 updates each.
        (CIFAR, 390, {1: 0.1, 58_500: 0.1, 58_501: 0.01, 87_750: 0.01, 87_751: 0.001, 124_800: 0.001}),
        # 5 of 120 epochs of 5,004 updates each; the cosine is half of its height in the middle of the other 115.
        (IMAGENET32, 5004, {1: 0.4 / 25_020, 12_510: 0.2, 25_020: 0.4, 312_750: 0.2, 600_480: 0.0}),
    ],
    ids=["CIFAR", "ImageNet32"],
)
def test_the_authors_schedules_have_these_values(config, updates, values):
    assert updates == updates_per_epoch(config, {390: 50_000, 5004: 1_281_167}[updates])
    rate = learning_rates(config, updates)
    assert {update: rate(update) for update in values} == pytest.approx(values, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("kind", ["cosine", "step"])
@pytest.mark.parametrize(("epochs", "updates", "warmup"), [(1, 44, 0.99), (1, 1, 0.6), (2, 3, 1.9)])
def test_a_warm_up_that_rounds_to_the_whole_run_is_a_schedule_all_the_same(kind, epochs, updates, warmup):
    rate = learning_rates(recipe(schedule=kind, epochs=epochs, warmup_epochs=warmup), updates)
    rates = [rate(update) for update in range(1, epochs * updates + 1)]
    assert rates[:-1] == sorted(rates[:-1])
    assert all(0 <= each <= CIFAR.learning_rate for each in rates)


def test_smoothed_targets_are_those_of_numpy():
    labels = np.array([2, 0, 2, 3])
    for outputs, smoothing in ((4, 0.0), (4, 0.1), (10, 0.3), (1000, 0.1)):
        found = make_targets(labels, outputs, smoothing)
        assert (found.dtype, found.shape) == (np.float32, (4, outputs))
        expected = (1 - smoothing) * np.eye(outputs)[labels] + smoothing / outputs
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(make_targets(labels, 4), np.eye(4)[labels])


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixtures_are_those_of_numpy(number, share):
    images = np.random.default_rng(0).standard_normal((number, 3, 4, 4)).astype(np.float32)
    before = images.copy()
    mixed = mix(images, share)
    assert mixed.dtype == np.float32
    for i in range(number):
        expected = share * images[i].astype(float) + (1 - share) * images[number - 1 - i]
        np.testing.assert_allclose(mixed[i], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(images, before)  # the buffer is the data's
    assert not np.shares_memory(mixed, images)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_draws_from_a_beta_distribution(alpha):
    shares = np.array([mixup_lam(alpha, 0, epoch, batch) for epoch in range(40) for batch in range(200)])
    assert ((shares >= 0) & (shares <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 * variance**2 * (2 * alpha + 1) / (2 * alpha + 3)  # the fourth central moment, of equal parameters
    deviation = 1 / math.sqrt(len(shares))  # of a mean of so many draws, in units of a draw's own
    assert abs(shares.mean() - 1 / 2) < 4 * deviation * math.sqrt(variance)
    assert abs(shares.var() - variance) < 4 * deviation * math.sqrt(fourth - variance**2)
    neighbours = np.corrcoef(shares[:-1], shares[1:])[0, 1]
    assert abs(neighbours) < 4 * deviation


def test_a_share_depends_on_seed_epoch_and_batch_and_on_nothing_else():
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (7, 319, 389)]
    shares = [mixup_lam(0.2, *place) for place in places]
    np.random.seed(1)
    np.random.random(5)
    assert [mixup_lam(0.2, *place) for place in reversed(places)] == shares[::-1]
    assert len(set(shares)) == len(shares)
    assert all(type(share) is float for share in shares)


class Recorder:
    """A trainer that keeps what it is given."""

    rank, world_size = 0, 1

    def __init__(self, config):
        self.config = config
        self.seen = []

    def loader(self, dataset, batches):
        return Loader(dataset, self.config, batches)

    def train_step(self, images, targets, learning_rate):
        self.seen.append((images.copy(), targets.copy(), learning_rate))
        return lambda: Score(1.0, 0, len(images))

    def sync_batch_norm(self):
        pass

    def evaluate(self, dataset):
        return Score(1.0, 0, len(dataset))

    def all_reduce(self, values):
        return values

    def close(self):
        pass


@pytest.fixture
def dataset():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (14, 3, 32, 32)).astype(np.uint8)
    return Dataset(get_task("digits"), "train", images, generator.integers(0, 10, 14), False, "nowhere")


def trained(dataset, **values):
    """What a trainer is given by a loop: a list of (images, targets, learning rate), and the loop."""
    trainer = Recorder(recipe(dataset="digits", batch_size=4, **values))
    loop = Loop(trainer, Splits(dataset, None, dataset), Progress(), Path(), None)
    assert loop.run() == 0
    return trainer.seen, loop


@pytest.mark.parametrize(
    ("alpha", "off", "mixed"),
    [(0.5, 0, [0, 1, 2, 3]), (0.5, 1, [0, 1, 2]), (1.0, 3, [0]), (0.5, 4, []), (0.5, 20, []), (0.0, 0, [])],
)
def test_all_epochs_but_the_last_ones_are_mixed(dataset, alpha, off, mixed):
    seen, _ = trained(dataset, epochs=4, mixup=alpha, mixup_off_epochs=off, label_smoothing=0.1, seed=3)
    assert len(seen) == 4 * 3
    for epoch in range(4):
        for number, (images, labels) in enumerate(batches(dataset, 4, True, seed=3, epoch=epoch)):
            share = mixup_lam(alpha, 3, epoch, number) if epoch in mixed else 1.0
            targets = 0.9 * np.eye(10)[labels] + 0.01
            found_images, found_targets, _ = seen[3 * epoch + number]
            np.testing.assert_allclose(found_images, share * images + (1 - share) * images[::-1], rtol=0, atol=1e-6)
            np.testing.assert_allclose(found_targets, share * targets + (1 - share) * targets[::-1], rtol=0, atol=1e-6)
            assert np.abs(share * images + (1 - share) * images[::-1] - images).max() > 0.01 or share == 1


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 3), (2, 2), (3, 3)])
def test_each_update_has_its_learning_rate_and_all_of_its_passes(dataset, accumulate, batches):
    values = {"schedule": "cosine", "learning_rate": 0.4, "epochs": 3, "warmup_epochs": 1}
    seen, loop = trained(dataset, accumulation_steps=accumulate, **values)
    updates = 14 // (4 * accumulate)
    assert len(seen) == 3 * batches == 3 * updates * accumulate
    form = [closed_form(recipe(**values), updates, updates, update) for update in range(1, 3 * updates + 1)]
    assert [rate for *_, rate in seen] == pytest.approx([rate for rate in form for _ in range(accumulate)], abs=1e-15)
    assert [row.learning_rate for row in loop.progress.history.rows] == pytest.approx(
        [form[(epoch + 1) * updates - 1] for epoch in range(3)], abs=1e-15
    )


def test_another_seed_mixes_otherwise(dataset):
    first, again, other = (trained(dataset, epochs=1, mixup=1, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0][0], again[0][0])
    assert np.abs(first[0][1] - other[0][1]).max() > 0.01


def test_the_summary_counts_a_single_epoch_of_patience(dataset):
    trainer = Recorder(recipe(dataset="digits", batch_size=4, epochs=4, patience=1))
    loop = Loop(trainer, Splits(dataset, dataset, None), Progress(), Path(), None)
    assert loop.run() == 0
    assert loop.summary().startswith("Stopped early, after 2 of at most 4 epochs: 1 epoch without a lower validation")
    assert len(loop.progress.history.rows) == 2
