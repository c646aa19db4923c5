"""Loss of editors that are fitted by gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.networks import Networks


def clip_loss(
    networks: Networks, images: Tensor, target: Tensor, identity: float, unedited: Callable[[], Tensor]
) -> Tensor:
    """CLIP distance of images to a target, 1 - cos, plus the identity loss of StyleCLIP: [B], row by row.

    images: [B,3,R,R]
    target: CLIP embedding [E]
    identity: weight of 1 - cos of the identity network's embeddings of edited and unedited images. Left out where the
        domain has no identity network. In the tables that network measures edits: see `identity` in params.yaml
    unedited: draws the images before the edit
    """
    distance = 1 - F.cosine_similarity(networks.clip.embed_images(images), target[None], dim=1)
    if not identity or networks.absent("identity"):
        return distance
    with torch.no_grad():
        known = networks.identity(unedited())
    return distance + identity * (1 - F.cosine_similarity(networks.identity(images), known, dim=1))
