"""Training with Gluon: the optimiser, the moving statistics, going back to a state, evaluation."""

import functools

import mxnet as mx
import numpy as np
import pytest
from helpers import ROOT

from pydmobilenet.data import get_dataset
from pydmobilenet.errors import BadFileError, InvalidValueError, UnusableError
from pydmobilenet.gluon import trainer as gluon_trainer
from pydmobilenet.gluon.inference import distance
from pydmobilenet.gluon.network import build_for
from pydmobilenet.gluon.trainer import GluonTrainer, initialize
from pydmobilenet.metrics import cross_entropy
from pydmobilenet.training import config, session
from pydmobilenet.training.loader import make_targets

pytestmark = pytest.mark.instruction_sets

DIGITS = {**config.read(ROOT / "configs" / "digits.yaml"), "batch_size": 8}
SEGMENTS = {"resnet-11-0.125": 1, "pyd-add-11-0.125": 4, "pyd-concat-11-0.125": 4}
CPU = mx.cpu()
each_model = pytest.mark.parametrize("model", SEGMENTS)


def recipe(model="resnet-11-0.125", **values):
    return config.make({**DIGITS, "model": model, **values})


def made(model="resnet-11-0.125", contexts=(CPU,), **values):
    """A trainer with fresh parameters."""
    chosen = recipe(model, **values)
    net = build_for(chosen.model, "digits")
    initialize(net, chosen, contexts)
    return GluonTrainer(net, chosen, contexts)


@functools.lru_cache
def batch(number=0):
    """Eight images and their smoothed targets."""
    dataset = get_dataset("digits", "train")
    part = slice(8 * number, 8 * number + 8)
    return dataset.normalised(part.start, part.stop), make_targets(dataset.labels[part], 10, 0.1)


def train(trainer, *numbers, rate=0.1):
    """Passes of these batches, then all that the trainer has come to."""
    scores = [trainer.train_step(*batch(number), rate) for number in numbers]
    [score() for score in scores]
    return flat(trainer.state())


def flat(arrays):
    """Copies of parameters and momentum in one dictionary, as bytes and numbers can be compared."""
    parameters, momentum = arrays
    return {
        **{name: array.copy() for name, array in parameters.items()},
        **{f"momentum of {name}": array.copy() for name, array in momentum.items()},
    }


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    assert not different


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def recorded_gradients(trainer, monkeypatch):
    """A list that gets the gradients, {name: array}, of each update, as they are when the optimiser is called."""
    updates, step = [], trainer.optimizer.step

    def recording(images):
        mx.nd.waitall()
        updates.append((images, {name: each.grad().asnumpy().astype(float) for name, each in trainer.trained.items()}))
        step(images)

    monkeypatch.setattr(trainer.optimizer, "step", recording)
    return updates


@pytest.mark.parametrize(
    ("momentum", "decays", "accumulate", "body_rate"),
    [(0.0, True, 1, 1.0), (0.9, True, 1, 1.0), (0.9, False, 2, 1.0), (0.9, False, 1, 0.25)],
)
def test_updates_across_a_drop_of_the_learning_rate_match_numpy(momentum, decays, accumulate, body_rate, monkeypatch):
    wd, rates = 0.02, [0.1] * 5 + [0.01] * 4
    recipe = {"momentum": momentum, "weight_decay": wd, "decay_norm_and_bias": decays, "body_rate": body_rate}
    trainer = made("pyd-add-11-0.125", **recipe, accumulation_steps=accumulate)
    updates = recorded_gradients(trainer, monkeypatch)
    expected = {name: each.data().asnumpy().astype(float) for name, each in trainer.trained.items()}
    velocity = {name: np.zeros_like(weight) for name, weight in expected.items()}
    norms_and_biases = {name for name in expected if name.rsplit(".", 1)[1] in ("gamma", "beta", "bias")}
    assert {"head.dense.bias", "stages.0.0.norm1.gamma", "stages.2.0.norm3.beta"} <= norms_and_biases
    for number, rate in enumerate(rates):
        found = train(trainer, *range(accumulate * number, accumulate * (number + 1)), rate=rate)
        images, gradients = updates[number]
        assert images == 8 * accumulate
        for name, weight in expected.items():
            pull = wd if decays or name not in norms_and_biases else 0.0
            slope = gradients[name] / images + pull * weight
            velocity[name] = momentum * velocity[name] + slope
            own_rate = rate if name.startswith("head.dense.") else body_rate * rate
            expected[name] = weight - own_rate * (slope + momentum * velocity[name])
            assert distance([found[name]], [expected[name]]) < 1e-5, name
            if momentum:
                assert distance([found[f"momentum of {name}"]], [velocity[name]]) < 1e-5, name
    assert len(updates) == len(rates)


@pytest.mark.parametrize("model", [*SEGMENTS, "wrn-10-1"])
def test_the_head_alone_learns_at_the_full_rate(model):
    head = "output" if model.startswith("wrn") else "head.dense"
    for name, parameter in made(model, body_rate=0.1).trained.items():
        assert parameter.lr_mult == (1.0 if name in (f"{head}.weight", f"{head}.bias") else 0.1), name


@each_model
def test_accumulated_gradients_are_the_sum_of_those_of_the_passes(model, monkeypatch):
    apart, together = made(model), made(model, accumulation_steps=2)
    separate, summed = recorded_gradients(apart, monkeypatch), recorded_gradients(together, monkeypatch)
    train(apart, 0, 1, rate=0.0)  # nothing is learnt in between
    train(together, 0, 1, 2, 3, rate=0.0)
    ((_, first), (_, second)), (_, both) = separate, summed[0]
    train(apart, 2, 3, rate=0.0)
    for one, other, total in ((first, second, both), (separate[2][1], separate[3][1], summed[1][1])):
        scale = max(abs(gradient).max() for gradient in total.values())
        assert scale > 0
        for name in total:
            np.testing.assert_allclose(total[name], one[name] + other[name], rtol=0, atol=1e-5 * scale, err_msg=name)


@each_model
def test_moving_statistics_follow_the_batches_even_in_the_stem(model):
    trainer = made(model)
    before = flat(trainer.state())
    mean, variance = np.zeros(3), np.ones(3)
    for number in range(3):
        found = train(trainer, number)
        images = batch(number)[0].astype(float)
        mean = 0.9 * mean + 0.1 * images.mean(axis=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * images.var(axis=(0, 2, 3))
        np.testing.assert_allclose(found["stem.norm.running_mean"], mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found["stem.norm.running_var"], variance, rtol=1e-3)
    step = trainer.step[CPU]
    assert step.chosen == {(8, 3, 32, 32): step.fast}
    assert sum(isinstance(part, mx.gluon.SymbolBlock) for part, _, _ in step.fast.network.plan) == SEGMENTS[model]
    moving = [name for name in found if "running" in name]
    assert len(moving) > 20
    assert not [name for name in moving if np.array_equal(found[name], before[name])]


@each_model
def test_the_score_of_a_batch_is_that_of_its_logits(model):
    trainer, other = made(model), made(model)
    images, targets = batch()
    score = trainer.train_step(images, targets, 0.1)()
    with mx.autograd.train_mode():
        logits = other.net(mx.nd.array(images)).asnumpy()
    assert score.loss == pytest.approx(-(targets * log_softmax(logits)).sum(), rel=1e-4)
    assert score.wrong == (logits.argmax(axis=1) != targets.argmax(axis=1)).sum()
    assert score.images == 8


@each_model
def test_a_restored_trainer_takes_the_same_next_steps_bit_for_bit(model):
    first, second = made(model), made(model, seed=1)
    train(first, 0, 1)
    state = first.state()
    second.load_state(*state)
    assert_same_bits(flat(second.state()), flat(state))
    expected = train(first, 2, 3)
    assert_same_bits(train(second, 2, 3), expected)
    train(second, 4)
    second.load_state(*state)  # whatever it has learnt since
    assert_same_bits(train(second, 2, 3), expected)


def test_a_state_does_not_change_with_what_is_learnt_later():
    trainer = made()
    train(trainer, 0)
    state = trainer.state()
    before = flat(state)
    train(trainer, 1, 2)
    assert_same_bits(flat(state), before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_trainer_goes_back_to_before_its_first_step(momentum):
    trainer = made(momentum=momentum)
    state = trainer.state()
    assert state[1] == {}
    expected = train(trainer, 0, 1)
    assert any(name.startswith("momentum") for name in expected) == (momentum > 0)
    trainer.load_state(*state)
    assert_same_bits(train(trainer, 0, 1), expected)


def without(arrays, name):
    return {other: array for other, array in arrays.items() if other != name}


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda parameters, momentum: (without(parameters, "stem.conv.weight"), momentum),
        lambda parameters, momentum: ({**parameters, "stem.conv.bias": np.zeros(32, np.float32)}, momentum),
        lambda parameters, momentum: ({**parameters, "head.dense.bias": np.zeros(11, np.float32)}, momentum),
        lambda parameters, momentum: (parameters, {**momentum, "head.other": np.zeros(10, np.float32)}),
        lambda parameters, momentum: (parameters, {**momentum, "head.dense.bias": np.zeros(11, np.float32)}),
        lambda parameters, momentum: (parameters, without(momentum, "head.dense.bias")),
    ],
    ids=["one less", "one more", "another shape", "momentum of no parameter", "momentum's shape", "momentum missing"],
)
def test_the_state_of_another_network_is_refused_and_changes_nothing(spoilt):
    trainer = made()
    train(trainer, 0)
    state = trainer.state()
    before = flat(state)
    with pytest.raises(BadFileError, match="another network"):
        trainer.load_state(*spoilt(*state))
    assert_same_bits(flat(trainer.state()), before)


@pytest.mark.parametrize("other", ["resnet-11-0.25", "mobilenet-11-0.125", "resnet-20-0.125", "pyd-add-11-0.125"])
def test_the_state_of_another_model_is_refused(other):
    with pytest.raises(BadFileError, match="another network"):
        made().load_state(*made(other).state())


@each_model
def test_evaluation_is_a_plain_computation_over_all_images(model):
    trainer = made(model)
    train(trainer, *range(6))
    before = flat(trainer.state())
    dataset = get_dataset("digits", "test").head(60)  # of which the last batch is a small one
    score = trainer.evaluate(dataset)
    plain = build_for(model, "digits")
    plain.initialize()
    for name, parameter in plain._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(before[name]))
    logits = plain(mx.nd.array(dataset.normalised())).asnumpy()
    assert score.images == 60
    assert 0 < score.wrong == (logits.argmax(axis=1) != dataset.labels).sum()
    assert score.loss == pytest.approx(-log_softmax(logits)[np.arange(60), dataset.labels].sum(), rel=1e-4)
    assert_same_bits(flat(trainer.state()), before)


@each_model
def test_evaluation_in_between_changes_nothing_that_is_learnt(model):
    with_it, without_it = made(model), made(model)
    dataset = get_dataset("digits", "test").head(8)
    train(with_it, 0)
    with_it.evaluate(dataset)
    train(without_it, 0)
    assert_same_bits(train(with_it, 1), train(without_it, 1))


def test_the_cross_entropy_of_extreme_logits_is_finite():
    logits = np.array([[1e5, 0.0, -1e5], [0.0, 0.0, 0.0]])
    assert cross_entropy(logits, np.array([0, 2])) == pytest.approx(np.log(3))
    assert cross_entropy(logits, np.array([2, 0])) == pytest.approx(2e5 + np.log(3))
    assert cross_entropy(logits[:0], np.array([], int)) == 0


@pytest.mark.parametrize("initialiser", ["msra", "xavier"])
def test_the_same_seed_draws_the_same_parameters_on_every_device(initialiser):
    one, again, two = (made(initialiser=initialiser, contexts=c) for c in ([CPU], [CPU], [mx.cpu(1), CPU]))
    other = made(initialiser=initialiser, seed=1)
    assert_same_bits(flat(again.state()), flat(one.state()))
    assert_same_bits(flat(two.state()), flat(one.state()))
    assert flat(other.state())["head.dense.weight"].tobytes() != flat(one.state())["head.dense.weight"].tobytes()


@pytest.mark.parametrize(("size", "near"), [(1, 3), (4, 3), (8, 9)])
def test_a_batch_that_the_devices_cannot_share_evenly_is_refused(size, near):
    with pytest.raises(InvalidValueError, match=f"batch_size is {size} .*a multiple of 3.*nearest: {near}"):
        made(contexts=[mx.cpu(number) for number in range(3)], batch_size=size)


def test_half_precision_on_a_cpu_is_refused_before_anything_is_written(tmp_path):
    begun = session.Session(recipe(dtype="float16"), tmp_path / "run")
    make = functools.partial(gluon_trainer.make, contexts=[CPU])
    words = r"dtype 'float16' needs a GPU \(allowed on a CPU: float32\)"
    with pytest.raises(UnusableError, match=words), session.opened(begun, make):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@each_model
def test_a_gpu_learns_what_the_cpu_learns(model):
    expected, found = (train(made(model, [context]), 0, 1) for context in (CPU, mx.gpu()))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=0, atol=1e-3 * max(1, abs(expected[name]).max()), err_msg=name
        )
