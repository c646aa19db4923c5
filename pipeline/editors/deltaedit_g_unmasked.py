"""DeltaEdit-G without its relevance mask: the whole delta_s is added to s (ablation of section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.editors._edit_direction import NetworkEditor, mapper_delta
from pipeline.values import Direction, Edited, Prepared

KIND = "latent"
NEEDS = ("generator", "clip", "mapper")


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_s"""

    strength: float


class UnmaskedDeltaEditG(NetworkEditor):
    """DeltaEdit-G without a mask."""

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source = prepared.source
        s = source.s + strength * mapper_delta(self.networks, source, direction.delta)
        return Edited(source.decode(self.networks.generator, s), s=s)


build = UnmaskedDeltaEditG
