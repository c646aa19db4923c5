"""StyleCLIP global directions (Patashnik et al. 2021, section 6): one direction per text, the same for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.editors._edit_direction import clip_direction, global_direction
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "baseline"
NEEDS = ("generator", "clip", "relevance", "s_stats")


@dataclass(frozen=True)
class Params:
    """strength: factor on the direction, in units of alpha. alpha: sigmas that the most relevant channel moves.
    beta: channels less relevant to the unit text direction stay."""

    strength: float
    alpha: float
    beta: float


@dataclass(frozen=True)
class GlobalDirection:
    backbones: Backbones
    params: Params

    @torch.no_grad()
    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction = clip_direction(self.backbones, condition)
        delta_s = global_direction(self.backbones, direction, self.params.beta)
        return Direction(condition, direction.delta, {"delta_s": delta_s})

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        s = source.s + strength * self.params.alpha * direction.data["delta_s"]
        return Edited(self.backbones.generator.synthesis(s, source.w_plus, detail=source.detail), s=s)


def build(backbones: Backbones, params: Params) -> GlobalDirection:
    return GlobalDirection(backbones, params)
