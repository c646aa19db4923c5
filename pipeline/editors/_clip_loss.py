"""What editors that descend a loss share: how far pictures are from a text, and their people from themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.networks import Backbones


def distance(
    backbones: Backbones, images: Tensor, target: Tensor, identity: float, before: Callable[[], Tensor]
) -> Tensor:
    """[B]: 1 - cos to the CLIP code `target` [E], plus `identity` times 1 - cos to `before` in the identity network.

    images [B,3,R,R]; before: makes the same people unedited. Rows do not touch one another. The second term is left
    out where the domain has no identity network. In the tables that network is a judge: see `identity` in params.yaml.
    """
    far = 1 - F.cosine_similarity(backbones.clip.embed_images(images), target[None], dim=1)
    if not identity or backbones.absent("identity"):
        return far
    with torch.no_grad():
        known = backbones.identity(before())
    return far + identity * (1 - F.cosine_similarity(backbones.identity(images), known, dim=1))
