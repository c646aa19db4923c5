"""DeltaEdit-G: the mapper's delta_s, masked by relevance, added to s and decoded by StyleGAN2 (section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.editors._deltas import clip_direction, mapped
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.backbones import Backbones

KIND = "latent"
NEEDS = ("generator", "clip", "mapper", "relevance")


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_s. threshold: channels with |relevance . delta_t| below it stay. agree: so do those
    that delta_s moves against their own effect (not in the paper)."""

    strength: float
    threshold: float
    agree: bool = False


@dataclass(frozen=True)
class DeltaEditG:
    backbones: Backbones
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        params = self.params
        s = source.s + mapped(self.backbones, source, direction, params.threshold, strength, params.agree)
        return Edited(self.backbones.generator.synthesis(s, source.w_plus), s=s)


def build(backbones: Backbones, params: Params) -> DeltaEditG:
    return DeltaEditG(backbones, params)
