"""Flips, cutout, cutmix and TrivialAugment: as drawn, as published, and independent of how a batch is made."""

import dataclasses
import gc

import numpy as np
import pytest
from helpers import MODEL, TRAINERS, assert_mistake, assert_same, content, make_folder, options, stop_at_look
from PIL import Image, ImageEnhance, ImageOps

import pydmobilenet
from pydmobilenet.data import Dataset, array_dataset, batches, get_task, normalise, trivial_augment
from pydmobilenet.data.augmentation import STREAMS, Augmentation, cut_out, draw, stream
from pydmobilenet.errors import InvalidValueError
from pydmobilenet.training import config, loop
from pydmobilenet.training.loader import Loader, cutmix_box, mixup_lam, with_cutmix
from pydmobilenet.training.recipe import configure, with_epochs

ALL = {"flip": "alternating", "trivial_augment": True, "cutout": 8}
KEYS = {**ALL, "cutmix": 1.0, "mixup": 1.0, "mixup_off_epochs": 1, "schedule": "htd"}


def make(number=60, side=32, name="cifar10", seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (number, 3, side, side), dtype=np.uint8)
    task = dataclasses.replace(get_task(name), image_size=side)
    return Dataset(task, "train", images, np.arange(number) % 10, False, "here")


def collect(*arguments, **given):
    return [(images.copy(), labels.copy()) for images, labels in batches(*arguments, **given)]


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in zip(first, second)
    )


def recipe(**values):
    plain = {"mixup": 0, "mixup_off_epochs": 0}
    return config.make(
        {"model": MODEL, "dataset": "cifar10", "epochs": 4, "batch_size": 20, "seed": 3, **plain, **values}
    )


def loaded(dataset, config, epoch=0, start=0, rank=0, workers=1):
    loader = Loader(dataset, config, len(dataset) // config.batch_size, rank, workers)
    return [(images.copy(), targets.copy()) for images, targets in loader.epoch(epoch, start)]


# What is drawn


def test_earlier_recipes_draw_what_they_always_drew():
    plan = draw(5, 7, 3)
    assert plan.order.tolist() == [3, 0, 2, 4, 1]
    assert plan.offsets.tolist() == [[2, 0], [6, 0], [3, 0], [7, 1], [8, 8]]
    assert plan.flips.tolist() == [False, False, True, True, True]
    assert (mixup_lam(0.2, 7, 3, 4), mixup_lam(1.0, 0, 0, 0)) == (0.9999996694468183, 0.3053659455123201)
    assert plan.operations is plan.strengths is plan.centres is None


def test_what_is_drawn_for_one_key_changes_nothing_of_another():
    none, *alone, together = (
        draw(50, 1, 2, Augmentation(**values)) for values in ({}, *({key: ALL[key]} for key in ALL), ALL)
    )
    for plan in (none, *alone):
        for name in ("order", "offsets", "operations", "strengths", "centres"):
            if (found := getattr(plan, name)) is not None:
                np.testing.assert_array_equal(found, getattr(together, name))
    np.testing.assert_array_equal(alone[0].flips, together.flips)
    np.testing.assert_array_equal(alone[1].flips, none.flips)


def test_each_purpose_has_a_stream_of_its_own_which_is_not_that_of_the_order():
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    drawn = [stream(seed, epoch, name, batch).random() for seed, epoch, batch in places for name in STREAMS]
    orders = [np.random.default_rng([seed, epoch]).random() for seed, epoch, _ in places[1:]]
    assert len({*drawn, *orders}) == len(drawn) + len(orders)


def test_alternating_flips_are_half_of_the_images_and_then_each_in_every_other_epoch():
    number, by_image = 1000, []
    for epoch in range(4):
        plan = draw(number, 5, epoch, Augmentation("alternating"))
        flips = np.empty(number, bool)
        flips[plan.order] = plan.flips
        by_image.append(flips)
    assert abs(by_image[0].sum() - 500) <= 4 * np.sqrt(250)
    for epoch in (1, 2, 3):
        np.testing.assert_array_equal(by_image[epoch], by_image[0] ^ (epoch % 2 == 1))
    assert not np.array_equal(by_image[0], draw(number, 6, 0, Augmentation("alternating")).flips)


def test_operations_and_strengths_are_uniform():
    plan = draw(14 * 31 * 40, 0, 0, Augmentation(trivial_augment=True))
    counts = np.bincount(plan.operations * 31 + np.abs(plan.strengths), minlength=14 * 31)
    assert len(counts) == 14 * 31
    assert abs(counts - 40).max() < 6 * np.sqrt(40)
    signs = np.sign(plan.strengths[plan.strengths != 0])
    assert abs(signs.sum()) < 4 * np.sqrt(len(signs))


# TrivialAugment's operations

PILLOW = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": lambda image, strength: image.rotate(strength),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 - int(abs(strength) * 256 / 30)),
    "color": lambda image, strength: ImageEnhance.Color(image).enhance(enhanced(strength)),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - int(abs(strength) * 4 / 30)),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(enhanced(strength)),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(enhanced(strength)),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(enhanced(strength)),
    "shear_x": lambda image, strength: affine(image, 1, strength * 0.3 / 30, 0, 0, 1, 0),
    "shear_y": lambda image, strength: affine(image, 1, 0, 0, strength * 0.3 / 30, 1, 0),
    "translate_x": lambda image, strength: affine(image, 1, 0, int(strength * 10 * image.width / 32 / 30), 0, 1, 0),
    "translate_y": lambda image, strength: affine(image, 1, 0, 0, 0, 1, int(strength * 10 * image.width / 32 / 30)),
}


def enhanced(strength):
    return abs(strength) * 1.8 / 30 + 0.1


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def kinds_of_images(side):
    """Noise, smooth images, dark ones with few values, of one colour, and of two."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (30, 3, side, side))
    smooth = rng.integers(0, 256, (30, 3, 1, 1)) * np.linspace(0.2, 1, side) + rng.integers(0, 9, (30, 3, side, side))
    few = rng.integers(60, 64, (10, 3, side, side))
    plain = np.broadcast_to(rng.integers(0, 256, (10, 3, 1, 1)), (10, 3, side, side))
    two = 255 * rng.integers(0, 2, (10, 3, side, side))
    return np.concatenate([noise, smooth.clip(0, 255), few, plain, two]).astype(np.uint8)


@pytest.mark.parametrize("side", [20, 32])
@pytest.mark.parametrize("name", trivial_augment.OPERATIONS)
def test_an_operation_is_pillow_s_to_the_last_bit(name, side):
    images = kinds_of_images(side)
    strengths = np.resize(np.arange(-30, 31), len(images))
    before = images.copy()
    found = trivial_augment.OPERATIONS[name](images, strengths)
    np.testing.assert_array_equal(images, before)
    assert found.dtype == np.uint8
    for image, strength, changed in zip(images, strengths.tolist(), found):
        expected = PILLOW[name](Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), strength)
        np.testing.assert_array_equal(changed, np.asarray(expected).transpose(2, 0, 1), str(strength))
    assert name == "identity" or not np.array_equal(found, images)


def test_a_batch_is_each_image_by_its_own_operation():
    images = kinds_of_images(32)
    operations, strengths = trivial_augment.draw(np.random.default_rng(2), len(images))
    found = trivial_augment.apply(images, operations, strengths)
    names = list(trivial_augment.OPERATIONS)
    for number, operation in enumerate(operations):
        one = slice(number, number + 1)
        alone = trivial_augment.OPERATIONS[names[operation]](images[one], strengths[one])
        np.testing.assert_array_equal(found[one], alone)


# Batches


def expected_batch(dataset, plan, positions, side):
    numbers = plan.order[positions]
    images = trivial_augment.apply(dataset.images[numbers], plan.operations[positions], plan.strengths[positions])
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    crops = []
    for image, (row, column), flip in zip(padded, plan.offsets[positions], plan.flips[positions]):
        crop = image[:, row : row + side, column : column + side]
        crops.append(crop[:, :, ::-1] if flip else crop)
    found = normalise(np.array(crops), dataset.task)
    for image, (y, x) in zip(found, (plan.centres[positions] * side).astype(int)):
        image[:, max(0, y - 4) : y + 4, max(0, x - 4) : x + 4] = 0
    return found


@pytest.mark.parametrize("side", [32, 40])
def test_an_image_is_changed_then_cropped_then_flipped_then_cut(side):
    dataset, asked = make(60, side), Augmentation(**ALL)
    plan = draw(60, 2, 1, asked)
    found = collect(dataset, 25, True, seed=2, epoch=1, augmentation=asked)
    assert len(found) == 2
    for number, (images, labels) in enumerate(found):
        positions = np.arange(25 * number, 25 * (number + 1))
        np.testing.assert_array_equal(images, expected_batch(dataset, plan, positions, side))
        np.testing.assert_array_equal(labels, dataset.labels[plan.order[positions]])


@pytest.mark.parametrize(
    "asked", [*({key: value} for key, value in ALL.items()), ALL], ids=lambda asked: "-".join(asked)
)
def test_threads_workers_the_disk_and_a_start_in_mid_epoch_change_nothing(asked, tmp_path):
    dataset = make()
    given = {"seed": 1, "epoch": 1, "augmentation": Augmentation(**asked)}
    whole = collect(dataset, 10, True, **given)
    assert not same(whole, collect(dataset, 10, True, seed=1, epoch=1))
    for threads in (1, 3):
        assert same(whole, collect(dataset, 10, True, threads=threads, **given))
    assert same(whole[2:], collect(dataset, 10, True, start=2, **given))
    for part in range(2):
        half = collect(dataset, 5, True, part=part, parts=2, **given)
        assert same([(images[part::2], labels[part::2]) for images, labels in whole], half)
    dataset.images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=dataset.images.shape)
    assert same(whole, collect(dataclasses.replace(dataset, images=mapped), 10, True, **given))
    assert same(
        collect(dataset, 10, True, augment=False, **given), collect(dataset, 10, True, augment=False, seed=1, epoch=1)
    )
    assert same(collect(dataset, 10, False, **given), collect(dataset, 10, False))


def test_digits_are_changed_and_never_flipped():
    digits = make(name="digits")
    alternating = collect(digits, 20, True, augmentation=Augmentation("alternating"))
    assert same(alternating, collect(digits, 20, True))


@pytest.mark.parametrize(("side", "length"), [(1, 32), (7, 32), (8, 32), (31, 32), (8, 12)])
def test_a_square_of_this_side_is_0_but_for_what_lies_outside(side, length):
    images = np.ones((300, 3, length, length), np.float32)
    centres = np.random.default_rng(0).random((300, 2))
    cut_out(images, centres, side)
    for image, centre in zip(images, centres):
        y, x = (int(value * length) for value in centre)
        expected = np.ones_like(image)
        for row in range(y - side // 2, y - side // 2 + side):
            for column in range(x - side // 2, x - side // 2 + side):
                if 0 <= row < length and 0 <= column < length:
                    expected[:, row, column] = 0
        np.testing.assert_array_equal(image, expected)
    assert not np.signbit(images).any()


# Cutmix


@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize("side", [8, 32])
def test_a_box_has_the_drawn_share_of_the_pixels_and_lambda_the_rest_exactly(alpha, side):
    shares = []
    for batch in range(300):
        (rows, columns), lam = cutmix_box(alpha, 4, 2, batch, side)
        assert 0 <= rows.start <= rows.stop <= side
        assert 0 <= columns.start <= columns.stop <= side
        mask = np.zeros((side, side), bool)
        mask[rows, columns] = True
        assert lam == 1 - mask.sum() / side**2
        wanted = 1 - stream(4, 2, "cutmix", batch).beta(alpha, alpha)
        assert mask.sum() <= wanted * side**2 + 1e-9
        shares.append(1 - lam)
    assert 0.2 < np.mean(shares) < 0.35
    assert max(shares) > 0.55


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_cutmix_pastes_the_reversed_batch_and_mixes_the_targets_by_area(class_weights):
    dataset, made = make(), recipe(cutmix=1, label_smoothing=0.1, class_weights=class_weights)
    dataset = dataclasses.replace(dataset, labels=np.minimum(dataset.labels, 6))
    plain = loaded(dataset, recipe(label_smoothing=0.1, class_weights=class_weights))
    for number, ((images, targets), (before, goals)) in enumerate(zip(loaded(dataset, made), plain)):
        (rows, columns), lam = cutmix_box(1, 3, 0, number, 32)
        expected = before.copy()
        expected[:, :, rows, columns] = before[::-1, :, rows, columns]
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_allclose(targets, lam * goals + (1 - lam) * goals[::-1], rtol=1e-6)


@pytest.mark.parametrize("off", [0, 1, 4])
def test_the_last_epochs_have_neither_mixup_nor_cutmix(off):
    dataset = make()
    for epoch in range(4):
        found = loaded(dataset, recipe(cutmix=1, mixup=1, mixup_off_epochs=off), epoch)
        assert same(found, loaded(dataset, recipe(), epoch)) == (epoch >= 4 - off)


def test_beside_mixup_a_batch_has_either_one_with_equal_chances():
    both = recipe(cutmix=0.7, mixup=0.3)
    chosen = [with_cutmix(both, 0, batch) for batch in range(1000)]
    assert abs(sum(chosen) - 500) < 4 * np.sqrt(250)
    dataset = make(200)
    mixed, cut, found = (
        loaded(dataset, recipe(**values)) for values in ({"mixup": 0.3}, {"cutmix": 0.7}, {"cutmix": 0.7, "mixup": 0.3})
    )
    for number in range(10):
        assert same(found[number : number + 1], (cut if chosen[number] else mixed)[number : number + 1])


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_shards_are_together_the_batches_of_one(workers):
    dataset, made = make(80), recipe(**{**KEYS, "label_smoothing": 0.1})
    whole = loaded(dataset, made, epoch=1)
    for rank in range(workers):
        shards = loaded(dataset, made, 1, 0, rank, workers)
        assert same([(images[rank::workers], targets[rank::workers]) for images, targets in whole], shards)
        assert same(shards[2:], loaded(dataset, made, 1, 2, rank, workers))


# Runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"), train=6, test=2)


RUN = {
    **KEYS,
    "model": MODEL,
    "val_fraction": 0,
    "batch_size": 8,
    "epochs": 2,
    "mixup_off_epochs": 0,
    "warmup_epochs": 0.5,
    "device": "cpu",
}


@pytest.mark.trains
@pytest.mark.parametrize("engine", TRAINERS)
def test_interrupted_in_mid_epoch_a_run_ends_with_the_same_bits(engine, folder, train, tmp_path, monkeypatch):
    begin = ["--dataset", folder, "--engine", engine, *options(RUN)]
    assert train(*begin, "--output", tmp_path / "whole").returncode == 0
    stop_at_look(monkeypatch, 3)  # in the second epoch
    assert train(*begin, "--output", tmp_path / "run").returncode > 128
    gc.collect()
    answer = train("--resume", tmp_path / "run")
    assert answer.returncode == 0, answer.stderr
    assert_same(content(tmp_path / "run"), content(tmp_path / "whole"))


@pytest.mark.trains
@pytest.mark.gluon
@pytest.mark.pytorch
def test_both_engines_are_given_the_same_batches(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw", lambda *_: None)
    seen = {}
    for engine, name in (("gluon", "GluonTrainer"), ("pytorch", "PyTorchTrainer")):
        made = getattr(pytest.importorskip(f"pydmobilenet.{engine}.trainer"), name)
        step, given = made.train_step, seen.setdefault(engine, [])

        def record(self, images, targets, rate, step=step, given=given):
            given.append((images.copy(), targets.copy()))
            return step(self, images, targets, rate)

        monkeypatch.setattr(made, "train_step", record)
        values = {**RUN, "dataset": folder, "engine": engine}
        pydmobilenet.train(output=tmp_path / engine, progress=False, **values)
    assert len(seen["gluon"]) == 2 * 3
    assert same(*seen.values())


# Refusals


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["--flip", "alternating"],
            "flip alternating cannot be used: images of digits are never flipped; nearest: random",
        ),
        (
            ["--augment", "false", "--cutout", 8],
            "cutout 8 cannot be used: images are not augmented: add --augment true",
        ),
        (["--augment", "false", "--trivial-augment", "true"], "trivial_augment true cannot be used: images are not"),
        (["--cutout", 32], "cutout: '32' (allowed: a whole number below the 32 pixels of an image)"),
        (["--trivial-augment", "1"], "trivial_augment: '1' (allowed: true, false)"),
        (["--schedule", "hdt"], "schedule: 'hdt'; nearest: htd (allowed: step, cosine, htd)"),
    ],
)
def test_a_key_without_effect_is_refused(given, words, train):
    assert_mistake(train("--dataset", "digits", "--model", MODEL, *given), words)


def test_arrays_that_are_never_flipped_take_no_other_flip():
    dataset = array_dataset(np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 2, mirrored=False)
    with pytest.raises(InvalidValueError, match=r"^flip alternating cannot be used: images of arrays:"):
        pydmobilenet.train(MODEL, dataset, flip="alternating", val_fraction=0.5)


def test_mixing_that_would_begin_after_the_end_is_named():
    short = {"model": MODEL, "dataset": "digits", "epochs": 3, "warmup_epochs": 1, "cutmix": 0.5}
    why = "has no effect: the last 4 epochs are without it, and the run has 3; nearest: --mixup-off-epochs 0"
    with pytest.warns(UserWarning, match="has no effect") as caught:
        configure(short)
    assert [str(warning.message) for warning in caught] == [f"mixup 1 {why}", f"cutmix 0.5 {why}"]
    automatic = config.make({"model": MODEL, "dataset": "digits", "epochs": "auto", "mixup_off_epochs": 10})
    with pytest.warns(UserWarning, match="^mixup 1 has no effect: .*, and the run has 10;"):
        with_epochs(automatic, 20_000, pretrained=True)


def test_mixing_that_begins_is_not_named(recwarn):
    configure({"model": MODEL, "dataset": "digits", "epochs": 5, "warmup_epochs": 1})
    assert not recwarn


def test_a_recipe_s_keys_without_effect_are_reset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\nflip: alternating\ntrivial_augment: true\ncutout: 8\ncutmix: 1\n")
    made = configure({"model": MODEL, "dataset": "digits"}, path)
    assert (made.flip, made.trivial_augment, made.cutout, made.cutmix) == ("random", True, 8, 1)
    plain = configure({"model": MODEL, "dataset": "digits", "augment": False}, path)
    assert (plain.flip, plain.trivial_augment, plain.cutout, plain.cutmix) == ("random", False, 0, 1)


def test_features_are_taken_once_only_without_cutmix():
    frozen = recipe(body_rate=0, augment=False)
    assert frozen.from_features
    assert not dataclasses.replace(frozen, cutmix=1.0).from_features
    assert [key for key in ("flip", *KEYS) if recipe(**{key: KEYS[key]}).augmented_on_host] == ["trivial_augment"]
