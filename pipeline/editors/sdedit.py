"""SDEdit (Meng et al. 2022): a picture is buried in noise half way, and a style it shall have is drawn out of it.

Nothing is inverted; what the noise hid is made up again by the steps of DDPM, which draw new noise as they go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.editors import _diffusion
from pipeline.editors._diffusion import NEEDS
from pipeline.models import ode_solvers
from pipeline.values import Direction, Edited, Source

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "SDEdit", "build"]


@dataclass(frozen=True)
class Params(_diffusion.Moving):
    """steps: of the whole way. ratio: the part of it that pictures are buried. seed: of all noise."""

    steps: int
    ratio: float
    seed: int

    @property
    def walk(self) -> ode_solvers.Walk:
        return ode_solvers.Walk(self.steps, "ddim", ratio=self.ratio)


@dataclass(frozen=True)
class SDEdit(_diffusion.Mover):
    params: Params

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        params, objective = self.params, self.backbones.denoiser.objective
        s = self.moved(source, direction, strength)
        drawn = ode_solvers.unburied(self.says, source.image, self.told(s), params.walk, objective, params.seed)
        return Edited(drawn.x, s=s, evaluations=drawn.evaluations)


def build(backbones: Backbones, params: Params) -> SDEdit:
    return SDEdit(backbones, params)
