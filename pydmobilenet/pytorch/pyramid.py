"""The pyramid of depthwise convolutions, whose gradients a CPU computes by forward convolutions.

oneDNN's depthwise gradients are fast only up to 3x3, in bfloat16 only for a stride of 1; PyTorch's for 7x7 take 15 to
25 times the forward pass. But both gradients are depthwise convolutions, exact but for rounding:

- of the input: the output's gradient by the kernel turned by 180 degrees; for a stride of 2, zeros are put between the
  gradient's pixels first;
- of the kernel: the input by the output's gradient, per image and channel, summed over the images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UnusableError

JOINS: dict[str, Callable[..., Tensor]] = {
    "add": lambda *maps: reduce(torch.add, maps),
    "concat": lambda *maps: torch.cat(maps, dim=1),
    "max": lambda *maps: reduce(torch.maximum, maps),
}


class DepthwiseConv2d(nn.Conv2d):
    """One square filter a channel: (N, C, H, W) to (N, C, H / stride, W / stride)."""

    def __init__(self, channels: int, kernel: int, stride: int = 1):
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.stride[0])

    @property
    def is_plain(self) -> bool:
        """True without hooks and parametrisations."""
        hooks = self._forward_hooks, self._forward_pre_hooks, self._backward_hooks, self._backward_pre_hooks
        return type(self) is DepthwiseConv2d and not any(hooks)


class Pyramid(nn.Module):
    """Depthwise convolutions of one input by several kernels, joined: the paper's layer."""

    uses_triton = False

    def __init__(self, channels: int, kernels: tuple[int, ...] = (3, 5, 7), stride: int = 1, join: str = "add"):
        super().__init__()
        self.stride, self.join = stride, join
        for kernel in kernels:
            self.add_module(f"conv{kernel}", DepthwiseConv2d(channels, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        convolutions: list[Any] = list(self.children())
        are_plain = all(getattr(convolution, "is_plain", False) for convolution in convolutions)
        if are_plain and self.uses_triton:
            from . import triton_pyramid

            weights = [self.sum_of_kernels()] if self.join == "add" else [conv.weight for conv in convolutions]
            if triton_pyramid.fits(x, len(weights)):
                maps = triton_pyramid.convolve(x, weights, self.stride)
                return JOINS["max"](*maps.chunk(len(weights), 1)) if self.join == "max" else maps
        if are_plain and self.join == "add":
            return depthwise_conv2d(x, self.sum_of_kernels(), self.stride)
        return JOINS[self.join](*(convolution(x) for convolution in convolutions))

    def sum_of_kernels(self) -> Tensor:
        """Return the one kernel equal to all: the sum of maps is linear in the kernels, and faster."""
        convolutions: list[Any] = list(self.children())
        sizes = [convolution.kernel_size[0] for convolution in convolutions]  # fx does not trace the weights' shapes
        margins = [(max(sizes) - size) // 2 for size in sizes]
        return reduce(torch.add, (F.pad(conv.weight, [margin] * 4) for conv, margin in zip(convolutions, margins)))

    @property
    def fits_triton(self) -> bool:
        """True for up to three kernels of sizes k, k + 2, k + 4, or if they are merged."""
        convolutions: list[Any] = list(self.children())
        sizes = [convolution.kernel_size[0] for convolution in convolutions]
        return self.join == "add" or (
            len(sizes) <= 3 and sizes == [sizes[0] + 2 * index for index in range(len(sizes))]
        )

    def extra_repr(self) -> str:
        return self.join


def use_triton(net: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Compute the pyramids by Triton's kernels on a GPU, by ``conv2d`` elsewhere.

    Raises UnusableError without pyramids or Triton, on a CPU, and if a trial fails.
    """
    pyramids = [module for module in net.modules() if isinstance(module, Pyramid) and module.fits_triton]
    if not pyramids:
        problem = "the network trains no pyramid with kernels such as 3, 5, 7"
    elif device.type != "cuda":
        problem = f"Triton needs a GPU, not device {device.type!r}"
    else:
        try:
            from . import triton_pyramid

            problem = triton_pyramid.obstacle(device, dtype)
        except ImportError as error:
            problem = f"Triton cannot be imported ({error}): pip install triton"
    if problem:
        raise UnusableError(f"--pyramid triton: {problem}; nearest: --pyramid conv2d")
    for pyramid in pyramids:
        pyramid.uses_triton = True


@torch.fx.wrap  # a leaf for tracing: it depends on the device and the type
def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve `x` (N, C, H, W) depthwise by a square `weight` (C, 1, k, k), zero-padded, with the faster gradients."""
    if torch.is_autocast_enabled("cpu") and x.device.type == "cpu":
        x = x.to(torch.get_autocast_dtype("cpu"))
    if _ours_is_faster(x, weight.shape[-1], stride):
        return _Depthwise.apply(x, weight, stride)
    return _convolve(x, weight, stride)


def _ours_is_faster(x: Tensor, size: int, stride: int) -> bool:
    """Return whether gradients are needed and PyTorch's are slower.

    Milliseconds of both gradients, ours and PyTorch's, for 128 images of 16 channels, 32x32, on one thread (AMD EPYC
    with AVX-512, PyTorch 2.13):

                float32                      bfloat16
                stride 1       stride 2      stride 1      stride 2
        3x3      8.3   3.3      8.4   1.8    4.4   1.4     4.8  20.4
        5x5     10.9  15.2      9.3   5.3    5.7  23.4     5.8  42.6
        7x7     11.5  20.7     10.1   8.4    7.3  25.4     6.5  57.3
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if x.dtype in (torch.bfloat16, torch.float16):
        return size > 3 or stride > 1
    return size > 3 and stride == 1


class _Depthwise(torch.autograd.Function):
    """The weight and its gradient may have a higher precision than the images."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, stride):
        return _convolve(x, weight.to(x.dtype), stride)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.stride = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx, of_x, of_weight, _):
        x, weight = ctx.saved_tensors
        return _convolve(of_x, weight.to(x.dtype), ctx.stride) + _convolve(x, of_weight.to(x.dtype), ctx.stride)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        if ctx.stride > 1:  # the gradient of a map at stride 1
            dilated = torch.zeros_like(x) + gradient.new_zeros(())  # vmap may be over either one
            dilated[:, :, :: ctx.stride, :: ctx.stride] = gradient
            gradient = dilated
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _convolve(gradient, weight.to(x.dtype).flip(2, 3))
        if ctx.needs_input_grad[1]:
            of_weight = _kernel_gradient(x, gradient, weight)
        return of_x, of_weight, None


def _convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=weight.shape[0])


def _kernel_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a kernel (C, 1, k, k) from its map's at stride 1, (N, C, H, W)."""
    images, channels, height, width = x.shape
    size = weight.shape[-1]
    maps = x.reshape(1, images * channels, height, width)
    kernels = gradient.reshape(images * channels, 1, height, width)
    products = F.conv2d(maps, kernels, padding=size // 2, groups=images * channels)
    return products.view(images, channels, 1, size, size).sum(0, dtype=weight.dtype)
