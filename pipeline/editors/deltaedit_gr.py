"""DeltaEdit-GR, ours: every channel moves by the geometric mean of the mapper's delta_s and StyleCLIP's direction.

Only where the two have one sign: the mapper depends on the image but moves channels that the text does not concern; the
global direction depends on the text alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pipeline.editors._edit_direction import (
    ChannelMask,
    NetworkEditor,
    clamped,
    global_direction,
    masked_delta,
    masked_direction,
)
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

KIND = "latent"
NEEDS = ("generator", "clip", "mapper", "relevance", "s_stats")


@dataclass(frozen=True)
class Params(ChannelMask):
    """strength: factor on the change. alpha: standard deviations that the global direction moves its first channel by.

    same_sign is always true.
    """

    strength: float
    alpha: float


class DeltaEditGR(NetworkEditor):
    """DeltaEdit-G and global directions, combined."""

    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction = masked_direction(self.networks, super().fit(condition), self.params)
        measured = self.params.alpha * global_direction(self.networks, direction, beta=0.0)
        return replace(direction, data=direction.data | {"delta_s": measured})

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source, params = prepared.source, replace(self.params, same_sign=True)
        delta_s = masked_delta(self.networks, source, direction, params, 1.0)
        move = delta_s.sign() * (delta_s.abs() * direction.data["delta_s"].abs()).sqrt()
        s = clamped(self.networks, source, source.s + strength * move, params.max_sigma)
        return Edited(source.decode(self.networks.generator, s), s=s)


build = DeltaEditGR
