"""DeltaEdit-G without its relevance mask: all that the mapper answers is added to s (the ablation of section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.editors._edit_direction import answered, clip_direction
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "latent"
NEEDS = ("generator", "clip", "mapper")


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_s."""

    strength: float


@dataclass(frozen=True)
class Unmasked:
    backbones: Backbones

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        s = source.s + strength * answered(self.backbones, source, direction.delta)
        return Edited(self.backbones.generator.synthesis(s, source.w_plus, detail=source.detail), s=s)


def build(backbones: Backbones, params: Params) -> Unmasked:
    return Unmasked(backbones)
