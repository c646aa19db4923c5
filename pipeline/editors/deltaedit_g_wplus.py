"""DeltaEdit-G in W+: a mapper of the same recipe moves the rows of w_plus (ablation of spaces, table I).

No mask: compare it with `deltaedit_g_unmasked`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.editors._edit_direction import NetworkEditor, moved_w_plus
from pipeline.values import Direction, Edited, Prepared

KIND = "latent"
NEEDS = ("generator", "clip", "mapper_wplus")


@dataclass(frozen=True)
class Params:
    """strength: factor on the change of w_plus"""

    strength: float


class DeltaEditGInWPlus(NetworkEditor):
    """DeltaEdit-G that moves w_plus."""

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        generator = self.networks.generator
        w_plus = moved_w_plus(self.networks, prepared.source, direction, strength)
        s = generator.styles(w_plus)
        return Edited(prepared.source.decode(generator, s, w_plus), s=s)


build = DeltaEditGInWPlus
