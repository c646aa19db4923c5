"""Exact box resampling, an area filter with fractional overlap: the resizing of CLIP's inputs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch

Numbers = tuple[float, ...]


def box_resample(
    x: Tensor, size: int, mean: Numbers | None = None, std: Numbers | None = None, impl: str = "auto"
) -> Tensor:
    """Resize x [B,C,H,W] to [B,C,size,size]; every output pixel is the mean of the input area below it.

    mean, std: C numbers each in the units of x, for (result - mean) / std; None: not normalised. Equal to "nearest x7,
    then average" of DeltaEdit's code for 256, 512 and 1024 -> 224 pixels, without its 7168 x 7168 intermediate.
    Adaptive pooling differs: it rounds the areas to whole pixels. Raises ValueError for a wrong rank, size or count.
    """
    if x.ndim != 4 or size < 1:
        raise ValueError(f"expected x [B,C,H,W] and a size >= 1, got {tuple(x.shape)} and {size}")
    if (mean is None) != (std is None) or (mean is not None and {len(mean), len(std or ())} != {x.shape[1]}):
        raise ValueError(f"expected a mean and a std for each of {x.shape[1]} channels, or neither")
    chosen = dispatch.choose("box_resample", impl, x)
    return (_reference if chosen == "ref" else _fused)(x, size, mean, std)


def _reference(x: Tensor, size: int, mean: Numbers | None, std: Numbers | None) -> Tensor:
    rows, columns = box_weights(x.shape[-2], size), box_weights(x.shape[-1], size)
    y = rows.to(x) @ x @ columns.to(x).T
    if mean is None or std is None:
        return y
    return (y - torch.tensor(mean).to(y)[:, None, None]) / torch.tensor(std).to(y)[:, None, None]


@lru_cache(maxsize=32)
def box_weights(source: int, target: int) -> Tensor:
    """Weights [target,source] of each source pixel in each output pixel, float32; rows sum to 1."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    left = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    return (overlap.clamp(min=0) * target / source).float()


def _fused(x: Tensor, size: int, mean: Numbers | None, std: Numbers | None) -> Tensor:
    if mean is None or std is None:
        return _native(x, size, size, None, None)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = torch.tensor([1 / deviation for deviation in std], dtype=wide, device=x.device)
    shift = torch.tensor([-average / deviation for average, deviation in zip(mean, std)], dtype=wide, device=x.device)
    return _native(x, size, size, scale, shift)


def _native(x: Tensor, height: int, width: int, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return torch.ops.deltaspace.box_resample(x, height, width, scale, shift)


def _fake(x: Tensor, height: int, width: int, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return dispatch.empty_resized(x, height, width)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, _, scale, _ = inputs
    ctx.save_for_backward(scale)
    ctx.source, ctx.target = x.shape[2:], output.shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    """Multiply by the transposed matrix: the reverse box filter, with rows that sum to target / source."""
    (scale,) = ctx.saved_tensors
    if scale is not None:
        grad = grad * scale.to(grad.dtype)[:, None, None]
    (height, width), (rows, columns) = ctx.source, ctx.target
    return _native(grad, height, width, None, None) * (rows * columns / (height * width)), None, None, None, None


dispatch.register(
    "box_resample(Tensor x, int height, int width, Tensor? scale, Tensor? shift) -> Tensor",
    _fake,
    _backward,
    _setup,
)
