"""DeltaEdit-D in W+: the denoiser is conditioned on w_plus, which a mapper of W+ moves (ablation of figure 19).

The denoiser must have been trained so, with `diffusion.space: w_plus`. No mask: compare it with a `deltaedit_d` that
masks nothing either (threshold 0, same_sign false, top_share null, max_sigma null), of the same guidance, on a denoiser
of s that was fine-tuned from the same body.
"""

from __future__ import annotations

from torch import Tensor

from pipeline import sampling
from pipeline.editors._diffusion import SamplingParams as Params
from pipeline.editors._diffusion import WholeImageEditor
from pipeline.editors._edit_direction import clip_direction, moved_w_plus
from pipeline.values import Direction, ImagePair, Source, TextPair

KIND = "diffusion"
NEEDS = ("denoiser", "generator", "clip", "mapper_wplus")
__all__ = ["KIND", "NEEDS", "DeltaEditDInWPlus", "Params", "build"]


class DeltaEditDInWPlus(WholeImageEditor):
    """DeltaEdit-D whose style is w_plus, flattened."""

    space = "w_plus"

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.networks, condition)

    def style(self, source: Source) -> Tensor:
        return source.inversion.w_plus.flatten(1)

    def moved(self, source: Source, direction: Direction, strength: float) -> Tensor:
        return moved_w_plus(self.networks, source, direction, strength).flatten(1)

    def style_codes(self, style: Tensor) -> Tensor:
        generator = self.networks.generator
        return generator.styles(style.unflatten(1, (generator.num_ws, -1)))

    def statistics(self) -> tuple[Tensor, Tensor]:
        return sampling.style_stats(self.networks, "w_plus")


build = DeltaEditDInWPlus
