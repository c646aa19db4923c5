"""Augmentations: adaptive ones for what a discriminator sees (Karras et al. 2020b), and flaws for classifiers.

Adaptive augmentation changes real and generated images alike, each kind of change with probability p. While p is well
below 1 the generator still learns the images as they are. p follows how confident the discriminator is on its training
images: the more confident, the more of them it has memorised.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TARGET = 0.6  # mean sign of D(real) that p is adapted to (section 3)
RANGE = 500_000  # images in which p can go from 0 to 1
EVERY = 4  # batches between two steps of p
MAX_P = 0.8  # beyond it, augmentations leak into generated images (section 2.2)
SHIFT = 0.125  # of the side, at most
SCALE, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # deviations of log2
BRIGHTNESS = 0.2  # deviation, in pixels of [-1,1]


class AdaptiveAugment:
    """Augmentation with probability `p`, which `watch` adapts to D(real)."""

    def __init__(self) -> None:
        self.p = 0.0
        self.signs, self.seen, self.batches = 0.0, 0, 0  # since p changed

    def __call__(self, images: Tensor) -> Tensor:
        """Augmented images, float32 of the same shape; values may leave [-1,1].

        images: [B,3,R,R] in [-1,1]; at p = 0 returned as they are, and no random number is drawn.

        Differentiable once by the images: resampling has no second derivative.
        """
        if self.p == 0:
            return images
        with torch.autocast(images.device.type, enabled=False):  # half precision is too coarse for pixel coordinates
            return change_colour(change_geometry(images.float(), self.p), self.p)

    def watch(self, logits: Tensor, images: int) -> None:
        """Adapt p to D(real).

        logits: D(real) [B] of this process.
        images: number of images that all processes trained on in this batch.
        """
        self.signs += logits.detach().sign().mean().item()
        self.seen, self.batches = self.seen + images, self.batches + 1
        if self.batches == EVERY:
            confidence = _over_processes(self.signs / EVERY, logits.device)
            self.p += math.copysign(self.seen / RANGE, confidence - TARGET)
            self.p = min(max(self.p, 0.0), MAX_P)
            self.signs, self.seen, self.batches = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """State to resume from: p and the counts since it changed."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` returned."""
        vars(self).update(state)


def change_geometry(images: Tensor, p: float) -> Tensor:
    """Flipped, turned, shifted, scaled and rotated images, with reflection at the border.

    One resampling does all: coordinates are in -1..1 over the image, and `inverse` maps output to input coordinates.
    """
    count, size, device = len(images), images.shape[-1], images.device
    inverse = torch.eye(3, device=device).expand(count, 3, 3)

    def by_chance(chance: float, values: Tensor) -> Tensor:
        """`values` [B] with probability `chance`, else 0."""
        return torch.where(torch.rand(count, device=device) < chance, values, 0.0)

    flip = 1 - 2 * by_chance(p, torch.randint(2, (count,), device=device))
    inverse = inverse @ _matrices(flip, 0, 0, 0, 1, 0)
    inverse = inverse @ _rotations(by_chance(p, torch.randint(4, (count,), device=device)) * (math.pi / 2))
    most = SHIFT * size
    shift = [
        by_chance(p, torch.empty(count, device=device).uniform_(-most, most)).round() * (2 / size) for _ in range(2)
    ]
    inverse = inverse @ _matrices(1, 0, shift[0], 0, 1, shift[1])
    scale = torch.exp2(-by_chance(p, SCALE * torch.randn(count, device=device)))
    each = 1 - math.sqrt(1 - p)  # of two rotations, so that a share p of the images is rotated
    angles = [by_chance(each, torch.empty(count, device=device).uniform_(-math.pi, math.pi)) for _ in range(2)]
    inverse = inverse @ _rotations(angles[0]) @ _matrices(scale, 0, 0, 0, scale, 0) @ _rotations(angles[1])
    grid = F.affine_grid(inverse[:, :2], list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def change_colour(images: Tensor, p: float) -> Tensor:
    """Images with changed brightness, contrast, luma sign and saturation."""
    count, device = len(images), images.device

    def by_chance(values: Tensor) -> Tensor:
        return torch.where(torch.rand(count, device=device) < p, values, 0.0)[:, None, None, None]

    images = images + by_chance(BRIGHTNESS * torch.randn(count, device=device))
    images = images * torch.exp2(by_chance(CONTRAST * torch.randn(count, device=device)))
    luma = images.mean(dim=1, keepdim=True)
    images = images - 2 * luma * by_chance(torch.randint(2, (count,), device=device))
    luma = images.mean(dim=1, keepdim=True)
    return luma + (images - luma) * torch.exp2(by_chance(SATURATION * torch.randn(count, device=device)))


def mirrored(images: Tensor) -> Tensor:
    """Images [B,3,R,R], each mirrored with probability 1/2."""
    chosen = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def _matrices(*entries: Tensor | float) -> Tensor:
    """Matrices [B,3,3] from the entries of the first two rows, each a number or [B]."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    rows = [entry if isinstance(entry, Tensor) else torch.full_like(like, entry) for entry in (*entries, 0, 0, 1)]
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))


def _rotations(angles: Tensor) -> Tensor:
    return _matrices(angles.cos(), -angles.sin(), 0, angles.sin(), angles.cos(), 0)


def _over_processes(value: float, device: torch.device) -> float:
    """Mean over the processes of torchrun, so that all keep the same p."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.item() / torch.distributed.get_world_size()


def degrade(images: Tensor) -> Tensor:
    """Images [B,3,R,R] with blur, noise, contrast and colour of their own, and one common shift of up to two pixels.

    Networks trained on renders alone fail on generated images, whose small flaws these changes imitate.
    """
    batch, device = len(images), images.device
    amount = torch.rand(batch, 1, 1, 1, device=device)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.where(torch.rand_like(amount) < 0.5, images, images.lerp(blurred, amount))
    x = x * (1 + 0.1 * torch.randn(batch, 1, 1, 1, device=device)) + 0.05 * torch.randn(batch, 3, 1, 1, device=device)
    x = x + torch.randn_like(x) * 0.12 * torch.rand(batch, 1, 1, 1, device=device).square()
    dy, dx = torch.randint(-2, 3, (2,)).tolist()
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    size = images.shape[-1]
    return padded[:, :, 2 + dy : 2 + dy + size, 2 + dx : 2 + dx + size].clamp(-1, 1)
