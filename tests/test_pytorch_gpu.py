"""PyTorch on a GPU does what it does on the CPU. None of this runs where there is no GPU."""

import numpy as np
import oracle
import pytest
import torch
from helpers import ROOT

from pydmobilenet import catalog
from pydmobilenet.checkpoints import weights
from pydmobilenet.data import batches, get_dataset
from pydmobilenet.pytorch import trainer
from pydmobilenet.pytorch.inference import PyTorchEngine
from pydmobilenet.pytorch.loader import DeviceLoader
from pydmobilenet.training import config
from pydmobilenet.training.loader import Loader, make_targets

pytestmark = [pytest.mark.pytorch, pytest.mark.gpu]
DIGITS = config.read(ROOT / "configs" / "digits.yaml")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", oracle.FAMILIES)
def test_answers_are_those_of_the_description_without_tf32(name, fused):
    network = catalog.describe(name)
    arrays = oracle.random_arrays(network)
    images = np.random.default_rng(0).standard_normal((20, 3, 32, 32)).astype(np.float32)
    found = PyTorchEngine("gpu", fused).load(network, arrays)(images)
    expected = oracle.logits(network, arrays, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def made(model, device, dtype="float32", compiled=False, **values):
    """A trainer with fresh parameters."""
    recipe = config.make({**DIGITS, "model": model, "batch_size": 64, "dtype": dtype, **values})
    return trainer.make(recipe, get_dataset("digits").task, torch.device(device), compiled)


def first_batches(number):
    """Images and their targets."""
    for _, (images, labels) in zip(range(number), batches(get_dataset("digits"), 64, train=True)):
        yield images, make_targets(labels, 10)


def trained(model, device, steps=5, dtype="float32", compiled=False, **values):
    """The scores of the first steps, and the trainer."""
    trainer = made(model, device, dtype, compiled, **values)
    return [trainer.train_step(*batch, 0.01)() for batch in first_batches(steps)], trainer


def distance(one, other):
    """How far arrays are from others, as a share of these."""
    one, other = (np.concatenate([arrays[name].ravel() for name in sorted(arrays)]) for arrays in (one, other))
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.parametrize("model", ["resnet-11-0.25", "mobilenet-11-0.5", "pyd-add-11-0.25", "pyd-concat-11-0.25"])
def test_an_update_is_that_of_the_cpu(model):
    here, there = made(model, "cpu"), made(model, "cuda")
    for images, targets in first_batches(3):
        # Left alone, two ways part: a change of 1e-7 in the parameters is one of 4e-3 in the loss five updates later.
        there.load_state(*here.state())
        expected, found = (each.train_step(images, targets, 0.01)() for each in (here, there))
        assert found.loss == pytest.approx(expected.loss, rel=2e-5)
        assert distance(there.state()[1], here.state()[1]) < 0.05  # a ReLU whose input is about 0 may fall either way


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_passes_add_their_gradients_up(dtype):
    gradients = []
    for compiled in (False, True):
        _, each = trained("pyd-concat-11-0.25", "cuda", 2, dtype, compiled, accumulation_steps=2)
        gradients.append(each.state()[1])  # of the first update, whose momentum they are
    assert distance(gradients[1], gradients[0]) < 0.1  # one that is lost would make 0.7


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_type_learns_and_goes_on_from_its_state(dtype, compiled):
    scores, made = trained("pyd-concat-11-0.25", "cuda", 20, dtype, compiled)
    assert scores[-1].loss < scores[0].loss
    parameters, momentum = made.state()
    _, again = trained("pyd-concat-11-0.25", "cuda", 0, dtype, compiled)
    again.load_state(parameters, momentum)
    for name, array in again.state()[0].items():
        np.testing.assert_array_equal(array, parameters[name])
    digits = get_dataset("digits", "test")
    assert again.evaluate(digits).wrong == made.evaluate(digits).wrong


GRAPHED = [
    {},
    {"dtype": "bfloat16"},
    {"accumulation_steps": 2},
    {"accumulation_steps": 3, "clip_gradient": 1.0, "body_rate": 0.5},
    {"optimizer": "adamw", "learning_rate": 0.001},
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", GRAPHED, ids=lambda values: "-".join(values))
def test_replayed_graphs_learn_what_eager_passes_learn(values):
    graphed, eager = made("pyd-concat-11-0.25", "cuda", **values), made("pyd-concat-11-0.25", "cuda", **values)
    eager.graphs = None
    passes = values.get("accumulation_steps", 1)
    torch.cuda.set_sync_debug_mode("error")  # an error where the host waits for the device
    try:
        scores = [[each.train_step(*batch, 0.0005) for batch in first_batches(8 * passes)] for each in (graphed, eager)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(graphed.graphs.replays) == min(passes, 3)
    for one, other in zip(*scores):
        assert one().loss == pytest.approx(other().loss, rel=0.02)
    assert distance(graphed.state()[0], eager.state()[0]) < 1e-3


@pytest.mark.filterwarnings("error")
def test_a_graph_goes_on_from_a_state_and_with_other_weights(tmp_path):
    scores, graphed = trained("pyd-concat-11-0.25", "cuda", 8)
    graphed.load_state(*graphed.state())
    assert not graphed.graphs.replays
    again = [graphed.train_step(*batch, 0.01)() for batch in first_batches(8)]
    assert graphed.graphs.replays
    assert np.mean([score.loss for score in again]) < np.mean([score.loss for score in scores])
    weights.write(tmp_path / "fresh.params", made("pyd-concat-11-0.25", "cuda", seed=5).state()[0], {})
    graphed.load_weights(tmp_path / "fresh.params")
    fresh = next(graphed.train_step(*batch, 0.01)() for batch in first_batches(1))
    assert fresh.loss > again[-1].loss


def test_batches_made_on_a_gpu_are_those_of_the_host_bit_for_bit():
    dataset = get_dataset("digits").head(640)
    recipe = config.make({**DIGITS, "model": "pyd-add-11-0.25", "mixup": 0.5, "cutmix": 1.0, "cutout": 9})
    device = made("pyd-add-11-0.25", "cuda").loader(dataset, 5)
    assert isinstance(device, DeviceLoader)
    arguments = dataset, recipe, 640 // recipe.batch_size, 0, 1
    for one, other in zip(Loader(*arguments).epoch(1), DeviceLoader(*arguments, device=torch.device("cuda")).epoch(1)):
        for array, tensor in zip(one, other):
            np.testing.assert_array_equal(tensor.cpu().numpy(), array)
