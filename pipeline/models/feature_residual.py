"""What the codes of a photograph lack, as features within the generator that stay wherever an edit leaves those alone.

Codes hold what a person has in common with others, not this mole and that strand: a generator cannot be told of them.
High-fidelity inversions (Wang et al., "High-fidelity GAN inversion for image attribute editing", 2022) bring them back
as features of one layer; so does this, by descent (`pipeline.inversion`) in place of a network. What an edit changes
there must not keep the old: hair that is taken away would shine through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.models.stylegan2 import Generator

FADE = 0.3  # change of the features, in their own root mean square, at which 1/e of the detail is left


@dataclass(frozen=True)
class Detail:
    """added [B,C,r,r]: what is added to the features of the generator's last layer of r pixels. plain [B,C,r,r]: what
    those are before an edit."""

    added: Tensor
    plain: Tensor

    @classmethod
    def of(cls, generator: Generator, added: Tensor, s: Tensor, w_plus: Tensor) -> Detail:
        """`added` [B,C,r,r] as the detail of people with codes s [B,S] and w_plus [B,L,D]."""
        return cls(added.float(), generator.features(added.shape[-1], s, w_plus)[0])

    def select(self, index: list[int]) -> Detail:
        return Detail(self.added[index], self.plain[index])

    def to(self, device: Any) -> Detail:
        return Detail(self.added.to(device), self.plain.to(device))

    def onto(self, x: Tensor) -> Tensor:
        """Features x [B,C,r,r] after an edit, with the detail where they are as they were, or nearly."""
        usual = self.plain.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)
        change = (x - self.plain).square().mean(dim=1, keepdim=True) / usual
        change = F.avg_pool2d(F.pad(change, [1] * 4, mode="replicate"), 3, stride=1)
        return x + (torch.exp(-change / FADE**2) * self.added).to(x.dtype)
