"""Fusing changes the steps, not the function."""

import json

import mxnet as mx
import numpy as np
import pytest
from conftest import NETWORKS

import pydmobilenet
from pydmobilenet.deploy import fuse


def randomise(net, seed=0):
    """Give every batch normalisation of a network statistics, a scale and a shift that matter."""
    rng = np.random.default_rng(seed)
    for name, parameter in net._collect_params_with_prefix().items():
        kind = name.rsplit(".", 1)[1]
        if kind in ("gamma", "running_var"):
            parameter.set_data(mx.nd.array(rng.uniform(0.5, 1.5, parameter.shape)))
        elif kind in ("beta", "running_mean", "bias"):
            parameter.set_data(mx.nd.array(rng.uniform(-0.5, 0.5, parameter.shape)))
    return net


def operators(net):
    nodes = json.loads(net(mx.sym.var("data")).tojson())["nodes"]
    return [node["op"] for node in nodes if node["op"] != "null"]


X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize(("name", "dataset"), NETWORKS)
def test_the_fused_network_computes_the_same(name, dataset):
    net = randomise(pydmobilenet.get_model(name, dataset))
    expected = net(mx.nd.array(X)).asnumpy()
    answer = fuse(net)(mx.nd.array(X)).asnumpy()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", ["resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.5", "pyd-concat-29-0.5"])
def test_what_can_be_folded_is_folded(name):
    net = pydmobilenet.get_model(name)
    before, after = operators(net), operators(fuse(net))
    blocks = 9
    assert before.count("BatchNorm") == 1 + 4 * blocks + 2
    assert after.count("BatchNorm") == 1 + blocks  # the stem's and the first of each block
    kernels = 3 if "concat" in name else 1
    assert after.count("Convolution") == 1 + (2 + kernels) * blocks + 2
    assert after.count("elemwise_add") == blocks


def test_wide_resnets_fuse_too():
    pytest.importorskip("gluoncv", exc_type=ImportError)
    net = randomise(pydmobilenet.get_model("wrn-10-1", classes=7))
    expected = net(mx.nd.array(X)).asnumpy()
    fused = fuse(net)
    np.testing.assert_allclose(fused(mx.nd.array(X)).asnumpy(), expected, rtol=0, atol=1e-5 * abs(expected).max())
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
    expected = net(mx.nd.array(X)).asnumpy()
    np.testing.assert_allclose(fuse(net)(mx.nd.array(X)).asnumpy(), expected, rtol=0, atol=1e-5 * abs(expected).max())
