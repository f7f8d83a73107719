"""Training with PyTorch: the optimiser, moving statistics, types, going back to a state, evaluation."""

import functools

import numpy as np
import pytest
import torch
from helpers import ROOT

from pydmobilenet import catalog, folding
from pydmobilenet.checkpoints import formats
from pydmobilenet.data import get_dataset
from pydmobilenet.errors import BadFileError, EngineError, InvalidValueError
from pydmobilenet.metrics import count_wrong
from pydmobilenet.pytorch import trainer as pytorch_trainer
from pydmobilenet.pytorch.network import get_arrays
from pydmobilenet.training import config
from pydmobilenet.training.loader import make_targets
from pydmobilenet.training.trainer import check_split

pytestmark = pytest.mark.pytorch

DIGITS = {**config.read(ROOT / "configs" / "digits.yaml"), "batch_size": 8}
MODELS = ["resnet-11-0.125", "mobilenet-11-0.25", "pyd-add-11-0.125", "pyd-concat-11-0.125", "wrn-10-1"]
CPU = torch.device("cpu")
TYPES = ["float32", "bfloat16", "float16"]
each_type = pytest.mark.parametrize("dtype", TYPES)


def made(model="pyd-add-11-0.125", compiled=False, **values):
    """A trainer with fresh parameters."""
    recipe = config.make({**DIGITS, "model": model, **values})
    return pytorch_trainer.make(recipe, get_dataset("digits").task, CPU, compiled)


@functools.lru_cache
def batch(number=0, size=8):
    """Images and their smoothed targets."""
    dataset = get_dataset("digits", "train")
    part = slice(size * number, size * number + size)
    return dataset.normalised(part.start, part.stop), make_targets(dataset.labels[part], 10, 0.1)


def train(trainer, *numbers, rate=0.1, size=8):
    """Passes of these batches: their scores."""
    return [score() for score in [trainer.train_step(*batch(number, size), rate) for number in numbers]]


def flat(arrays):
    parameters, momentum = arrays
    return {**parameters, **{f"momentum of {name}": array for name, array in momentum.items()}}


def recorded_gradients(trainer, monkeypatch):
    """A list that gets the gradients, {name: array}, of each update, as they are when the optimiser is called."""
    updates, step = [], trainer.optimizer.step

    def recording(*arguments):
        updates.append({name: each.grad.numpy().astype(float) for name, each in trainer.trained.items()})
        return step(*arguments)

    monkeypatch.setattr(trainer.optimizer, "step", recording)
    return updates


def freeze(trainer):
    """Normalise by the moving statistics, and leave them: images do not depend on each other then."""
    for module in trainer.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def assert_close(found, expected, tolerance, floor):
    """Arrays are apart by so much of their norm, or of the `floor` where that is more."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        apart = np.linalg.norm(found[name] - array)
        assert apart <= tolerance * max(np.linalg.norm(array), floor), f"{name}: {apart}"


@pytest.mark.parametrize(
    ("momentum", "decays", "accumulate", "body_rate"),
    [(0.0, True, 1, 1.0), (0.9, True, 1, 1.0), (0.9, False, 2, 1.0), (0.9, False, 1, 0.25)],
)
def test_updates_across_a_drop_of_the_learning_rate_match_numpy(momentum, decays, accumulate, body_rate, monkeypatch):
    wd, rates = 0.02, [0.1] * 5 + [0.01] * 4
    recipe = {"momentum": momentum, "weight_decay": wd, "decay_norm_and_bias": decays, "body_rate": body_rate}
    trainer = made(**recipe, accumulation_steps=accumulate)
    updates = recorded_gradients(trainer, monkeypatch)
    expected = {name: each.detach().numpy().astype(float) for name, each in trainer.trained.items()}
    velocity = {name: np.zeros_like(weight) for name, weight in expected.items()}
    norms_and_biases = {name for name in expected if name.rsplit(".", 1)[1] in ("gamma", "beta", "bias")}
    assert {"head.dense.bias", "stages.0.0.norm1.gamma", "stages.2.0.norm3.beta"} <= norms_and_biases
    for number, rate in enumerate(rates):
        train(trainer, *range(accumulate * number, accumulate * (number + 1)), rate=rate)
        for name, weight in expected.items():
            pull = wd if decays or name not in norms_and_biases else 0.0
            slope = updates[number][name] + pull * weight
            velocity[name] = momentum * velocity[name] + slope
            own_rate = rate if name.startswith("head.dense.") else body_rate * rate
            expected[name] = weight - own_rate * (slope + momentum * velocity[name])
        parameters, momenta = trainer.state()
        assert_close({name: parameters[name] for name in expected}, expected, 1e-5, 1e-3)
        assert_close(momenta, velocity if momentum else {}, 1e-5, 1e-2)
    assert len(updates) == len(rates)


@pytest.mark.parametrize("model", MODELS)
def test_the_head_alone_learns_at_the_full_rate(model):
    trainer = made(model, body_rate=0.1)
    rates = {id(each): group["rate"] for group in trainer.optimizer.param_groups for each in group["params"]}
    head = "output" if model.startswith("wrn") else "head.dense"
    for name, parameter in trainer.trained.items():
        assert rates[id(parameter)] == (1.0 if name in (f"{head}.weight", f"{head}.bias") else 0.1), name


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_two_passes_take_the_step_of_one_of_twice_the_size(model, compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, mode: net)
    one, two = made(model, batch_size=16), made(model, compiled, accumulation_steps=2)
    for trainer in (one, two):
        freeze(trainer)
    for first, second in ((0, 1), (2, 3)):
        (whole,) = train(one, first // 2, size=16)
        halves = train(two, first, second)
        assert sum(half.loss for half in halves) == pytest.approx(whole.loss, rel=1e-5)
        assert [half.images for half in halves] == [8, 8]
    assert_close(flat(two.state()), flat(one.state()), 1e-5, 1e-2)


def test_gradients_of_a_compiled_network_are_added_up_in_memory_of_their_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, mode: net)
    trainer = made(compiled=True, accumulation_steps=2)
    kept = [parameter.grad for parameter in trainer.trained.values()]
    train(trainer, 0, 1, 2)
    assert all(parameter.grad is grad for parameter, grad in zip(trainer.trained.values(), kept))


@pytest.mark.parametrize("model", MODELS)
def test_moving_statistics_follow_the_batches_even_in_the_stem(model):
    trainer = made(model)
    name = next(name for name in trainer.net.state_dict() if name.endswith("running_mean"))
    mean, variance = np.zeros(3), np.ones(3)
    for number in range(3):
        train(trainer, number)
        images = batch(number)[0].astype(float)
        mean = 0.9 * mean + 0.1 * images.mean(axis=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * images.var(axis=(0, 2, 3), ddof=1)  # unbiased, unlike MXNet's on a CPU
    found = get_arrays(trainer.net)
    np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[name.replace("mean", "var")], variance, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "dtype"),
    [("pyd-concat-11-0.125", "float32"), ("mobilenet-11-0.25", "bfloat16"), ("pyd-add-11-0.125", "float16")],
)
def test_from_a_state_the_same_steps_give_the_same_bits(model, dtype):
    trainer = made(model, dtype=dtype)
    train(trainer, 0, 1, 2)
    state = trainer.state()
    kept = {name: array.copy() for name, array in flat(state).items()}
    train(trainer, 3, 4)
    for name, array in flat(state).items():
        assert array.tobytes() == kept[name].tobytes(), "a state is a copy"
    other = made(model, dtype=dtype, seed=7)
    train(other, 5)
    other.load_state(*state)
    train(other, 3, 4)
    found, expected = flat(other.state()), flat(trainer.state())
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name].tobytes() != expected[name].tobytes()] == []
    assert ("loss scale" in state[1]) == (dtype == "float16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.fuzz)])
def test_every_type_learns(dtype):
    trainer = made("pyd-concat-11-0.25", dtype=dtype)
    scores = train(trainer, *[0, 1] * 15, rate=0.05)
    assert [score.wrong for score in scores[-2:]] == [0, 0]
    assert scores[-1].loss < 0.6 * scores[1].loss  # smoothed labels leave some
    assert all(array.dtype == np.float32 for array in trainer.state()[0].values())


def test_half_precision_passes_over_an_update_that_overflows():
    trainer = made(dtype="float16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
    before = trainer.state()[0]
    train(trainer, 0)
    after = trainer.state()[0]
    assert all(np.array_equal(after[name], before[name]) for name in before if "running" not in name)
    assert trainer.scaler.get_scale() < 1e30
    assert all(np.isfinite(array).all() for array in after.values())


def test_the_same_seed_draws_the_same_parameters():
    first, again, other = (get_arrays(made(seed=seed).net) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["stem.conv.weight"], other["stem.conv.weight"])


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_that_of_the_module(model):
    trainer = made(model)
    train(trainer, 0, 1, 2)
    dataset = get_dataset("digits", "test").head(77)
    found = trainer.evaluate(dataset)
    with torch.no_grad():
        logits = trainer.net.eval()(torch.from_numpy(dataset.normalised(0, 77)))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(dataset.labels), reduction="sum")
    assert found.loss == pytest.approx(float(expected), rel=1e-4)
    assert (found.wrong, found.images) == (count_wrong(logits.numpy(), dataset.labels)[0], 77)


def test_evaluation_leaves_the_network_to_train_on():
    trainer, other = made(), made()
    trainer.evaluate(get_dataset("digits", "test").head(10))
    for each in (trainer, other):
        train(each, 0, 1)
    found, expected = flat(trainer.state()), flat(other.state())
    assert [name for name in expected if found[name].tobytes() != expected[name].tobytes()] == []


def test_a_state_without_momentum_takes_back_all_that_was_learnt():
    trainer, fresh = made(), made()
    start = trainer.state()
    train(trainer, 0, 1)
    trainer.load_state(*start)
    for each in (trainer, fresh):
        train(each, 2, 3)
    found, expected = flat(trainer.state()), flat(fresh.state())
    assert [name for name in expected if found[name].tobytes() != expected[name].tobytes()] == []


def test_the_state_of_another_network_is_refused():
    trainer, other = made(), made("resnet-11-0.125")
    train(other, 0)
    with pytest.raises(BadFileError, match="the state is of another network"):
        trainer.load_state(*other.state())
    with pytest.raises(BadFileError, match="the state is of another network"):
        trainer.load_state(trainer.state()[0], other.state()[1])


@pytest.mark.parametrize("suffix", [".params", ".safetensors"])
def test_weights_of_a_file_are_loaded_and_another_head_is_left(suffix, tmp_path):
    from pydmobilenet.checkpoints import weights

    source = made(seed=5)
    weights.write(tmp_path / f"net{suffix}", get_arrays(source.net), {})
    trainer = made()
    assert trainer.load_weights(tmp_path / f"net{suffix}") is False
    assert all(np.array_equal(array, get_arrays(source.net)[name]) for name, array in get_arrays(trainer.net).items())
    arrays = get_arrays(source.net)
    arrays["head.dense.weight"], arrays["head.dense.bias"] = np.zeros((7, 128), "f4"), np.zeros(7, "f4")
    (tmp_path / "other.params").write_bytes(formats.dump_params(arrays))
    assert trainer.load_weights(tmp_path / "other.params", head="optional") is True


def test_what_pytorch_throws_is_one_line():
    trainer = made()
    with pytest.raises(EngineError, match=r"^PyTorch has failed: [^\n]+$"):
        trainer.train_step(np.zeros((8, 5, 32, 32), np.float32), batch()[1], 0.1)


def test_a_batch_that_cannot_be_shared_out_names_the_nearest():
    recipe = config.make({**DIGITS, "model": MODELS[0], "batch_size": 9})
    with pytest.raises(InvalidValueError, match=r"batch_size is 9 .*nearest: 8"):
        check_split(recipe, 1, 2)


def test_half_precision_warns_on_a_processor_without_fast_kernels(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    if not pytorch_trainer.machine.instruction_set(engine="pytorch"):
        pytest.skip("the processor's instruction sets are not known")
    with pytest.warns(UserWarning, match=r"dtype 'bfloat16' is slow on this processor \(AVX2?\); use float32"):
        pytorch_trainer.warn_of_slow_type("bfloat16")


def test_what_is_evaluated_is_the_folded_network(monkeypatch):
    folded = []
    monkeypatch.setattr(pytorch_trainer, "fold", lambda *arguments: folded.append(1) or folding.fold(*arguments))
    trainer = made()
    assert trainer.net.description == catalog.describe("pyd-add-11-0.125", "digits")
    trainer.evaluate(get_dataset("digits", "test").head(3))
    assert folded
