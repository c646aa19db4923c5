"""Upsampling, FIR filter and downsampling in one pass: the resampling of StyleGAN2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch


def binomial_kernel(factor: int = 1, taps: tuple[int, ...] = (1, 3, 3, 1)) -> Tensor:
    """Separable filter [k,k] with these taps along each axis, scaled to sum to factor**2."""
    line = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(line, line)
    return kernel / kernel.sum() * factor**2


def upfirdn2d(
    x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), impl: str = "auto"
) -> Tensor:
    """Resample x [B,C,H,W] to [B,C,(H*up + sum(pad) - k)//down + 1, the same for W] through a filter.

    kernel: filter taps [k,k]. up: insert up - 1 zeros after every sample. pad: zeros before and after each axis. Then a
    convolution (with the flipped kernel, as in signal processing). down: keep every down-th sample. Raises ValueError
    for a wrong rank or a kernel larger than the padded input, and when native code is required by name for what only
    the reference has: the gradient of the kernel, and upsampling and downsampling at once.
    """
    if x.ndim != 4 or kernel.ndim != 2:
        raise ValueError(f"expected x [B,C,H,W] and kernel [k,k], got {tuple(x.shape)} and {tuple(kernel.shape)}")
    if min(n * up + sum(pad) - k for n, k in zip(x.shape[2:], kernel.shape)) < 0:
        raise ValueError(f"a kernel {tuple(kernel.shape)} is larger than its padded input {tuple(x.shape)}")
    plain = kernel.requires_grad or (up > 1 and down > 1)
    if plain and impl not in ("auto", "ref"):
        raise ValueError("only impl='ref' has a gradient of the kernel, and upsamples and downsamples at once")
    chosen = dispatch.choose("upfirdn2d", "ref" if plain else impl, x, kernel)
    if chosen == "ref":
        return _reference(x, kernel, up, down, pad)
    return _native(x, kernel, up, down, *pad, *pad, True)


def _reference(x: Tensor, kernel: Tensor, up: int, down: int, pad: tuple[int, int]) -> Tensor:
    channels = x.shape[1]
    weight = kernel.flip(0, 1).to(x.dtype).expand(channels, 1, *kernel.shape)
    if up > 1:
        b, c, h, w = x.shape
        stuffed = x.new_zeros(b, c, h, up, w, up)
        stuffed[:, :, :, 0, :, 0] = x
        x = stuffed.view(b, c, h * up, w * up)
    x = F.pad(x, (*pad, *pad))
    return F.conv2d(x, weight, stride=down, groups=channels)


def _native(x: Tensor, kernel: Tensor, *numbers: int) -> Tensor:
    """Numbers: up, down, padding at the top, bottom, left and right, whether the kernel is flipped."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.ops.deltaspace.upfirdn2d(x, kernel.to(wide).contiguous(), *numbers)


def _fake(
    x: Tensor, kernel: Tensor, up: int, down: int, top: int, bottom: int, left: int, right: int, flip: bool
) -> Tensor:
    height = (x.shape[2] * up + top + bottom - kernel.shape[0]) // down + 1
    width = (x.shape[3] * up + left + right - kernel.shape[1]) // down + 1
    return dispatch.empty_resized(x, height, width)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, *ctx.numbers = inputs
    ctx.save_for_backward(kernel)
    ctx.sizes = tuple(zip(x.shape[2:], output.shape[2:], kernel.shape))


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Apply the transposed operation: up and down swapped, the kernel flipped the other way."""
    (kernel,) = ctx.saved_tensors
    up, down, top, _, left, _, flip = ctx.numbers
    pads = []
    for (size, result, taps), before in zip(ctx.sizes, (top, left)):
        pads += [taps - 1 - before, size * up - result * down + before - up + 1]
    return _native(grad, kernel, down, up, *pads, not flip), *[None] * 8


dispatch.register(
    "upfirdn2d(Tensor x, Tensor kernel, int up, int down, int top, int bottom, int left, int right, bool flip)"
    " -> Tensor",
    _fake,
    _backward,
    _setup,
)
