"""AdamW and clipped gradients: the same update in both engines, and in NumPy; a run goes on to the same bits."""

import functools
import signal

import numpy as np
import pytest
from helpers import DIGITS, MODEL, TINY, TRAINERS, assert_same, content, make_folder

import pydmobilenet
from pydmobilenet.data import get_dataset
from pydmobilenet.errors import BadFileError, InvalidValueError
from pydmobilenet.training import config
from pydmobilenet.training.loader import make_targets
from pydmobilenet.training.loop import Loop
from pydmobilenet.training.recipe import configure
from pydmobilenet.training.trainer import STEP

ADAMW = {"optimizer": "adamw", "learning_rate": 0.001, "weight_decay": 0.1}
each_engine = pytest.mark.parametrize("engine", TRAINERS)


def made(engine, **values):
    """A trainer with fresh parameters."""
    recipe = config.make({**config.read(DIGITS), "model": MODEL, "batch_size": 8, **values})
    task = get_dataset("digits").task
    if engine == "gluon":
        import mxnet as mx

        from pydmobilenet.gluon import trainer as gluon

        return gluon.make(recipe, task, [mx.cpu()])
    import torch

    from pydmobilenet.pytorch import trainer as pytorch

    return pytorch.make(recipe, task, torch.device("cpu"))


@functools.lru_cache
def batch(number):
    dataset = get_dataset("digits", "train")
    part = slice(8 * number, 8 * number + 8)
    return dataset.normalised(part.start, part.stop), make_targets(dataset.labels[part], 10, 0.1)


def train(trainer, *numbers, rate=0.001):
    for number in numbers:
        trainer.train_step(*batch(number), rate)()
    return trainer.state()


def weights(trainer):
    parameters, _ = trainer.state()
    return {name: parameters[name].astype(float) for name in trainer.trained}


def gradients(trainer, number=0):
    """The mean gradients of a batch, from the weights' change by plain SGD at a rate of 1."""
    before = weights(trainer)
    train(trainer, number, rate=1.0)
    return {name: before[name] - after for name, after in weights(trainer).items()}


def norm(arrays):
    return np.sqrt(sum(np.square(array).sum() for array in arrays.values()))


@pytest.mark.gluon
@pytest.mark.pytorch
def test_gluon_s_adamw_is_pytorch_s_and_that_of_the_paper():
    import mxnet as mx
    import torch

    from pydmobilenet.gluon.trainer import AdamW

    rng, decay = np.random.default_rng(0), 0.1
    start, slopes = rng.normal(size=(20, 30)).astype(np.float32), rng.normal(size=(5, 20, 30)).astype(np.float32)
    slopes[:, 0] *= 1e-8  # epsilon decides
    rates = [0.01, 0.01, 0.002, 0.002, 0.002]
    ours, theirs, expected = mx.nd.array(start), torch.nn.Parameter(torch.tensor(start)), start.astype(float)
    update, reference = AdamW(wd=decay), torch.optim.AdamW([theirs], weight_decay=decay, fused=True)
    state = update.create_state(0, ours)
    m, v = np.zeros_like(expected), np.zeros_like(expected)
    for step, (rate, slope) in enumerate(zip(rates, slopes), 1):
        update.set_learning_rate(rate)
        update.rescale_grad = 1 / 4
        update.update(0, ours, mx.nd.array(4 * slope), state)
        reference.param_groups[0]["lr"], theirs.grad = rate, torch.tensor(slope)
        reference.step()
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope.astype(float) ** 2
        direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        expected = expected * (1 - rate * decay) - rate * direction
        np.testing.assert_allclose(ours.asnumpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@each_engine
def test_adamw_decays_and_slows_down_the_parameters_that_it_should(engine):
    trainer = made(engine, **ADAMW, decay_norm_and_bias=False, body_rate=0.1)
    before = weights(trainer)
    slopes = gradients(made(engine, momentum=0, weight_decay=0))
    train(trainer, 0, rate=0.01)
    for name, after in weights(trainer).items():
        rate = 0.01 if name.startswith("head.dense.") else 0.001
        decay = 0.1 if name.endswith(".weight") else 0.0
        clear = np.abs(slopes[name]) > 1e-4  # the first step is the rate, whatever the size of the gradient
        expected = before[name] * (1 - rate * decay) - rate * np.sign(slopes[name])
        np.testing.assert_allclose(after[clear], expected[clear], rtol=1e-3, atol=1e-5, err_msg=name)


@each_engine
@pytest.mark.parametrize("passes", [1, 2])
def test_the_norm_of_an_update_s_gradient_is_clipped_once(engine, passes):
    plain = {"momentum": 0, "weight_decay": 0, "accumulation_steps": passes}
    trainers = [made(engine, **plain, clip_gradient=limit) for limit in (0, 1000, 0.5)]
    start = weights(trainers[0])
    for trainer in trainers:
        train(trainer, *range(passes), rate=1.0)
    free, loose, clipped = ({name: start[name] - w for name, w in weights(each).items()} for each in trainers)
    assert norm(free) > 0.6
    for name in free:
        np.testing.assert_allclose(loose[name], free[name], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(clipped[name], 0.5 / norm(free) * free[name], rtol=1e-3, atol=1e-6)


TYPES = [
    pytest.param("gluon", "float32", marks=pytest.mark.gluon),
    *(pytest.param("pytorch", dtype, marks=pytest.mark.pytorch) for dtype in ("float32", "bfloat16", "float16")),
]


@pytest.mark.filterwarnings("ignore:dtype")
@pytest.mark.parametrize(("engine", "dtype"), TYPES)
def test_from_its_state_a_trainer_goes_on_to_the_same_bits(engine, dtype):
    values = {**ADAMW, "clip_gradient": 0.5, "body_rate": 0.5, "dtype": dtype}
    first, second = made(engine, **values), made(engine, **values, seed=1)
    assert made(engine, **values).state()[1].get(STEP) is None  # nothing before the first update
    state = train(first, 0, 1, 2)
    assert state[1][STEP] == 3 or dtype == "float16"  # that leaves updates out until its scale fits
    second.load_state(*state)
    for found, expected in zip(train(second, 3, 4), train(first, 3, 4)):
        assert_same(
            {name: array.tobytes() for name, array in found.items()},
            {name: array.tobytes() for name, array in expected.items()},
        )


def without(name):
    return lambda momentum: momentum.pop(name)


@each_engine
@pytest.mark.parametrize(
    "spoil",
    [
        without(STEP),
        without("exp_avg_sq/head.dense.bias"),
        lambda momentum: momentum.update({STEP: np.array(0.0)}),
        lambda momentum: momentum.update({STEP: np.array(1.5)}),
        lambda momentum: momentum["exp_avg_sq/head.dense.bias"].fill(-1),
        lambda momentum: momentum.update(extra=np.zeros(3, np.float32)),
    ],
)
def test_only_a_whole_state_of_adamw_is_taken(engine, spoil):
    trainer = made(engine, **ADAMW)
    parameters, momentum = train(trainer, 0)
    spoil(momentum)
    with pytest.raises(BadFileError, match="the state is "):
        trainer.load_state(parameters, momentum)


@each_engine
def test_the_state_of_another_optimizer_is_refused(engine):
    sgd, adamw = made(engine), made(engine, **ADAMW)
    for one, other in ((sgd, adamw), (adamw, sgd)):
        with pytest.raises(BadFileError, match="the state is of another network"):
            one.load_state(*train(other, 0))


@each_engine
@pytest.mark.trains
def test_a_run_with_adamw_that_is_interrupted_goes_on_to_the_same_bits(engine, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "pictures")
    recipe = {**TINY, **ADAMW, "clip_gradient": 1, "epochs": 2}
    start = functools.partial(pydmobilenet.train, engine=engine, device="cpu", progress=False)
    whole = start(MODEL, folder, output=tmp_path / "whole", **recipe)
    step = Loop._show_pace
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_show_pace", lambda self, bar: (self._stop(signal.SIGTERM), step(self, bar)))
        with pytest.raises(KeyboardInterrupt):
            start(MODEL, folder, output=tmp_path / "run", **recipe)
    resumed = start(resume=tmp_path / "run")
    assert_same(content(resumed.directory), content(whole.directory))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optimizer": "adamw"}, "needs another learning_rate than sgd: set both; nearest: learning_rate 0.001"),
        ({**ADAMW, "momentum": 0.5}, "momentum 0.5 cannot be used: adamw has betas instead"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(InvalidValueError, match=words):
        configure(config.parse({"model": MODEL, "dataset": "digits", **given}))


def test_a_recipe_file_with_another_optimizer_names_its_rate_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\noptimizer: adamw\n")
    with pytest.raises(InvalidValueError, match=r"mine\.yaml: optimizer adamw needs another learning_rate"):
        config.read(path)
    path.write_text("base: digits\noptimizer: adamw\nlearning_rate: 0.002\nmomentum: 0.5\n")
    recipe = configure({"model": MODEL, "dataset": "digits"}, path)
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum) == ("adamw", 0.002, 0.9)
    with pytest.raises(InvalidValueError, match=r"optimizer sgd needs another .* learning_rate 0\.1"):
        configure({"model": MODEL, "dataset": "digits", "optimizer": "sgd"}, path)
