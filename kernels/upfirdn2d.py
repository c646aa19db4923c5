"""Up-sample, filter, down-sample: the resampling of StyleGAN2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import build


def binomial_kernel(factor: int = 1, taps: tuple[int, ...] = (1, 3, 3, 1)) -> Tensor:
    """The separable filter as a [k,k] tensor that sums to factor**2."""
    line = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(line, line)
    return kernel / kernel.sum() * factor**2


def upfirdn2d(
    x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), impl: str = "auto"
) -> Tensor:
    """x [B,C,H,W], kernel [k,k] -> [B,C,(H*up + sum(pad) - k)//down + 1, same for W].

    Zeros are put after every sample (up), `pad` zeros before and after each axis, then a convolution (the kernel is
    flipped, as in signal processing), then every `down`-th sample is kept. Raises ValueError for a wrong rank.
    """
    if x.ndim != 4 or kernel.ndim != 2:
        raise ValueError(f"expected x [B,C,H,W] and kernel [k,k], got {tuple(x.shape)} and {tuple(kernel.shape)}")
    build.choose("upfirdn2d", impl, x, kernel)
    return _reference(x, kernel, up, down, pad)


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
