"""Relevance accumulation: the mean of unit differences of unit embeddings, a block of pictures at a time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels import build

EPS = 1e-6  # a shorter difference of unit vectors is rounding, and adds nothing


def relevance_accumulate(mean: Tensor, before: Tensor, after: Tensor, count: int, impl: str = "auto") -> Tensor:
    """mean [K,E] of `count` pictures, embeddings before and after [N,K,E] of N more -> the mean of all of them [K,E].

    What is averaged is unit(unit(after) - unit(before)) (StyleCLIP global directions), zero where that difference is
    shorter than 1e-6. Raises ValueError when the shapes do not fit or count is negative.
    """
    if before.shape != after.shape or before.shape[1:] != mean.shape or count < 0:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (mean, before, after))
        raise ValueError(f"mean, before and after do not fit: {shapes}, after {count} pictures")
    build.choose("relevance_accumulate", impl, mean, before, after)
    return _reference(mean, before, after, count)


def _reference(mean: Tensor, before: Tensor, after: Tensor, count: int) -> Tensor:
    step = F.normalize(after, dim=-1) - F.normalize(before, dim=-1)
    step = step * (step.norm(dim=-1, keepdim=True) >= EPS)
    return (mean * count + F.normalize(step, dim=-1).sum(dim=0)) / max(1, count + len(step))
