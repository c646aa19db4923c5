"""The channel mask of the mapper's delta: |R delta_t| against the threshold, channel by channel (DeltaEdit 3.3)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pipeline.editors._edit_direction import ChannelMask, masked_delta
from pipeline.values import Direction, TextPair


def masked(delta_s: Tensor, relevance: Tensor, threshold: float, strength: float = 1.0) -> Tensor:
    """`masked_delta` for a mapper that returns delta_s [B,S], with R delta_t = relevance [S]."""
    size = len(delta_s)
    networks = SimpleNamespace(mapper=lambda s, condition: delta_s)
    source = SimpleNamespace(s=torch.zeros_like(delta_s), clip=torch.ones(size, 3))
    direction = Direction(TextPair("a", "b"), torch.ones(3), {"attainable": torch.ones(3), "relevance": relevance})
    params = ChannelMask(threshold=threshold, same_sign=False, top_share=None, max_sigma=None, delta_ridge=None)
    return masked_delta(networks, source, direction, params, strength)  # type: ignore[arg-type]


def test_a_channel_at_the_threshold_is_kept_and_one_just_below_is_zero() -> None:
    below = math.nextafter(0.5, 0)
    relevance = torch.tensor([0.5, -0.5, below, -below], dtype=torch.float64)
    assert masked(torch.ones(1, 4, dtype=torch.float64), relevance, 0.5, strength=3.0).tolist() == [[3, 3, 0, 0]]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_masked_channel_is_zero_even_where_its_delta_is_not_finite(value: float) -> None:
    assert masked(torch.tensor([[value, 1.0]]), torch.tensor([0.0, 1.0]), 0.5).tolist() == [[0, 1]]


def test_no_text_difference_moves_nothing() -> None:
    assert not masked(torch.randn(3, 6), torch.zeros(6), 1e-9).any()
