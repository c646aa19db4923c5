"""Residual of an inversion in the feature maps of the generator, kept where an edit leaves those maps unchanged.

Codes describe what an image has in common with others, not its particular moles and strands of hair. High-fidelity
inversions (Wang et al., "High-fidelity GAN inversion for image attribute editing", 2022) add them as features of one
layer, predicted by a network; here they are optimised (`pipeline.inversion`). Where an edit changes the features, the
residual must not stay: removed hair would shine through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.models.stylegan2 import Generator

DECAY = 0.3  # change of the features, relative to their root mean square, at which 1/e of the residual is left


@dataclass(frozen=True)
class FeatureResidual:
    """Residual that is added to the features of a generator's last layer of r pixels.

    residual [B,C,r,r]: the added features. unedited [B,C,r,r]: the generator's features before an edit.
    """

    residual: Tensor
    unedited: Tensor

    @classmethod
    def of(cls, generator: Generator, residual: Tensor, s: Tensor, w_plus: Tensor) -> FeatureResidual:
        """The residual [B,C,r,r] of images with the codes s [B,S] and w_plus [B,L,D]."""
        return cls(residual.float(), generator.features_at(residual.shape[-1], s, w_plus)[0])

    def select(self, index: list[int]) -> FeatureResidual:
        """The rows `index` of the batch."""
        return FeatureResidual(self.residual[index], self.unedited[index])

    def to(self, device: Any) -> FeatureResidual:
        """The same on another device."""
        return FeatureResidual(self.residual.to(device), self.unedited.to(device))

    def add_to(self, x: Tensor) -> Tensor:
        """Add the residual to features x [B,C,r,r] after an edit, damped by exp(-(change / DECAY)^2) per pixel."""
        scale = self.unedited.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)
        change = (x - self.unedited).square().mean(dim=1, keepdim=True) / scale
        change = F.avg_pool2d(F.pad(change, [1] * 4, mode="replicate"), 3, stride=1)
        return x + (torch.exp(-change / DECAY**2) * self.residual).to(x.dtype)
