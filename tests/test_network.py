"""The description of the networks, and its folding, without an engine."""

import csv
import subprocess
import sys
from dataclasses import replace

import numpy as np
import oracle
import pytest
from oracle import FAMILIES, conv, ended

from pydmobilenet import catalog
from pydmobilenet.folding import fold
from pydmobilenet.network import Add, BatchNorm, Concat, ReLU

CASES = [*((name, "cifar10") for name in FAMILIES), ("pyd-concat-11-0.25", "imagenet32")]
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 16))


@pytest.mark.parametrize("record", catalog.RECORDS, ids=lambda record: f"{record.model}@{record.dataset}")
def test_counts_are_exact_and_as_published(record):
    found = catalog.describe(record.model, record.dataset).complexity()
    assert record.exact in (None, found)
    assert abs(found.parameters / 1e6 - record.params_m) <= record.params_tolerance_m


def test_counts_are_those_of_the_reference(shared):
    with open(shared / "reference" / "exact-counts.csv") as file:
        for row in csv.DictReader(file):
            network = catalog.describe(row["model"], row["dataset"].replace("cifar100", "cifar100-coarse"))
            assert network.complexity() == (int(row["parameters"]), int(row["multiply_adds"])), row
            statistics = [np.prod(shape) for name, shape in network.parameters.items() if "running" in name]
            assert sum(statistics) == int(row["moving_statistics"]), row


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_the_oracle_s_outputs_have_the_shapes_that_are_described(name, dataset):
    network = catalog.describe(name, dataset)
    found = oracle.outputs(network, oracle.random_arrays(network), IMAGES)
    assert {name: array.shape[1:] for name, array in found.items()} == network.shapes((3, 16, 16))
    assert network.outputs == network.shapes()[network.head.name][0]


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_the_folded_network_is_the_same_function(name, dataset):
    network = catalog.describe(name, dataset)
    arrays = oracle.random_arrays(network)
    folded, others = fold(network, arrays)
    expected = oracle.logits(network, arrays, IMAGES)
    np.testing.assert_allclose(
        oracle.logits(folded, others, IMAGES), expected, rtol=0, atol=1e-12 * abs(expected).max()
    )
    assert {name: array.shape for name, array in others.items()} == folded.parameters


@pytest.mark.parametrize("name", ["resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.5", "pyd-concat-29-0.5"])
def test_what_can_be_folded_is_folded(name):
    network = catalog.describe(name)
    folded, _ = fold(network, oracle.random_arrays(network))
    operators = [layer.operator for layer in folded.layers]
    blocks, kernels = 9, 3 if "concat" in name else 1
    assert operators.count("BatchNorm") == 1 + blocks  # the stem's and the first of each block
    assert operators.count("Convolution") == 1 + (2 + kernels) * blocks + 2
    assert operators.count("Add") == blocks
    assert operators.count("Concat") == (blocks if "concat" in name else 0)


ALL_USED_TWICE = {
    "a convolution": [conv("a", "images"), BatchNorm("norm", ("a",), 4), Add("sum", ("norm", "a"))],
    "a normalised convolution": [
        conv("a", "images"),
        BatchNorm("norm", ("a",), 4),
        ReLU("relu", ("norm",)),
        Add("sum", ("norm", "relu")),
    ],
    "one of two that are summed": [
        conv("a", "images"),
        conv("b", "images"),
        Add("s", ("a", "b")),
        Add("t", ("s", "a")),
    ],
    "a concatenation": [
        conv("a", "images", 2),
        conv("b", "images", 2),
        Concat("c", ("a", "b")),
        BatchNorm("norm", ("c",), 4),
        Add("sum", ("norm", "c")),
    ],
    "one of a concatenation": [
        conv("a", "images", 2),
        conv("b", "images", 2),
        Concat("c", ("a", "b")),
        ReLU("relu", ("c",)),
        Concat("d", ("b", "a")),
        Add("sum", ("relu", "d")),
    ],
    "a sum": [
        conv("a", "images"),
        conv("b", "a"),
        Add("s", ("a", "b")),
        BatchNorm("norm", ("s",), 4),
        Add("t", ("s", "norm")),
    ],
}
NOT_ALIKE = {
    "another input": [conv("a", "images"), conv("b", "a"), Add("sum", ("b", "a"))],
    "a bias": [conv("a", "images", bias=True), conv("b", "images"), Add("sum", ("a", "b"))],
    "an even kernel": [conv("a", "images", kernel=1), conv("b", "a", kernel=1), Add("sum", ("b", "a"))],
    "groups": [conv("z", "images"), conv("a", "z", groups=2), conv("b", "z"), Add("sum", ("a", "b"))],
}


@pytest.mark.parametrize("layers", [*ALL_USED_TWICE.values(), *NOT_ALIKE.values()], ids=[*ALL_USED_TWICE, *NOT_ALIKE])
def test_what_cannot_be_folded_is_left_as_it_is(layers):
    network = ended(*layers)
    arrays = oracle.random_arrays(network)
    folded, others = fold(network, arrays)
    expected = oracle.logits(network, arrays, IMAGES)
    np.testing.assert_allclose(oracle.logits(folded, others, IMAGES), expected, rtol=0, atol=1e-12)
    assert "Add" in [layer.operator for layer in folded.layers]


def test_a_scale_that_is_fixed_is_not_read():
    network = ended(conv("a", "images"), BatchNorm("norm", ("a",), 4, scale=False))
    arrays = oracle.random_arrays(network)
    other = {**arrays, "norm.gamma": arrays["norm.gamma"] + 7}
    for name, array in fold(network, arrays)[1].items():
        np.testing.assert_array_equal(array, fold(network, other)[1][name])


def test_folding_leaves_what_it_was_given():
    network = catalog.describe("pyd-add-11-0.25")
    arrays = oracle.random_arrays(network)
    before = {name: array.copy() for name, array in arrays.items()}
    fold(network, arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_description_is_a_value():
    assert catalog.describe("pyd-add-11-0.25") == catalog.describe("pyd-add-11-0.25")
    assert catalog.describe("pyd-add-11-0.25") != catalog.describe("pyd-add-11-0.5")
    layer = catalog.describe("pyd-add-11-0.25").layers[0]
    assert replace(layer, name="other") != layer


def test_no_engine_is_imported_for_descriptions_and_counts():
    code = (
        "import sys; from pydmobilenet import catalog, folding; from pydmobilenet.reporting import tables;"
        "catalog.describe('pyd-concat-56-0.5').complexity(); "
        "print([name for name in ('mxnet', 'onnx', 'onnxruntime', 'torch', 'gluoncv') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr
