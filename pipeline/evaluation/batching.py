"""Passes of many images through a network, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.storage.images import from_uint8

if TYPE_CHECKING:
    from pipeline.networks import Networks


def batches(count: int, batch: int) -> Iterator[slice]:
    """Consecutive slices of at most `batch` that cover `count` rows."""
    return (slice(start, start + batch) for start in range(0, count, batch))


def in_batches(
    function: Callable[[Tensor], Tensor], images: Tensor | np.ndarray, batch: int, device: str = "cpu"
) -> Tensor:
    """Results [N,...] of `function` on the CPU, for images [N,3,R,R] in [-1,1], or uint8 [N,R,R,3]."""
    parts = (images[part] for part in batches(len(images), batch))
    as_tensors = (from_uint8(part) if isinstance(part, np.ndarray) else part for part in parts)
    return torch.cat([function(part.to(device)).cpu() for part in as_tensors])


def clip_units(networks: Networks, images: Tensor | np.ndarray, batch: int) -> Tensor:
    """Unit CLIP embeddings [N,E] of images, on the CPU."""
    return F.normalize(in_batches(networks.clip.embed_images, images, batch, networks.device).float(), dim=1)
