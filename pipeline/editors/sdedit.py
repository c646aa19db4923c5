"""SDEdit (Meng et al. 2022): a picture is buried in noise half way, and a style it shall have is drawn out of it.

Nothing is inverted; what the noise hid is made up again by the steps of DDPM, which draw new noise as they go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline import sampler
from pipeline.editors._deltas import clip_direction, mapped
from pipeline.editors._walks import NEEDS
from pipeline.values import Direction, Edited, ImagePair, InputError, Source, TextPair

if TYPE_CHECKING:
    from pipeline.backbones import Backbones

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "SDEdit", "build"]


@dataclass(frozen=True)
class Params:
    """strength, threshold, agree: of delta_s, as in `deltaedit_g`. steps: of the whole way. ratio: the part of it that
    pictures are buried. seed: of all noise."""

    strength: float
    threshold: float
    agree: bool
    steps: int
    ratio: float
    seed: int

    def __post_init__(self) -> None:
        try:
            _ = self.walk
        except InputError as error:
            raise ValueError(str(error)) from error

    @property
    def walk(self) -> sampler.Walk:
        return sampler.Walk(self.steps, "ddim", ratio=self.ratio)


@dataclass(frozen=True)
class SDEdit:
    backbones: Backbones
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        params, denoiser = self.params, self.backbones.denoiser
        s = source.s + mapped(self.backbones, source, direction, params.threshold, strength, params.agree)
        told = sampler.standardise(s, *self.backbones.s_stats)
        drawn = sampler.unburied(denoiser, source.image, told, params.walk, denoiser.objective, params.seed)
        return Edited(drawn.x, s=s, evaluations=drawn.evaluations)


def build(backbones: Backbones, params: Params) -> SDEdit:
    return SDEdit(backbones, params)
