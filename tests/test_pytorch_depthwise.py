"""The own gradients of depthwise convolutions are PyTorch's."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pydmobilenet.pytorch import depthwise
from pydmobilenet.pytorch.depthwise import DepthwiseConv2d, depthwise_conv2d

pytestmark = pytest.mark.pytorch

each_kernel = pytest.mark.parametrize("kernel", [3, 5, 7])
each_stride = pytest.mark.parametrize("stride", [1, 2])


@pytest.fixture
def always(monkeypatch):
    """Own gradients, wherever they are faster."""
    monkeypatch.setattr(depthwise, "_own_is_faster", lambda *_: True)


def tensors(kernel, size=(8, 8), dtype=torch.float64, channels=3):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, channels, *size))
    weight = rng.standard_normal((channels, 1, kernel, kernel)) / kernel
    return [torch.from_numpy(each).to(dtype).requires_grad_() for each in (x, weight)]


def gradients(function, x, weight, wanted=(True, True)):
    """The map, and the gradients of images and kernel that are wanted, of a function of the map that is not linear."""
    x, weight = (each.detach().requires_grad_(needed) for each, needed in zip((x, weight), wanted))
    y = function(x, weight)
    (y.float() if y.dtype == torch.bfloat16 else y).sin().sum().backward()
    return y.detach(), x.grad, weight.grad


def pytorch_s(stride):
    return lambda x, weight: F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


def own(stride):
    return lambda x, weight: depthwise_conv2d(x, weight, stride)


@each_kernel
@each_stride
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 8), (1, 1), (2, 3)])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_they_are_the_same(kernel, stride, size, wanted, always):
    arguments = tensors(kernel, size)
    for found, expected in zip(
        gradients(own(stride), *arguments, wanted), gradients(pytorch_s(stride), *arguments, wanted)
    ):
        assert (found is None) == (expected is None)
        if found is not None:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@each_kernel
@each_stride
def test_they_are_the_slopes_of_the_function(kernel, stride, always):
    assert torch.autograd.gradcheck(own(stride), tensors(kernel, (5, 4), channels=2))


@each_kernel
@each_stride
def test_they_are_the_same_in_channels_last(kernel, stride, always):
    x, weight = tensors(kernel)
    last = x.detach().contiguous(memory_format=torch.channels_last)
    for found, expected in zip(gradients(own(stride), last, weight), gradients(pytorch_s(stride), x, weight)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@each_kernel
@each_stride
def test_in_bfloat16_they_follow_and_the_kernel_s_is_in_float32(kernel, stride, always):
    x, weight = tensors(kernel, dtype=torch.float32)
    expected = gradients(pytorch_s(stride), x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(own(stride), x, weight)
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(found, expected):
        assert (one.float() - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize(
    ("kernel", "stride", "dtype", "expected"),
    [
        (3, 1, torch.float32, False),
        (5, 1, torch.float32, True),
        (7, 2, torch.float32, False),
        (3, 1, torch.bfloat16, False),
        (3, 2, torch.bfloat16, True),
        (7, 1, torch.bfloat16, True),
    ],
)
def test_they_are_taken_where_they_are_faster_and_wanted(kernel, stride, dtype, expected):
    conv = DepthwiseConv2d(4, kernel, stride).to(dtype)
    x = torch.zeros(1, 4, 8, 8, dtype=dtype)
    assert (type(conv(x).grad_fn).__name__ == "_DepthwiseBackward") == expected
    with torch.no_grad():
        assert conv(x).grad_fn is None
