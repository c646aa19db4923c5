"""The naive text-free editor that DeltaEdit starts from: the target's own CLIP code in place of a difference.

The paper trains a mapper on (s_1, i_1, i_2) and puts a text t where the second picture's code i_2 was; the codes of
texts lie apart from those of pictures, and everybody turns into an average face. What such a mapper is told of i_1 and
i_2, the Delta Mapper is told as i_1 and i_2 - i_1, so no second mapper is trained here: t takes the place of i_2 in
ours, and the difference crosses the gap between pictures and texts. No mask, as in `deltaedit_g_unmasked`, from which
this differs in the condition alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pipeline.editors._edit_direction import answered, clip_target
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
class ClipTarget:
    backbones: Backbones

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_target(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        across = direction.data["target"] - F.normalize(source.clip, dim=1)  # t - i_1, [B,E]
        s = source.s + strength * answered(self.backbones, source, across)
        return Edited(self.backbones.generator.synthesis(s, source.w_plus, detail=source.detail), s=s)


def build(backbones: Backbones, params: Params) -> ClipTarget:
    return ClipTarget(backbones)
