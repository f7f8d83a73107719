"""PyTorch on a GPU does what it does on the CPU. None of this runs where there is no GPU."""

import numpy as np
import oracle
import pytest
import torch
from helpers import ROOT

from pydmobilenet import zoo
from pydmobilenet.data import batches, get_dataset
from pydmobilenet.pytorch import trainer
from pydmobilenet.pytorch.inference import PyTorchEngine
from pydmobilenet.training import config, mixup

pytestmark = [pytest.mark.pytorch, pytest.mark.gpu]
DIGITS = config.read(ROOT / "configs" / "digits.yaml")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", oracle.FAMILIES)
def test_answers_are_those_of_the_description_without_tf32(name, fused):
    network = zoo.describe(name)
    arrays = oracle.random_arrays(network)
    images = np.random.default_rng(0).standard_normal((20, 3, 32, 32)).astype(np.float32)
    found = PyTorchEngine("gpu", fused).load(network, arrays)(images)
    expected = oracle.logits(network, arrays, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def trained(model, device, steps=5, dtype="float32", compiled=False):
    """The scores of the first steps, and the trainer."""
    recipe = config.make({**DIGITS, "model": model, "batch_size": 64, "dtype": dtype})
    dataset = get_dataset("digits")
    made = trainer.make(recipe, dataset.task, torch.device(device), compiled)
    scores = []
    for _, (images, labels) in zip(range(steps), batches(dataset, 64, train=True)):
        scores.append(made.train_step(images, mixup.targets(labels, 10), 0.01)())
    return scores, made


@pytest.mark.parametrize("model", ["resnet-11-0.25", "mobilenet-11-0.5", "pyd-add-11-0.25", "pyd-concat-11-0.25"])
def test_training_follows_that_of_the_cpu(model):
    here, there = (trained(model, device)[0] for device in ("cpu", "cuda"))
    np.testing.assert_allclose([score.loss for score in there], [score.loss for score in here], rtol=1e-3)


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
