"""Small flaws of generated pictures, given to renders, so that networks trained on renders can read both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def degrade(images: Tensor) -> Tensor:
    """images [B,3,R,R] -> the same, each with its own blur, noise, shift of a pixel or two and change of contrast."""
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
