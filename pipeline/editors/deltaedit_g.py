"""DeltaEdit-G: the mapper's delta_s, masked by relevance, is added to s and decoded by StyleGAN2 (section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.editors._edit_direction import ChannelMask, NetworkEditor, clamped, masked_delta, masked_direction
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

KIND = "latent"
NEEDS = ("generator", "clip", "mapper", "relevance", "s_stats")


@dataclass(frozen=True)
class Params(ChannelMask):
    """strength: factor on delta_s"""

    strength: float


class DeltaEditG(NetworkEditor):
    """DeltaEdit with a StyleGAN2 generator."""

    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return masked_direction(self.networks, super().fit(condition), self.params)

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source = prepared.source
        s = source.s + masked_delta(self.networks, source, direction, self.params, strength)
        s = clamped(self.networks, source, s, self.params.max_sigma)
        return Edited(source.decode(self.networks.generator, s), s=s)


build = DeltaEditG
