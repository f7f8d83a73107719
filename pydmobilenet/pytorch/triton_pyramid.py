"""The pyramid in Triton: one launch for all maps, one for the input's gradient, one for the kernels' gradients.

Each pixel is read once for all kernels, as the largest window holds the others, and the maps are written side by side.
Imported only on request, since it needs Triton. It has been run by Triton's interpreter alone, and compiled for sm_90.

Shapes in the kernels, channels last: x (N, H, W, C), maps (N, HO, WO, MAPS * C), taps (sum of k * k, C). The maps are
of the sizes K, K - 2, K - 4; the taps begin with the largest kernel, the maps with the smallest. A program computes P
pixels of B channels. Sums have the type of the taps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton  # type: ignore[import]
import triton.language as tl  # type: ignore[import]
from torch import Tensor
from torch.nn import functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # by NumPy on a CPU, for tests
PIXELS, PIXELS_OF_TAPS, CHANNELS = 32, 16, 32  # of a program: with more, sm_90 spills registers
PARTIAL_SUMS = 64  # of the kernels' gradients at most, whatever the card: the same bits on each run


@triton.jit
def _pixels(first, total, H, W, P: tl.constexpr):
    """Return the numbers, images, rows and columns of P pixels of maps (H, W), and a mask."""
    pixel = first + tl.arange(0, P)
    rest = pixel % (H * W)
    return pixel, pixel // (H * W), rest // W, rest % W, pixel < total


@triton.jit
def _channels(C: tl.constexpr, B: tl.constexpr):
    c = tl.program_id(1) * B + tl.arange(0, B)
    return c[None, :], (c < C)[None, :]


@triton.jit
def _tap(taps, row, column: tl.constexpr, c, known, C: tl.constexpr, K: tl.constexpr, M: tl.constexpr):
    """Return the weights (1, B) of the kernel of size K - 2 M at a row and column of the window; 0 above and below."""
    size: tl.constexpr = K - 2 * M
    start: tl.constexpr = M * K * K - 4 * (M // 2) * (K - 1)  # the larger kernels' taps, for M = 0, 1, 2
    mask = known & (row >= M) & (row < K - M)
    return tl.load(taps + (start + (row - M) * size + column - M) * C + c, mask=mask, other=0.0)


@triton.jit
def _maps_kernel(
    x, taps, maps, H, W, HO, WO, total, C: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    pixel, n, i, j, inside = _pixels(tl.program_id(0) * P, total, HO, WO, P)
    c, known = _channels(C, B)
    dtype: tl.constexpr = taps.dtype.element_ty
    large, middle, small = tl.zeros((P, B), dtype), tl.zeros((P, B), dtype), tl.zeros((P, B), dtype)
    for row in range(K):  # not unrolled: with all loads at the top, the registers would not do
        y = i * S + row - K // 2
        for column in tl.static_range(K):
            z = j * S + column - K // 2
            mask = (inside & (y >= 0) & (y < H) & (z >= 0) & (z < W))[:, None] & known
            value = tl.load(x + ((n * H + y) * W + z)[:, None] * C + c, mask=mask, other=0.0).to(dtype)
            large += value * _tap(taps, row, column, c, known, C, K, 0)
            if MAPS > 1 and column >= 1 and column < K - 1:
                middle += value * _tap(taps, row, column, c, known, C, K, 1)
            if MAPS > 2 and column >= 2 and column < K - 2:
                small += value * _tap(taps, row, column, c, known, C, K, 2)
    target, mask = maps + pixel[:, None] * (MAPS * C) + c, inside[:, None] & known
    tl.store(target + (MAPS - 1) * C, large.to(maps.dtype.element_ty), mask=mask)
    if MAPS > 1:
        tl.store(target + (MAPS - 2) * C, middle.to(maps.dtype.element_ty), mask=mask)
    if MAPS > 2:
        tl.store(target, small.to(maps.dtype.element_ty), mask=mask)


@triton.jit
def _of_x_kernel(
    gradient, taps, of_x, H, W, HO, WO, total, C: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    pixel, n, i, j, inside = _pixels(tl.program_id(0) * P, total, H, W, P)
    c, known = _channels(C, B)
    dtype: tl.constexpr = taps.dtype.element_ty
    total_gradient = tl.zeros((P, B), dtype)
    for row in range(K):
        y = i + K // 2 - row  # S times the row of the maps with this pixel at this tap
        rows = inside & (y >= 0) & (y % S == 0) & (y // S < HO)
        for column in tl.static_range(K):
            z = j + K // 2 - column
            mask = (rows & (z >= 0) & (z % S == 0) & (z // S < WO))[:, None] & known
            source = gradient + ((n * HO + y // S) * WO + z // S)[:, None] * (MAPS * C) + c
            for M in tl.static_range(MAPS):
                if column >= M and column < K - M:
                    value = tl.load(source + (MAPS - 1 - M) * C, mask=mask, other=0.0).to(dtype)
                    total_gradient += value * _tap(taps, row, column, c, known, C, K, M)
    target = of_x + pixel[:, None] * C + c
    tl.store(target, total_gradient.to(of_x.dtype.element_ty), mask=inside[:, None] & known)


@triton.jit
def _of_taps_kernel(
    x, gradient, sums, H, W, HO, WO, total, C: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr, steps, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum over `steps` times P pixels for one row of one kernel: sums (programs, MAPS, K, K, C)."""
    margin, row = tl.program_id(2) // K, tl.program_id(2) % K
    c, known = _channels(C, B)
    column = tl.arange(0, COLUMNS)
    dtype: tl.constexpr = sums.dtype.element_ty
    total_gradient = tl.zeros((COLUMNS, P, B), dtype)
    if (row >= margin) & (row < K - margin):
        for step in range(steps):
            pixel, n, i, j, inside = _pixels((tl.program_id(0) * steps + step) * P, total, HO, WO, P)
            source = gradient + pixel[:, None] * (MAPS * C) + (MAPS - 1 - margin) * C + c
            of_map = tl.load(source, mask=inside[:, None] & known, other=0.0).to(dtype)
            y, z = i * S + row - K // 2, (j * S)[None, :] + column[:, None] - K // 2
            mask = (inside & (y >= 0) & (y < H))[None, :] & (z >= 0) & (z < W) & (column < K)[:, None]
            source = x + (((n * H + y) * W)[None, :] + z)[:, :, None] * C + c[None, :, :]
            value = tl.load(source, mask=mask[:, :, None] & known[None, :, :], other=0.0)
            total_gradient += value.to(dtype) * of_map[None, :, :]
    target = sums + ((tl.program_id(0) * MAPS + margin) * K + row) * (K * C) + column[:, None] * C + c
    tl.store(target, tl.sum(total_gradient, 1), mask=(column < K)[:, None] & known)


def _launch(
    kernel: Any, grid: tuple[int, int], pixels: int, total: int, x: Tensor, tensors: Sequence[Tensor], *sizes: int
) -> None:
    """Run a kernel over `total` pixels. `sizes`: of the largest kernel, maps, stride, and the kernel's own."""
    channels, height, width = x.shape[1:]
    size, maps, stride, *others = sizes
    block = min(CHANNELS, triton.next_power_of_2(channels))
    shape = height, width, -(-height // stride), -(-width // stride), total
    with torch.cuda.device_of(x):  # Triton launches on the current one
        kernel[grid[0], triton.cdiv(channels, block), grid[1]](
            *tensors, *shape, channels, size, maps, stride, pixels, block, *others, enable_fp_fusion=True
        )


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty_maps(x: Tensor, taps: Tensor, size: int, maps: int, stride: int) -> Tensor:
    images, channels, height, width = x.shape
    shape = images, maps * channels, -(-height // stride), -(-width // stride)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _maps(x: Tensor, taps: Tensor, size: int, maps: int, stride: int) -> Tensor:
    out = _empty_maps(x, taps, size, maps, stride)
    total = out[:, 0].numel()
    tensors = _nhwc(x), taps.contiguous(), out
    _launch(_maps_kernel, (triton.cdiv(total, PIXELS), 1), PIXELS, total, x, tensors, size, maps, stride)
    return out


def _of_x(gradient: Tensor, x: Tensor, taps: Tensor, size: int, maps: int, stride: int) -> Tensor:
    of_x = torch.empty_like(x, memory_format=torch.channels_last)
    total = x[:, 0].numel()
    tensors = _nhwc(gradient), taps.contiguous(), of_x
    _launch(_of_x_kernel, (triton.cdiv(total, PIXELS), 1), PIXELS, total, x, tensors, size, maps, stride)
    return of_x


def _of_taps(gradient: Tensor, x: Tensor, taps: Tensor, size: int, maps: int, stride: int) -> Tensor:
    """Add partial sums in a fixed order: the same bits on each run."""
    total, pixels = gradient[:, 0].numel(), PIXELS_OF_TAPS
    steps = max(1, triton.cdiv(total, PARTIAL_SUMS * pixels))
    programs = triton.cdiv(total, steps * pixels)
    sums = taps.new_empty(programs, maps, size, size, x.shape[1])
    tensors, columns = (_nhwc(x), _nhwc(gradient), sums), triton.next_power_of_2(size)
    grid = programs, maps * size
    _launch(_of_taps_kernel, grid, pixels, total, x, tensors, size, maps, stride, steps, columns)
    windows = enumerate(sums.sum(0))
    return torch.cat([window[m : size - m, m : size - m].flatten(0, 1) for m, window in windows])


SIZES = "int size, int maps, int stride"
_maps_op = torch.library.custom_op(
    "pydmobilenet::pyramid", _maps, mutates_args=(), schema=f"(Tensor x, Tensor taps, {SIZES}) -> Tensor"
)
_of_x_op, _of_taps_op = (
    torch.library.custom_op(
        f"pydmobilenet::pyramid{function.__name__}",
        function,
        mutates_args=(),
        schema=f"(Tensor gradient, Tensor x, Tensor taps, {SIZES}) -> Tensor",
    )
    for function in (_of_x, _of_taps)
)
_maps_op.register_fake(_empty_maps)
_of_x_op.register_fake(lambda gradient, x, *_: torch.empty_like(x, memory_format=torch.channels_last))
_of_taps_op.register_fake(lambda gradient, x, taps, *_: torch.empty_like(taps, memory_format=torch.contiguous_format))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, taps, *ctx.sizes = inputs
    ctx.save_for_backward(x, taps)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    arguments = gradient, *ctx.saved_tensors, *ctx.sizes
    of_x, of_taps, *_ = ctx.needs_input_grad
    return _of_x_op(*arguments) if of_x else None, _of_taps_op(*arguments) if of_taps else None, None, None, None


_maps_op.register_autograd(_backward, setup_context=_setup_context)


def fits(x: Tensor, maps: int) -> bool:
    """Return whether the kernels can compute the maps of `x`: on a GPU, or by the interpreter, with 32-bit indices."""
    return (x.is_cuda or INTERPRETED) and maps * x.numel() < 2**31


def convolve(x: Tensor, weights: Sequence[Tensor], stride: int = 1) -> Tensor:
    """Convolve `x` (N, C, H, W) depthwise by each of the `weights` (C, 1, k, k): maps (N, C * len(weights), ...).

    The sizes are k, k + 2, k + 4, or fewer.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    taps = torch.cat([weight.flatten(1) for weight in reversed(weights)], 1).t()
    taps = taps.to(torch.promote_types(x.dtype, torch.float32))
    return _maps_op(x, taps, weights[-1].shape[-1], len(weights), stride)


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Compute a small pyramid and its gradients; say why they fail or differ from ``conv2d`` on a CPU, or nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 9, 12, generator=generator).to(dtype)
    weights = [torch.randn(24, 1, size, size, generator=generator) for size in (3, 5, 7)]
    try:
        found = _with_gradients(convolve, *(tensor.to(device) for tensor in (x, *weights)))
    except Exception as error:  # no compiler, no headers, a card that is too old, and what else Triton throws
        return f"Triton has failed: {' '.join(str(error).split())[:200] or type(error).__name__}"
    expected = _with_gradients(_by_conv2d, *(tensor.double() for tensor in (x, *weights)))
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    right = all((a.cpu() - b).abs().max() <= tolerance * b.abs().max() for a, b in zip(found, expected))
    return "" if right else "Triton's results are wrong here"


def _by_conv2d(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1]) for weight in weights], 1)


def _with_gradients(function: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> list[Tensor]:
    """Return maps, and the gradients of their weighted sum."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
    maps = function(inputs[0], inputs[1:])
    ramp = torch.arange(maps.numel(), device=x.device).reshape(maps.shape) % 7 - 3
    return [maps.detach(), *torch.autograd.grad(maps, inputs, ramp.to(maps.dtype))]
