"""DeltaEdit-G in W+: a mapper of the same recipe moves the rows of w_plus (the ablation of spaces, table I).

Nothing is masked, since the relevance matrix speaks of style channels: compare it with `deltaedit_g_unmasked`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pipeline.editors._deltas import clip_direction
from pipeline.mapper import condition as told
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.backbones import Backbones

KIND = "latent"
NEEDS = ("generator", "clip", "mapper_wplus")


@dataclass(frozen=True)
class Params:
    """strength: factor on the change of w_plus."""

    strength: float


@dataclass(frozen=True)
class InWPlus:
    backbones: Backbones

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        generator, delta = self.backbones.generator, F.normalize(direction.delta, dim=-1, eps=1e-5)
        change = self.backbones.mapper_wplus(source.w_plus.flatten(1), told(source.clip, delta))
        w_plus = source.w_plus + strength * change.unflatten(1, source.w_plus.shape[1:])
        s = generator.styles(w_plus)
        return Edited(generator.synthesis(s, w_plus), s=s)


def build(backbones: Backbones, params: Params) -> InWPlus:
    return InWPlus(backbones)
