"""Naive text-guided editor that DeltaEdit improves on: the target's CLIP embedding in place of a difference.

The paper trains a mapper on (s_1, i_1, i_2), i being CLIP embeddings of images, and puts a text t in place of i_2;
since embeddings of texts lie apart from those of images, every face turns into an average one. The Delta Mapper is
conditioned on i_1 and i_2 - i_1, so no second mapper is trained here: it gets t - i_1, a difference across the gap
between images and texts. No mask: this differs from `deltaedit_g_unmasked` in the condition alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pipeline.editors._edit_direction import NetworkEditor, clip_target, mapper_delta
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

KIND = "latent"
NEEDS = ("generator", "clip", "mapper")


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_s"""

    strength: float


class ClipTarget(NetworkEditor):
    """Editor by the CLIP embedding of the target."""

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_target(self.networks, condition)

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source = prepared.source
        delta = direction.data["target"] - F.normalize(source.clip, dim=1)  # t - i_1, [B,E]
        s = source.s + strength * mapper_delta(self.networks, source, delta)
        return Edited(source.decode(self.networks.generator, s), s=s)


build = ClipTarget
