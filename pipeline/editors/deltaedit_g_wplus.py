"""DeltaEdit-G in W+: a mapper of the same recipe moves the rows of w_plus (the ablation of spaces, table I).

Nothing is masked: compare it with `deltaedit_g_unmasked`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.editors._edit_direction import clip_direction, moved_w_plus
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

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
        generator = self.backbones.generator
        w_plus = moved_w_plus(self.backbones, source, direction, strength)
        s = generator.styles(w_plus)
        return Edited(generator.synthesis(s, w_plus, detail=source.detail), s=s)


def build(backbones: Backbones, params: Params) -> InWPlus:
    return InWPlus(backbones)
