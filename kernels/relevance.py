"""Relevance masking at edit time: zero the style channels that the text does not concern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import build


def relevance_mask(
    delta_s: Tensor,
    relevance: Tensor,
    delta_t: Tensor,
    threshold: float | None = None,
    strength: float = 1.0,
    impl: str = "auto",
    *,
    top: int | None = None,
) -> Tensor:
    """delta_s [B,S], relevance [S,E], delta_t [E] -> strength * delta_s, zero where |relevance . delta_t| < threshold.

    DeltaEdit section 3.3: delta_t is NOT normalised here, so that a text equal to its source changes nothing. `top`,
    instead of a threshold, keeps that many channels, those with the largest products. Raises ValueError for shapes
    that do not fit, and unless one of `threshold` and `top` is given.
    """
    if relevance.shape != (delta_s.shape[-1], delta_t.shape[-1]):
        shapes = [tuple(tensor.shape) for tensor in (relevance, delta_s, delta_t)]
        raise ValueError(f"relevance {shapes[0]} does not fit delta_s {shapes[1]} and delta_t {shapes[2]}")
    if (threshold is None) == (top is None) or (top is not None and not 0 <= top <= len(relevance)):
        raise ValueError(f"expected a threshold or a top of 0 to {len(relevance)}, got {threshold} and {top}")
    if threshold is None and impl in ("auto", "ref"):
        build.choose("relevance_mask", "ref", delta_s, relevance, delta_t)  # sorting needs all products at once
        return _masked(delta_s, _among_top(relevance @ delta_t, top or 0), strength)
    if threshold is None:
        raise build.KernelUnavailable(f"no {impl} version of relevance_mask takes the top channels: use a threshold")
    chosen = build.choose("relevance_mask", impl, delta_s, relevance, delta_t)
    return (_reference if chosen == "ref" else _native)(delta_s, relevance, delta_t, threshold, strength)


def _reference(delta_s: Tensor, relevance: Tensor, delta_t: Tensor, threshold: float, strength: float) -> Tensor:
    return _masked(delta_s, (relevance @ delta_t).abs() >= threshold, strength)


def _masked(delta_s: Tensor, keep: Tensor, strength: float) -> Tensor:
    return torch.where(keep, strength * delta_s, torch.zeros_like(delta_s))


def _among_top(products: Tensor, top: int) -> Tensor:
    keep = torch.zeros_like(products, dtype=torch.bool)
    keep[products.abs().topk(top).indices] = True
    return keep


def _native(delta_s: Tensor, relevance: Tensor, delta_t: Tensor, threshold: float, strength: float) -> Tensor:
    wide = torch.float64 if delta_s.dtype == torch.float64 else torch.float32
    sides = (relevance.to(wide).contiguous(), delta_t.to(wide).contiguous())
    return torch.ops.deltaspace.relevance_mask(delta_s, *sides, threshold, strength)


def _fake(delta_s: Tensor, relevance: Tensor, delta_t: Tensor, threshold: float, strength: float) -> Tensor:
    return torch.empty_like(delta_s, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.numbers = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    return _native(grad, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


build.register(
    "relevance_mask(Tensor delta_s, Tensor relevance, Tensor delta_t, float threshold, float strength) -> Tensor",
    _fake,
    _backward,
    _setup,
)
