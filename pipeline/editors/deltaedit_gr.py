"""DeltaEdit-GR, ours: what the mapper says of this person and what was measured for every channel, where both agree.

A channel moves by the geometric mean of the mapper's delta_s and StyleCLIP's global direction, and only where the two
have one sign: the mapper knows the person but moves much that the text did not ask for; the direction knows the text
but not the person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.editors._edit_direction import check_mask, clip_direction, global_direction, held, mapped
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "latent"
NEEDS = ("generator", "clip", "mapper", "relevance", "s_stats")


@dataclass(frozen=True)
class Params:
    """strength: factor on the move. alpha: sigmas that the global direction moves its most relevant channel.
    threshold, share, within, ridge: see `_deltas.ChannelMask`."""

    strength: float
    alpha: float
    threshold: float
    share: float | None = None
    within: float | None = None
    ridge: float | None = None

    def __post_init__(self) -> None:
        check_mask(self)

    @property
    def agree(self) -> bool:
        """Always: channels move where mapper and measured effect agree."""
        return True


@dataclass(frozen=True)
class DeltaEditGR:
    backbones: Backbones
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction = clip_direction(self.backbones, condition)
        measured = self.params.alpha * global_direction(self.backbones, direction, beta=0.0)
        return Direction(condition, direction.delta, {**direction.data, "delta_s": measured})

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        said = mapped(self.backbones, source, direction, self.params, 1.0)
        move = said.sign() * (said.abs() * direction.data["delta_s"].abs()).sqrt()
        s = held(self.backbones, source, source.s + strength * move, self.params.within)
        return Edited(self.backbones.generator.synthesis(s, source.w_plus, detail=source.detail), s=s)


def build(backbones: Backbones, params: Params) -> DeltaEditGR:
    return DeltaEditGR(backbones, params)
