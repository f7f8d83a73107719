"""The faster training step has the gradients of the reference."""

import warnings
from functools import partial

import mxnet as mx
import numpy as np
import oracle
import pytest
from helpers import NETWORKS, SMALL, sampled
from mxnet import gluon, nd

import pydmobilenet
from pydmobilenet import machine, network
from pydmobilenet.data import get_task
from pydmobilenet.errors import UnusableError
from pydmobilenet.folding import lower
from pydmobilenet.gluon.inference import Checked, fusible_norms, symbols
from pydmobilenet.gluon.network import build
from pydmobilenet.gluon.pyramid import TOLERANCE, Segments, Step, gradients, make_step
from pydmobilenet.network import IMAGES

pytestmark = pytest.mark.instruction_sets

LOSS = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
ALL = [(name, dataset) for name, dataset in NETWORKS if dataset != "cifar100-coarse"] + [("wrn-16-2", "cifar10")]
AVX512 = machine.instruction_set().startswith("AVX512")


def made(name, dataset="cifar10", dtype="float32"):
    """A network with the same parameters each time."""
    mx.random.seed(0)
    net = pydmobilenet.get_model(name, dataset)
    net.cast(dtype)
    return net


def hybridized(net):
    """The reference step."""
    net.hybridize(static_alloc=True, static_shape=True)
    return Step(net, LOSS)


def grads(net):
    named = net._collect_params_with_prefix().items()
    return {name: each.grad().asnumpy() for name, each in named if each.grad_req != "null"}


def moving(net):
    nd.waitall()
    named = net._collect_params_with_prefix().items()
    return {name: each.data().asnumpy() for name, each in named if "running" in name}


def batch(images=4, outputs=10, dtype="float32", seed=0):
    x = np.random.default_rng(seed).standard_normal((images, 3, 32, 32))
    return nd.array(x, dtype=dtype), nd.array(np.eye(outputs)[np.arange(images) % outputs], dtype=dtype)


def decide(net):
    """Shift each channel so far to one side of 0 that no rounding lets the input of a ReLU change its sign."""
    for name, each in net._collect_params_with_prefix().items():
        if name.endswith("beta"):
            each.set_data(nd.array(np.resize([5.0, 5.0, -5.0], each.shape)))


def both(name, dataset, dtype, decided=False):
    """Gradients, logits, losses and moving statistics of one step: the reference's, then the fastest that works."""
    found = []
    for reference in (True, False):
        net = made(name, dataset, dtype)
        if decided:
            decide(net)
        x, y = batch(outputs=get_task(dataset).outputs, dtype=dtype)
        with warnings.catch_warnings():
            if AVX512:  # there some fall back, and say so
                warnings.simplefilter("ignore")
            taken = hybridized(net) if reference else make_step(net, LOSS, mx.cpu())
            logits, losses = taken(x, y, 2.0)
        found.append((grads(net), logits.asnumpy(), losses.asnumpy(), moving(net)))
    return found


@pytest.mark.parametrize(("name", "dataset"), sampled(ALL, lambda case: case[0] in (*SMALL, "wrn-16-2")))
def test_a_step_has_the_gradients_statistics_and_losses_of_the_reference(name, dataset):
    (reference, *others), (ours, *mine) = both(name, dataset, "float32", decided=True)
    assert ours.keys() == reference.keys()
    size = max(gradient.max() for gradient in reference.values()) - min(each.min() for each in reference.values())
    for parameter, expected in reference.items():
        np.testing.assert_allclose(ours[parameter], expected, rtol=0, atol=1e-5 * size, err_msg=parameter)
    for theirs, own in zip(others[:2], mine[:2]):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-4 * abs(theirs).max())
    for statistic, theirs in others[2].items():
        np.testing.assert_allclose(mine[2][statistic], theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["pyd-add-29-0.25", "pyd-concat-29-0.25"])
def test_in_float64_the_gradients_are_the_same_to_its_precision(name):
    (reference, *others), (segments, *ours) = both(name, "cifar10", "float64")
    scale = max(abs(gradient).max() for gradient in reference.values())
    assert segments.keys() == reference.keys()
    for parameter in reference:
        np.testing.assert_allclose(
            segments[parameter], reference[parameter], rtol=0, atol=1e-10 * scale, err_msg=parameter
        )
    for theirs, mine in zip(others[:2], ours[:2]):  # logits and losses
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def fused(net):
    """All of a network in one graph, normalisations fused with their ReLUs."""
    layers, parameters, images = lower(net.description).layers, net._collect_params_with_prefix(), mx.sym.var(IMAGES)
    graph = symbols(layers, {IMAGES: images}, lambda name: mx.sym.var(parameters[name].name), fusible_norms(layers))
    block = gluon.SymbolBlock(graph[net.description.head.name], images, params=net.collect_params())
    block.hybridize(static_alloc=True, static_shape=True)
    return block


@pytest.mark.parametrize(
    "name", ["resnet-11-0.5", "mobilenet-11-1", "pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-1"]
)
def test_normalisation_and_relu_as_one_operation_give_the_same_bits(name):
    if machine.instruction_set() in ("AVX", "SSE41"):
        pytest.skip("below AVX2 the step does without: slower, and with other bits")
    if AVX512 and not name.startswith(("resnet", "mobilenet")):
        pytest.skip("oneDNN has no such kernels with AVX-512: the step does without")
    net = made(name)
    x, y = nd.random.normal(shape=(8, 3, 32, 32)), nd.one_hot(nd.arange(8), 10)
    found, start = [], {key: each.data().copy() for key, each in net.collect_params().items()}
    net.hybridize(static_alloc=True, static_shape=True)
    for graph in (net, fused(net)):
        for key, each in net.collect_params().items():
            each.set_data(start[key])
        logits, _ = Step(graph, LOSS)(x, y)
        found.append({**grads(net), **moving(net), "logits": logits.asnumpy()})
    for key, expected in found[0].items():
        np.testing.assert_array_equal(found[1][key], expected, err_msg=key)


class Traced(mx.gluon.SymbolBlock):
    """Any network, without blocks written by hand."""

    def __init__(self, description):
        self.description = description
        layers = lower(description).layers
        images = mx.sym.var(IMAGES, dtype="float32")
        super().__init__(symbols(layers, {IMAGES: images})[description.head.name], images)
        for name, array in oracle.random_arrays(description).items():
            parameter = self.collect_params()[name]
            parameter.shape = array.shape
            parameter.initialize(mx.init.Zero())
            parameter.set_data(nd.array(array))

    def _collect_params_with_prefix(self, prefix=""):
        return dict(self.collect_params())


@pytest.mark.parametrize("kernels", [(3,), (3, 5, 7)])
@pytest.mark.parametrize("join", ["add", "concat", "max"])
def test_networks_of_any_pyramids_have_right_gradients(join, kernels, monkeypatch):
    """Fused with its ReLU behind a maximum, a normalisation would have wrong ones."""
    monkeypatch.setattr(network, "FAMILIES", {})
    network.register_family("pyramids")(
        lambda net, name, x, channels, stride: net.add(network.Pyramid(name, (x,), channels, kernels, stride, join))
    )
    net = Traced(network.describe(network.Architecture("pyramids", 11, 0.25), 10))
    decide(net)
    found = []
    for step in (hybridized(net), Step(Segments(net), LOSS)):
        step(*batch(8))
        found.append(grads(net))
    size = max(abs(gradient).max() for gradient in found[0].values())
    for name, expected in found[0].items():
        np.testing.assert_allclose(found[1][name], expected, rtol=0, atol=1e-5 * size, err_msg=name)


def test_on_a_cpu_they_are_one_operation():
    net = pydmobilenet.get_model("resnet-11-0.5")
    graph = make_step(net, LOSS, mx.cpu()).fast.network(mx.sym.var("data")).tojson()
    fast = machine.instruction_set() not in ("AVX", "SSE41")  # below AVX2 they are slower together
    assert graph.count('"op": "_contrib_BatchNormWithReLU"') == (3 * 3 if fast else 0)
    assert graph.count('"op": "Activation"') == (0 if fast else 3 * 3)


@pytest.mark.skipif(not AVX512, reason="only with AVX-512")
@pytest.mark.parametrize("name", ["pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-1"])
def test_what_cannot_run_with_avx512_is_left_out_with_a_warning(name):
    taken = make_step(made(name), LOSS, mx.cpu())
    with pytest.warns(UserWarning, match="the faster training step is left out .*DNNL_MAX_CPU_ISA=AVX2 may bring"):
        taken(*batch())
    assert taken.chosen[(4, 3, 32, 32)] is taken.reference


class Spoilt:
    """A step that fails, or has other gradients, and leaves something else in the moving statistics."""

    def __init__(self, reference, how):
        self.reference, self.how = reference, how

    def __call__(self, images, targets, scale=1.0):
        answer = self.reference(images, targets, scale)
        if self.how == "is wrong":
            self.reference.network.head.dense.weight.grad()[:] *= 1.2
        elif self.how == "fails":
            nd.Convolution(images, nd.zeros((1, 1, 1, 1)), kernel=(2, 2), num_filter=1, no_bias=True)
        elif self.how == "fails later":  # as operators do: on the engine's own threads
            nd.linalg.potrf(nd.array([[-1.0]])).wait_to_read()
        return answer


def checked(net, fast, reference):
    results = partial(gradients, net.collect_params().values(), mx.cpu())
    return Checked(fast, reference, results, TOLERANCE, "the faster training step is", "slow")


@pytest.mark.parametrize("request_", ["write", "add"])
@pytest.mark.parametrize("how", ["is wrong", "fails", "fails later"])
@pytest.mark.parametrize("name", ["resnet-11-0.125", "pyd-add-11-0.125"])
def test_a_faster_step_that_does_not_work_is_replaced_and_leaves_no_trace(name, how, request_):
    found = []
    for spoilt in (False, True):
        net = made(name)
        for parameter in net.collect_params().values():
            if parameter.grad_req != "null":
                parameter.grad_req = request_
        taken = reference = hybridized(net)
        if spoilt:
            taken = checked(net, Spoilt(reference, how), reference)
            with pytest.warns(UserWarning, match=r"off by 20\.0%" if how == "is wrong" else "failed: "):
                logits, _ = taken(*batch())
        else:
            logits, _ = taken(*batch())
        logits, _ = taken(*batch(seed=1))
        found.append({**grads(net), **moving(net), "logits": logits.asnumpy()})
    assert found[0].keys() == found[1].keys()
    for key, expected in found[0].items():
        np.testing.assert_array_equal(found[1][key], expected, err_msg=key)


def reference_twice():
    """A checked step that cannot fail."""
    net = made("resnet-11-0.125")
    return checked(net, hybridized(net), hybridized(net))


def test_a_step_is_tried_once_for_each_shape(monkeypatch):
    taken, tried = reference_twice(), []
    monkeypatch.setattr(taken, "_obstacle", lambda images, targets: tried.append(len(images)))
    for images in (4, 4, 2, 4):
        taken(*batch(images))
    assert tried == [4, 2]


def test_gradients_that_are_not_finite_are_no_reason_to_leave_a_step_out():
    taken = reference_twice()
    x, y = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # MXNet's own
        taken(x * float("nan"), y)
    assert taken.chosen[(4, 3, 32, 32)] is taken.fast


def test_building_an_unknown_family_is_refused():
    with pytest.raises(UnusableError, match="engine 'gluon' has no network of family 'pyramids'; nearest: pytorch"):
        build(network.Architecture("pyramids", 11, 0.25), 10)
