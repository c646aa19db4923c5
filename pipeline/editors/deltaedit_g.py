"""DeltaEdit-G: the mapper's delta_s, masked by relevance, added to s and decoded by StyleGAN2 (section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.editors._edit_direction import check_mask, clip_direction, held, mapped
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "latent"
NEEDS = ("generator", "clip", "mapper", "relevance", "s_stats")


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_s. The rest: see `_deltas.ChannelMask`."""

    strength: float
    threshold: float
    agree: bool = False
    share: float | None = None
    within: float | None = None
    ridge: float | None = None

    def __post_init__(self) -> None:
        check_mask(self)


@dataclass(frozen=True)
class DeltaEditG:
    backbones: Backbones
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        s = source.s + mapped(self.backbones, source, direction, self.params, strength)
        s = held(self.backbones, source, s, self.params.within)
        return Edited(self.backbones.generator.synthesis(s, source.w_plus, detail=source.detail), s=s)


def build(backbones: Backbones, params: Params) -> DeltaEditG:
    return DeltaEditG(backbones, params)
