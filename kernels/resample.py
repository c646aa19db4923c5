"""Exact box resampling: the area filter with fractional overlap that CLIP inputs are made with."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kernels import build


def box_resample(x: Tensor, size: int, impl: str = "auto") -> Tensor:
    """x [B,C,H,W] -> [B,C,size,size]: every output pixel is the mean of the input area below it.

    Equal to "nearest x7, then average" of the published code for 256, 512 and 1024 -> 224, without the 7168 x 7168
    intermediate; not the same as adaptive pooling, which rounds the areas to whole pixels.
    """
    if x.ndim != 4 or size < 1:
        raise ValueError(f"expected x [B,C,H,W] and a size >= 1, got {tuple(x.shape)} and {size}")
    build.choose("box_resample", impl, x)
    return _reference(x, size)


def _reference(x: Tensor, size: int) -> Tensor:
    rows, columns = box_weights(x.shape[-2], size), box_weights(x.shape[-1], size)
    return rows.to(x) @ x @ columns.to(x).T


@lru_cache(maxsize=32)
def box_weights(source: int, target: int) -> Tensor:
    """[target, source] float32 rows that sum to 1: the share of each source pixel in each output pixel."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    left = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    return (overlap.clamp(min=0) * target / source).float()
