"""Gluon's folded networks, with oneDNN's operations: other steps, the same function."""

import json

import mxnet as mx
import numpy as np
import oracle
import pytest
from helpers import NETWORKS, SMALL, sampled
from oracle import FAMILIES, conv, ended

import pydmobilenet
from pydmobilenet import catalog
from pydmobilenet.folding import fold
from pydmobilenet.gluon import inference
from pydmobilenet.gluon.inference import build_fused, build_reference, fuse
from pydmobilenet.gluon.network import get_arrays, set_arrays
from pydmobilenet.network import Add, BatchNorm, ReLU

pytestmark = pytest.mark.instruction_sets
CPU = mx.cpu()
USUAL = [*((name, "cifar10") for name in SMALL), ("pyd-concat-56-0.25", "imagenet32"), ("wrn-10-1", "cifar10")]


def randomise(net, seed=0):
    """Give a network parameters that all matter."""
    set_arrays(net, oracle.random_arrays(net.description, seed))
    return net


def operators(net):
    nodes = json.loads(net(mx.sym.var("data")).tojson())["nodes"]
    return [node["op"] for node in nodes if node["op"] != "null"]


X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


def assert_same_function(found, net):
    """Imperative and hybridised, for one batch and for another one after it."""
    for _ in range(2):
        for images in (X, X[1:]):
            expected = net(mx.nd.array(images)).asnumpy()
            answer = found(mx.nd.array(images)).asnumpy()
            np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5 * abs(expected).max())
        found.hybridize(static_alloc=True, static_shape=True)


@pytest.mark.parametrize(("name", "dataset"), sampled([*NETWORKS, ("wrn-10-1", "cifar10")], USUAL.__contains__))
def test_the_fused_network_computes_the_same(name, dataset):
    net = randomise(pydmobilenet.get_model(name, dataset))
    assert_same_function(build_fused(net.description, get_arrays(net), CPU), net)


def build_folded(network, arrays, context):
    return build_reference(*fold(network, arrays), context)


@pytest.mark.parametrize("build", [build_reference, build_folded, build_fused])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_build_matches_the_oracle(name, build):
    network = catalog.describe(name)
    arrays = oracle.random_arrays(network)
    net = build(network, arrays, CPU)
    expected = oracle.logits(network, arrays, X)
    np.testing.assert_allclose(net(mx.nd.array(X)).asnumpy(), expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", ["resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.5", "pyd-concat-29-0.5"])
def test_on_a_cpu_additions_and_relus_are_part_of_the_convolutions(name):
    found = operators(fuse(pydmobilenet.get_model(name)))
    assert found.count("_contrib_BatchNormWithReLU") == 9
    assert found.count("_sg_mkldnn_conv") == 1 + (5 if "concat" in name else 3) * 9 + 2
    assert found.count("Concat") == (9 if "concat" in name else 0)
    assert set(found) <= {
        *("BatchNorm", "_contrib_BatchNormWithReLU", "_sg_mkldnn_conv", "Concat", "Pooling"),
        *("_sg_mkldnn_fully_connected", "FullyConnected"),
    }


SUMS = {
    "normalised": ([BatchNorm("norm", ("sum",), 4)], "norm"),
    "activated": ([ReLU("relu", ("sum",))], "relu"),
    "both": ([BatchNorm("norm", ("sum",), 4), ReLU("relu", ("norm",))], "relu"),
}


@pytest.mark.parametrize("kind", SUMS)
def test_a_sum_that_is_needed_twice_stays_a_sum(kind):
    """MXNet's own fusing gets it wrong: it draws what follows the sum into it."""
    layers, last = SUMS[kind]
    network = ended(conv("a", "images"), conv("b", "a"), Add("sum", ("b", "a")), *layers, Add("end", ("sum", last)))
    arrays = oracle.random_arrays(network)
    assert_same_function(build_fused(network, arrays, CPU), build_reference(network, arrays, CPU))
    fused_by_mxnet = "_sg_mkldnn_conv" in operators(build_fused(network, arrays, CPU))
    assert fused_by_mxnet == (kind == "both")  # as one operation, they are out of its reach


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda graph: graph * 1.1, r"results off by \d+"),
        (
            lambda graph: mx.sym.broadcast_add(graph, mx.sym.zeros((3, 10))),
            "failed: ",
        ),  # but for the first batch
    ],
    ids=["wrong", "failing"],
)
def test_fused_operations_that_do_not_work_are_left_out_with_a_warning(spoil, words, monkeypatch):
    for_onednn = inference.for_onednn
    monkeypatch.setattr(inference, "for_onednn", lambda network: spoil(for_onednn(network)))
    net = randomise(pydmobilenet.get_model("pyd-add-11-0.25"))
    with pytest.warns(UserWarning, match=rf"oneDNN's fused operations are left out \({words}"):
        assert_same_function(fuse(net), net)


def test_a_fused_network_has_the_parameters_of_the_plain_one_alone():
    net = pydmobilenet.get_model("pyd-add-11-0.25")
    plain = build_folded(net.description, get_arrays(net), CPU)
    assert sorted(fuse(net).collect_params()) == sorted(plain.collect_params())
