"""DeltaEdit-D in W+: the denoiser is told w_plus, which a mapper of W+ moves (the ablation of figure 19).

The denoiser must have been trained so, with `diffusion.space: w_plus`. Nothing is masked: compare it with `deltaedit_d`
that masks nothing either (threshold 0, agree false, share null, within null), of the same guidance, on a denoiser of s
that began from the same body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.editors._diffusion import Decoder, Going
from pipeline.editors._edit_direction import moved_w_plus
from pipeline.values import Direction, Source

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "diffusion"
NEEDS = ("denoiser", "generator", "clip", "mapper_wplus")


@dataclass(frozen=True)
class Params(Going):
    """strength: factor on the change of w_plus."""

    strength: float


@dataclass(frozen=True)
class InWPlus(Decoder):
    space = "w_plus"

    def code(self, source: Source) -> Tensor:
        return source.w_plus.flatten(1)

    def moved(self, source: Source, direction: Direction, strength: float) -> Tensor:
        return moved_w_plus(self.backbones, source, direction, strength).flatten(1)

    def styles(self, code: Tensor) -> Tensor:
        generator = self.backbones.generator
        return generator.styles(code.unflatten(1, (generator.num_ws, -1)))

    def stats(self) -> tuple[Tensor, Tensor]:
        return self.backbones.spread("w_plus")


def build(backbones: Backbones, params: Params) -> InWPlus:
    return InWPlus(backbones, params)
