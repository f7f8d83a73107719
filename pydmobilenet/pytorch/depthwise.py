"""Depthwise convolutions whose gradients a CPU computes by forward convolutions.

oneDNN has a fast gradient of a depthwise kernel only for kernels up to 3x3, and in bfloat16 only for a stride of 1.
That of a 7x7 kernel costs PyTorch 15 to 25 times the forward pass. But both gradients are convolutions themselves:

- that of the input is a depthwise convolution of the output's gradient with the kernel turned by 180 degrees; for a
  stride of 2, after zeros have been put between the gradient's pixels;
- that of the kernel is a depthwise convolution of the input with the output's gradient as its kernel, image by image
  and channel by channel, summed over the images.

Both are exact but for rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class DepthwiseConv2d(nn.Conv2d):
    """One square filter a channel: (N, C, H, W) to (N, C, H / stride, W / stride)."""

    def __init__(self, channels: int, kernel: int, stride: int = 1):
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise_conv2d(x, self.weight, self.stride[0])


def depthwise_conv2d(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """`x` (N, C, H, W) by a square `weight` (C, 1, k, k), a channel at a time, zeros around it.

    The gradients are those of ``torch.nn.functional.conv2d``, computed as the module says where that is faster.
    """
    if torch.is_autocast_enabled("cpu") and x.device.type == "cpu":
        x = x.to(torch.get_autocast_dtype("cpu"))
    if _own_is_faster(x, weight.shape[-1], stride):
        return _Depthwise.apply(x, weight, stride)
    return _convolve(x, weight, stride)


def _own_is_faster(x: torch.Tensor, size: int, stride: int) -> bool:
    """Whether the gradients are wanted and PyTorch's own are slower.

    Milliseconds of both gradients together, own and PyTorch's, for 128 images of 16 channels, 32x32, on one thread (AMD
    EPYC with AVX-512, PyTorch 2.13):

                float32                      bfloat16
                stride 1       stride 2      stride 1      stride 2
        3x3      8.3   3.3      8.4   1.8    4.4   1.4     4.8  20.4
        5x5     10.9  15.2      9.3   5.3    5.7  23.4     5.8  42.6
        7x7     11.5  20.7     10.1   8.4    7.3  25.4     6.5  57.3
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.dtype in (torch.bfloat16, torch.float16):
        return size > 3 or stride > 1
    return size > 3 and stride == 1


class _Depthwise(torch.autograd.Function):
    """The weight may be of a higher precision than the images, and so is its gradient then."""

    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _convolve(x, weight.to(x.dtype), stride)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        if ctx.stride > 1:  # the gradient of the map that a stride of 1 would have made
            dilated = torch.zeros_like(x)
            dilated[:, :, :: ctx.stride, :: ctx.stride] = gradient
            gradient = dilated
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _convolve(gradient, weight.to(x.dtype).flip(2, 3))
        if ctx.needs_input_grad[1]:
            of_weight = _kernel_gradient(x, gradient, weight)
        return of_x, of_weight, None


def _convolve(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


def _kernel_gradient(x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of a kernel (C, 1, k, k), from that of its map at stride 1, (N, C, H, W)."""
    images, channels, height, width = x.shape
    size = weight.shape[-1]
    maps = x.reshape(1, images * channels, height, width)
    kernels = gradient.reshape(images * channels, 1, height, width)
    products = F.conv2d(maps, kernels, padding=size // 2, groups=images * channels)
    return products.view(images, channels, 1, size, size).sum(0, dtype=weight.dtype)
