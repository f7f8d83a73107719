"""The faster backward pass computes the gradients of the literal one."""

import mxnet as mx
import numpy as np
import pytest
from conftest import NETWORKS
from mxnet import gluon, nd

import pydmobilenet
from pydmobilenet.training import step

LOSS = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
PYRAMIDS = [(name, dataset) for name, dataset in NETWORKS if name.startswith("pyd") and dataset != "cifar100-coarse"]


def gradients(net):
    named = net._collect_params_with_prefix().items()
    return {name: each.grad().asnumpy() for name, each in named if each.grad_req != "null"}


def both(name, dataset, dtype, images=4):
    """Gradients, logits and moving statistics of one step by each of the two, from the same parameters."""
    found = []
    for kind in (step.LiteralStep, step.PyramidStep):
        mx.random.seed(0)
        net = pydmobilenet.get_model(name, dataset)
        net.cast(dtype)
        outputs = net.head.dense.weight.shape[0]
        x = np.random.default_rng(0).standard_normal((images, 3, 32, 32))
        y = np.eye(outputs)[np.arange(images) % outputs]
        logits, losses = kind(net, LOSS)(nd.array(x, dtype=dtype), nd.array(y, dtype=dtype), 2.0)
        moving = {n: p.data().asnumpy() for n, p in net._collect_params_with_prefix().items() if "running" in n}
        found.append((gradients(net), logits.asnumpy(), losses.asnumpy(), moving))
    return found


@pytest.mark.parametrize("name", ["pyd-add-29-0.25", "pyd-concat-29-0.25"])
def test_in_float64_the_gradients_are_the_same_to_its_precision(name):
    (literal, *others), (pieces, *ours) = both(name, "cifar10", "float64")
    scale = max(abs(gradient).max() for gradient in literal.values())
    assert pieces.keys() == literal.keys()
    for parameter in literal:
        np.testing.assert_allclose(pieces[parameter], literal[parameter], rtol=0, atol=1e-10 * scale, err_msg=parameter)
    for theirs, mine in zip(others[:2], ours[:2]):  # logits and losses
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "dataset"), PYRAMIDS)
def test_in_float32_logits_losses_and_moving_statistics_are_the_same(name, dataset):
    (_, *others), (_, *ours) = both(name, dataset, "float32")
    for theirs, mine in zip(others[:2], ours[:2]):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * abs(theirs).max())
    for statistic, theirs in others[2].items():
        np.testing.assert_allclose(ours[2][statistic], theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet-11-0.5", "mobilenet-11-1", "pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-1"]
)
def test_normalisation_and_relu_as_one_operation_give_the_same_bits(name):
    if name.startswith("wrn"):
        pytest.importorskip("gluoncv", exc_type=ImportError)
    net = pydmobilenet.get_model(name)
    x, y = nd.random.normal(shape=(8, 3, 32, 32)), nd.one_hot(nd.arange(8), 10)
    found = []
    start = {key: each.data().copy() for key, each in net.collect_params().items()}
    for network in (net, step.traced(net, net(mx.sym.var("data")), ["data"])):
        for key, each in net.collect_params().items():
            each.set_data(start[key])
        logits, _ = step.LiteralStep(network, LOSS)(x, y)
        nd.waitall()
        moving = {key: each.data().asnumpy() for key, each in net.collect_params().items() if "running" in key}
        found.append({**gradients(net), **moving, "logits": logits.asnumpy()})
    for key, expected in found[0].items():
        np.testing.assert_array_equal(found[1][key], expected, err_msg=key)


def test_on_a_cpu_they_are_one_operation():
    net = pydmobilenet.get_model("resnet-11-0.5")
    graph = step.make(net, LOSS, mx.cpu()).net(mx.sym.var("data")).tojson()
    assert graph.count('"op": "_contrib_BatchNormWithReLU"') == 3 * 3
    assert graph.count('"op": "Activation"') == 0
