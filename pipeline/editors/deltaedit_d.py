"""DeltaEdit-D: the mapper's delta_s, masked by relevance, as the moved condition of a diffusion model (section 4.2).

The picture is encoded to noise with its own s and decoded with s + delta_s; what s does not say, the noise keeps.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline import sampler
from pipeline.editors._deltas import clip_direction, mapped
from pipeline.values import Direction, Edited, ImagePair, InputError, Source, TextPair

if TYPE_CHECKING:
    from pipeline.backbones import Backbones

KIND = "diffusion"
NEEDS = ("denoiser", "clip", "mapper", "relevance", "s_stats")
REMEMBERED = 32  # batches of people whose noise is kept for their next edit


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_s. threshold: channels with |relevance . delta_t| below it stay.

    steps: in each of both directions; a divisor of 1000. The paper decodes in 100, of DDIM. refine: further rounds per
    encoding step, which make decoding give the picture back; they are paid once per person.
    """

    strength: float
    threshold: float
    steps: int
    refine: int

    def __post_init__(self) -> None:
        try:
            sampler.check_steps(self.steps)
        except InputError as error:
            raise ValueError(str(error)) from error
        if self.refine < 0:
            raise ValueError(f"refine is {self.refine}: a number from 0 is expected")


@dataclass(frozen=True)
class DeltaEditD:
    backbones: Backbones
    params: Params
    noises: OrderedDict[str, sampler.Sampled] = field(default_factory=OrderedDict, repr=False, compare=False)

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        """`evaluations` counts both directions, also when the noise of these people is remembered from another edit."""
        s = source.s + mapped(self.backbones, source, direction, self.params.threshold, strength)
        noise, denoiser = self._noise(source), self.backbones.denoiser
        decoded = sampler.decode(denoiser, noise.x, self._told(s), self.params.steps, denoiser.objective)
        return Edited(decoded.x, s=s, evaluations=noise.evaluations + decoded.evaluations)

    def _told(self, s: Tensor) -> Tensor:
        return sampler.standardise(s, *self.backbones.s_stats)

    def _noise(self, source: Source) -> sampler.Sampled:
        """x_T [B,3,R,R] of the source, computed once for all its edits."""
        key = hashlib.sha256(source.image.cpu().numpy().tobytes() + source.s.cpu().numpy().tobytes()).hexdigest()
        if key not in self.noises:
            told, denoiser = self._told(source.s), self.backbones.denoiser
            numbers = self.params.steps, self.params.refine, denoiser.objective
            self.noises[key] = sampler.encode(denoiser, source.image, told, *numbers)
            if len(self.noises) > REMEMBERED:
                self.noises.popitem(last=False)
        self.noises.move_to_end(key)
        return self.noises[key]


def build(backbones: Backbones, params: Params) -> DeltaEditD:
    return DeltaEditD(backbones, params)
