"""Relevance masking at edit time: zero the style channels that the text does not concern."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import build


def relevance_mask(
    delta_s: Tensor,
    relevance: Tensor,
    delta_t: Tensor,
    threshold: float,
    strength: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """delta_s [B,S], relevance [S,E], delta_t [E] -> strength * delta_s, zero where |relevance . delta_t| < threshold.

    DeltaEdit section 3.3: delta_t is NOT normalised here, so that a text equal to its source changes nothing.
    """
    if relevance.shape != (delta_s.shape[-1], delta_t.shape[-1]):
        shapes = [tuple(tensor.shape) for tensor in (relevance, delta_s, delta_t)]
        raise ValueError(f"relevance {shapes[0]} does not fit delta_s {shapes[1]} and delta_t {shapes[2]}")
    build.choose("relevance_mask", impl, delta_s, relevance, delta_t)
    return _reference(delta_s, relevance, delta_t, threshold, strength)


def _reference(delta_s: Tensor, relevance: Tensor, delta_t: Tensor, threshold: float, strength: float) -> Tensor:
    keep = (relevance @ delta_t).abs() >= threshold
    return torch.where(keep, strength * delta_s, torch.zeros_like(delta_s))
