"""Adaptive augmentation of what a discriminator sees (Karras et al. 2020b), for few pictures.

Real and generated pictures are changed alike, each kind of change with probability p. As long as p is well below 1 the
changes can be undone on average, so that the generator still learns the pictures as they are. p follows how sure the
discriminator is of the pictures it trains on: the surer, the more of them it has learnt by heart.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TARGET = 0.6  # mean sign of D(real) that p is steered to (section 3)
RANGE = 500_000  # images in which p can go from 0 to 1
EVERY = 4  # batches between two steps of p
MOST = 0.8  # beyond it, changes begin to show in what is generated (section 2.2)
SHIFT = 0.125  # of the side, at most
SCALE, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # deviations of log2
BRIGHTNESS = 0.2  # deviation, in pixels of [-1,1]


class Augment:
    """Changes pictures with probability `p`, and moves p after what `watch` is shown of D(real)."""

    def __init__(self) -> None:
        self.p = 0.0
        self.signs, self.seen, self.batches = 0.0, 0, 0  # since the last step of p

    def __call__(self, images: Tensor) -> Tensor:
        """images [B,3,R,R] in [-1,1] -> the same number and size in float32; values may leave the range.

        At p = 0 nothing is done or drawn. It can be differentiated once, by the pictures: sampling has no second
        derivative.
        """
        if self.p == 0:
            return images
        with torch.autocast(images.device.type, enabled=False):  # half precision cannot tell places of pixels apart
            return recoloured(moved(images.float(), self.p), self.p)

    def watch(self, logits: Tensor, images: int) -> None:
        """Take in D(real) [B] of this process; `images`: how many pictures all processes trained on for it."""
        self.signs += logits.detach().sign().mean().item()
        self.seen, self.batches = self.seen + images, self.batches + 1
        if self.batches == EVERY:
            sure = _over_processes(self.signs / EVERY, logits.device)
            self.p += math.copysign(self.seen / RANGE, sure - TARGET)
            self.p = min(max(self.p, 0.0), MOST)
            self.signs, self.seen, self.batches = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def moved(images: Tensor, p: float) -> Tensor:
    """Flips, quarter turns, shifts by whole pixels, scaling and rotation; what comes in from outside is a reflection.

    All in one resampling: coordinates run from -1 to 1 over the picture, and `places` maps where a pixel shall be to
    where it is taken from.
    """
    count, size, device = len(images), images.shape[-1], images.device
    places = torch.eye(3, device=device).expand(count, 3, 3)

    def drawn(chance: float, values: Tensor) -> Tensor:
        """`values` [B] for some of the pictures, 0 for the others."""
        return torch.where(torch.rand(count, device=device) < chance, values, 0.0)

    flip = 1 - 2 * drawn(p, torch.randint(2, (count,), device=device))
    places = places @ _matrices(flip, 0, 0, 0, 1, 0)
    places = places @ _rotations(drawn(p, torch.randint(4, (count,), device=device)) * (math.pi / 2))
    most = SHIFT * size
    shift = [drawn(p, torch.empty(count, device=device).uniform_(-most, most)).round() * (2 / size) for _ in range(2)]
    places = places @ _matrices(1, 0, shift[0], 0, 1, shift[1])
    scale = torch.exp2(-drawn(p, SCALE * torch.randn(count, device=device)))
    before_and_after = 1 - math.sqrt(1 - p)  # so that p of the pictures are turned
    angles = [drawn(before_and_after, torch.empty(count, device=device).uniform_(-math.pi, math.pi)) for _ in range(2)]
    places = places @ _rotations(angles[0]) @ _matrices(scale, 0, 0, 0, scale, 0) @ _rotations(angles[1])
    grid = F.affine_grid(places[:, :2], list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def recoloured(images: Tensor, p: float) -> Tensor:
    """Brightness, contrast, flipped luma, saturation."""
    count, device = len(images), images.device

    def drawn(values: Tensor) -> Tensor:
        return torch.where(torch.rand(count, device=device) < p, values, 0.0)[:, None, None, None]

    images = images + drawn(BRIGHTNESS * torch.randn(count, device=device))
    images = images * torch.exp2(drawn(CONTRAST * torch.randn(count, device=device)))
    luma = images.mean(dim=1, keepdim=True)
    images = images - 2 * luma * drawn(torch.randint(2, (count,), device=device))
    luma = images.mean(dim=1, keepdim=True)
    return luma + (images - luma) * torch.exp2(drawn(SATURATION * torch.randn(count, device=device)))


def mirrored(images: Tensor) -> Tensor:
    """Every other picture of [B,3,R,R], by chance, from right to left."""
    chosen = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def _matrices(*entries: Tensor | float) -> Tensor:
    """[B,3,3] of the first two rows' entries, each a number or [B]."""
    (some,) = {len(entry): entry for entry in entries if isinstance(entry, Tensor)}.values()
    rows = [entry if isinstance(entry, Tensor) else torch.full_like(some, entry) for entry in (*entries, 0, 0, 1)]
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))


def _rotations(angles: Tensor) -> Tensor:
    return _matrices(angles.cos(), -angles.sin(), 0, angles.sin(), angles.cos(), 0)


def _over_processes(value: float, device: torch.device) -> float:
    """The mean of all processes' values under torchrun, so that all keep the same p."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.item() / torch.distributed.get_world_size()
