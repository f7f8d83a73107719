"""PyTorch's pyramid: its maps, and the depthwise convolution's own gradients, against those of PyTorch."""

import pytest
import torch
from torch.nn import functional as F

from pydmobilenet.pytorch import pyramid
from pydmobilenet.pytorch.pyramid import DepthwiseConv2d, Pyramid, depthwise_conv2d

pytestmark = pytest.mark.pytorch

KERNELS = [(kernel, stride) for kernel in (3, 5, 7) for stride in (1, 2)]


@pytest.fixture
def own(monkeypatch):
    """The own gradients, also where they are not the faster ones; a list as long as they were computed often."""
    calls = []
    backward = pyramid._Depthwise.backward
    monkeypatch.setattr(pyramid, "_ours_is_faster", lambda x, size, stride: torch.is_grad_enabled())
    monkeypatch.setattr(
        pyramid._Depthwise, "backward", staticmethod(lambda *inputs: calls.append(1) or backward(*inputs))
    )
    return calls


def draw(kernel, size=(9, 12), images=2, channels=4, dtype=torch.float64):
    """Images and a kernel that want gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, *size, generator=generator, dtype=dtype)
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


def gradients(function, x, weight, stride):
    """The output, and the gradients of the sum of its squares."""
    y = function(x, weight, stride)
    return y, *torch.autograd.grad(y.to(x.dtype).square().sum(), (x, weight))


def by_pytorch(x, weight, stride):
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (7, 12), (1, 1), (2, 3)])
def test_the_gradients_are_pytorch_s(kernel, stride, size, own):
    x, weight = draw(kernel, size)
    for found, expected in zip(
        gradients(depthwise_conv2d, x, weight, stride), gradients(by_pytorch, x, weight, stride)
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.detach().abs().max()))
    assert own == [1]


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_the_gradients_are_those_of_finite_differences(kernel, stride, own):
    assert torch.autograd.gradcheck(depthwise_conv2d, (*draw(kernel, (5, 6), 2, 2), stride))
    assert own


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_a_gradient_that_is_not_wanted_is_not_computed(wanted, own, monkeypatch):
    x, weight = draw(5)
    inputs = {"x": x, "weight": weight}
    (expected,) = torch.autograd.grad(by_pytorch(x, weight, 1).square().sum(), inputs[wanted])
    (other,) = inputs.keys() - {wanted}
    inputs[other].requires_grad_(False)
    y = depthwise_conv2d(x, weight)
    monkeypatch.setattr(pyramid, {"x": "_kernel_gradient", "weight": "_convolve"}[wanted], None)  # not to be called
    y.square().sum().backward()
    torch.testing.assert_close(inputs[wanted].grad, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    assert inputs[other].grad is None


def test_without_gradients_none_are_prepared(own):
    with torch.no_grad():
        y = depthwise_conv2d(*draw(7))
    assert y.grad_fn is None


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_followed(kernel, stride, dtype):
    x, weight = draw(kernel, (16, 16), 8, dtype=torch.float32)
    exact = gradients(by_pytorch, x, weight, stride)
    with torch.autocast("cpu", dtype):
        found = gradients(depthwise_conv2d, x, weight, stride)
    assert [each.dtype for each in found] == [dtype, torch.float32, torch.float32]
    accuracy = torch.finfo(dtype).eps
    for each, expected in zip(found, exact):
        assert (each.float() - expected).norm() < 2 * accuracy * expected.norm()


def test_the_module_is_the_function():
    x, _ = draw(5, dtype=torch.float32)
    net = DepthwiseConv2d(4, 5, 2)
    assert net.bias is None
    torch.testing.assert_close(net(x), by_pytorch(x, net.weight, 2))


@pytest.mark.parametrize("join", ["add", "concat", "max"])
@pytest.mark.parametrize("kernels", [(3,), (3, 5, 7), (1, 9), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_pyramid_joins_the_maps_of_its_kernels(join, kernels, stride):
    x, _ = draw(3)
    net = Pyramid(4, kernels, stride, join).double()
    maps = [by_pytorch(x, net.get_parameter(f"conv{kernel}.weight"), stride) for kernel in kernels]
    joined = {"add": sum, "concat": lambda maps: torch.cat(maps, 1), "max": lambda maps: torch.stack(maps).amax(0)}
    expected = joined[join](maps)
    slope = torch.randn_like(expected)
    parameters = x, *net.parameters()
    found = torch.autograd.grad((net(x) * slope).sum(), parameters)
    for one, other in zip(found, torch.autograd.grad((expected * slope).sum(), parameters)):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(net(x), expected)


def test_a_sum_of_maps_is_one_convolution_unless_somebody_looks(monkeypatch):
    calls = []
    convolve = pyramid._convolve
    monkeypatch.setattr(pyramid, "_convolve", lambda *inputs: calls.append(1) or convolve(*inputs))
    net, (x, _) = Pyramid(4).double(), draw(3)
    expected = net(x)
    assert len(calls) == 1
    net.conv5.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(net(x), expected)
    assert len(calls) == 4


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_the_gradients_follow_pytorch_s_transforms(kernel, stride, own):
    x, weight = (each.detach() for each in draw(kernel))
    directions = torch.randn_like(x), torch.randn_like(weight)
    found, expected = (
        transformed(lambda x, weight, function=function: function(x, weight, stride), x, weight, directions)
        for function in (depthwise_conv2d, by_pytorch)
    )
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
    assert own


def transformed(function, x, weight, directions):
    """Derivatives in a direction, of gradients too; gradients image by image, and of two kernels at once."""
    gradients = torch.func.grad(lambda x, weight: function(x, weight).square().sum(), (0, 1))
    each_image = torch.func.vmap(lambda image, weight: gradients(image[None], weight), in_dims=(0, None))
    each_kernel = torch.func.vmap(gradients, in_dims=(None, 0))
    yield torch.func.jvp(function, (x, weight), directions)[1]
    yield from torch.func.jvp(gradients, (x, weight), directions)[1]
    yield from each_image(x, weight)
    yield from each_kernel(x, torch.stack([weight, 2 * weight]))
