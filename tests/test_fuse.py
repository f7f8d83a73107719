"""Fusing changes the steps, not the function."""

import json

import mxnet as mx
import numpy as np
import pytest
from helpers import NETWORKS, randomise

import pydmobilenet
from pydmobilenet.gluon.inference import for_onednn, fuse

pytestmark = pytest.mark.instruction_sets


def operators(net):
    nodes = json.loads(net(mx.sym.var("data")).tojson())["nodes"]
    return [node["op"] for node in nodes if node["op"] != "null"]


X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


def assert_same_function(fused, net):
    """Imperative and hybridised, for one batch and for another one after it."""
    for _ in range(2):
        for images in (X, X[1:]):
            expected = net(mx.nd.array(images)).asnumpy()
            answer = fused(mx.nd.array(images)).asnumpy()
            np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5 * abs(expected).max())
        fused.hybridize(static_alloc=True, static_shape=True)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(("name", "dataset"), NETWORKS)
def test_the_fused_network_computes_the_same(name, dataset, portable):
    net = randomise(pydmobilenet.get_model(name, dataset))
    assert_same_function(fuse(net, portable), net)


@pytest.mark.parametrize("name", ["resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.5", "pyd-concat-29-0.5"])
def test_what_can_be_folded_is_folded(name):
    net = pydmobilenet.get_model(name)
    before, after = operators(net), operators(fuse(net, portable=True))
    blocks = 9
    assert before.count("BatchNorm") == 1 + 4 * blocks + 2
    assert after.count("BatchNorm") == 1 + blocks  # the stem's and the first of each block
    kernels = 3 if "concat" in name else 1
    assert after.count("Convolution") == 1 + (2 + kernels) * blocks + 2
    assert after.count("elemwise_add") == blocks


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


def test_wide_resnets_fuse_too():
    pytest.importorskip("gluoncv", exc_type=ImportError)
    net = randomise(pydmobilenet.get_model("wrn-10-1", classes=7))
    fused = fuse(net)
    assert_same_function(fused, net)
    assert operators(fused).count("BatchNorm") < operators(net).count("BatchNorm")


class Branching(mx.gluon.nn.HybridBlock):
    """A convolution whose output is used twice, and a sum of what is no sum of convolutions of one input."""

    def __init__(self):
        super().__init__()
        self.a = mx.gluon.nn.Conv2D(4, 3, padding=1, in_channels=3)
        self.b = mx.gluon.nn.Conv2D(4, 5, padding=1, in_channels=3)  # not centred: the map shrinks
        self.c = mx.gluon.nn.Conv2D(4, 3, padding=0, in_channels=3)  # not centred either
        self.d = mx.gluon.nn.Conv2D(4, 3, padding=1, in_channels=4)
        self.norm = mx.gluon.nn.BatchNorm(in_channels=4)

    def hybrid_forward(self, F, x):
        y = self.a(x)
        z = self.norm(y) + y + self.d(y)
        return z.mean(axis=(2, 3)) + (self.b(x) + self.c(x)).mean(axis=(2, 3))


def test_what_cannot_be_folded_is_left_as_it_is():
    net = Branching()
    net.initialize(mx.init.MSRAPrelu())
    randomise(net)
    assert_same_function(fuse(net), net)


class SumNeededTwice(mx.gluon.nn.HybridBlock):
    """What MXNet's own fusing gets wrong: a batch normalisation or ReLU of a sum that is also needed as it is."""

    def __init__(self, relu):
        super().__init__()
        self.a = mx.gluon.nn.Conv2D(4, 3, padding=1, in_channels=3)
        self.b = mx.gluon.nn.Conv2D(4, 3, padding=1, in_channels=4)
        self.norm = mx.gluon.nn.BatchNorm(in_channels=4)
        self.relu = relu

    def hybrid_forward(self, F, x):
        y = self.a(x)
        z = self.b(y) + y
        return (z + (F.relu(z) if self.relu else self.norm(z))).mean(axis=(2, 3))


def test_where_normalisations_follow_sums_the_fusing_of_mxnet_is_left_out(monkeypatch):
    # Joined with their ReLU they are out of its reach; it takes those that are not into the sum.
    monkeypatch.setitem(for_onednn.__globals__, "joined", lambda graph: graph)
    net = randomise(pydmobilenet.get_model("resnet-11-0.5"))
    assert_same_function(fuse(net), net)


@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_that_is_needed_twice_stays_a_sum(relu):
    net = SumNeededTwice(relu)
    net.initialize(mx.init.MSRAPrelu())
    assert_same_function(fuse(randomise(net)), net)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda graph: graph * 1.1, r"they give other logits \(up to .* off, of "),
        (
            lambda graph: mx.sym.broadcast_add(graph, mx.sym.zeros((3, 10))),
            r"they do not work here \(",
        ),  # but for the first batch
    ],
    ids=["wrong", "failing"],
)
def test_fused_operations_that_do_not_work_are_left_out_with_a_warning(spoil, words, monkeypatch):
    monkeypatch.setitem(for_onednn.__globals__, "for_onednn", spoil)
    net = randomise(pydmobilenet.get_model("pyd-add-11-0.25"))
    with pytest.warns(UserWarning, match=f"oneDNN's fused operations are left out, as {words}"):
        assert_same_function(fuse(net), net)


def test_a_fused_network_has_the_parameters_of_the_plain_one_alone():
    net = pydmobilenet.get_model("pyd-add-11-0.25")
    assert sorted(fuse(net).collect_params()) == sorted(fuse(net, portable=True).collect_params())
