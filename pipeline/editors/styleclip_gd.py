"""StyleCLIP's global directions (Patashnik et al. 2021, section 6): one direction per text for all images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pipeline.editors._edit_direction import NetworkEditor, global_direction
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

KIND = "baseline"
NEEDS = ("generator", "clip", "relevance", "s_stats")


@dataclass(frozen=True)
class Params:
    """strength: factor on the direction, in units of alpha. alpha: standard deviations that the most relevant channel
    moves. beta: channels less relevant to the unit text direction stay."""

    strength: float
    alpha: float
    beta: float


class GlobalDirection(NetworkEditor):
    """StyleCLIP-GD."""

    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction = super().fit(condition)
        return replace(direction, data={"delta_s": global_direction(self.networks, direction, self.params.beta)})

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source = prepared.source
        s = source.s + strength * self.params.alpha * direction.data["delta_s"]
        return Edited(source.decode(self.networks.generator, s), s=s)


build = GlobalDirection
