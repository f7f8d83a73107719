"""What docs/mxnet.md says of MXNet 1.9.1 and PyTorch, shown on the engines themselves."""

import inspect
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
import torch
from mxnet import autograd, nd

pytestmark = [pytest.mark.gluon, pytest.mark.pytorch]

X = np.random.default_rng(0).normal(1, 2, (8, 3, 4, 4)).astype(np.float32)
MEAN, BIASED = X.mean((0, 2, 3)), X.var((0, 2, 3))


def gluon_norm(momentum):
    net = mx.gluon.nn.BatchNorm(momentum=momentum)
    net.initialize()
    x = nd.array(X)
    x.attach_grad()
    with autograd.record():
        y = net(x)
    y.wait_to_read()
    before = net.running_mean.data().asnumpy().copy()
    y.backward()
    mx.nd.waitall()
    return before, net.running_mean.data().asnumpy(), net.running_var.data().asnumpy()


def test_running_statistics_change_in_mxnet_s_backward_pass_and_in_pytorch_s_forward_pass():
    before, after, _ = gluon_norm(0.9)
    np.testing.assert_array_equal(before, 0)
    assert abs(after).min() > 0
    norm = torch.nn.BatchNorm2d(3)
    norm(torch.tensor(X))
    assert norm.running_mean.abs().min() > 0


def test_momentum_is_one_less_the_other_s_and_only_pytorch_s_variance_is_unbiased():
    _, mean, variance = gluon_norm(0.9)
    norm = torch.nn.BatchNorm2d(3, momentum=0.1)
    norm(torch.tensor(X))
    np.testing.assert_allclose(mean, 0.1 * MEAN, rtol=1e-5)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * MEAN, rtol=1e-5)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * BIASED, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * X.var((0, 2, 3), ddof=1), rtol=1e-5)


def steps(update, rates, gradient=1.0):
    """A weight of 1 after an update by each rate."""
    weight = nd.array([1.0])
    state = update.create_state(0, weight)
    for rate in rates:
        update.set_learning_rate(rate)
        update.update(0, weight, nd.array([gradient]), state)
    return float(weight.asscalar())


def torch_steps(rates, gradient=1.0, **options):
    weight = torch.nn.Parameter(torch.ones(1))
    sgd = torch.optim.SGD([weight], 1.0, 0.9, nesterov=True, **options)
    for rate in rates:
        sgd.param_groups[0]["lr"] = rate
        weight.grad = torch.full((1,), gradient)
        sgd.step()
    return float(weight)


def nag(wd=0.0):
    return mx.optimizer.NAG(momentum=0.9, wd=wd)


def test_at_a_constant_rate_nesterov_s_momentum_is_the_same_and_after_a_drop_it_is_not():
    constant, drop = [0.1] * 6, [0.1] * 3 + [0.01] * 3
    assert steps(nag(), constant) == pytest.approx(torch_steps(constant), abs=1e-5)
    assert abs(steps(nag(), drop) - torch_steps(drop)) > 0.1


def test_the_weight_decay_of_mxnet_s_momentum_is_of_the_weight_that_has_just_changed():
    rates = [0.1] * 6
    assert abs(steps(nag(wd=0.5), rates) - torch_steps(rates, weight_decay=0.5)) > 0.01


def test_gluon_s_cifar100_gives_the_superclasses_unless_told_otherwise():
    parameters = inspect.signature(mx.gluon.data.vision.CIFAR100.__init__).parameters
    assert parameters["fine_label"].default is False


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "1.24.0", reason="NumPy still has its old names")
@pytest.mark.parametrize(("before", "works"), [("", False), ("import pydmobilenet; ", True)])
def test_mxnet_imports_on_current_versions_of_numpy_after_this_package_alone(before, works):
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", f"{before}import mxnet"], capture_output=True)
    assert (answer.returncode == 0) == works
