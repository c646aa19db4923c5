"""SDEdit (Meng et al. 2022): add noise to an image, half way, and denoise it under another style.

Nothing is inverted: what the noise hides is drawn anew by DDPM's steps, which add noise as they go.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.editors._diffusion import NEEDS, StyleConditionedEditor, check_trajectory
from pipeline.editors._edit_direction import ChannelMask
from pipeline.models import ode_solvers
from pipeline.values import Direction, Edited, Prepared

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "SDEdit", "build"]


@dataclass(frozen=True)
class Params(ChannelMask):
    """strength: factor on delta_s. steps: of the whole schedule. encode_ratio: share of it up to which noise is added.
    seed: of all noise."""

    strength: float
    steps: int
    encode_ratio: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trajectory(self)

    @property
    def trajectory(self) -> ode_solvers.Trajectory:
        """Steps from the noised image to the edit."""
        return ode_solvers.Trajectory(self.steps, "ddim", ratio=self.encode_ratio)


class SDEdit(StyleConditionedEditor):
    """SDEdit with styles in place of texts."""

    params: Params

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source, params, objective = prepared.source, self.params, self.networks.denoiser.objective
        s = self.moved(source, direction, strength)
        images = ode_solvers.renoise_and_sample(
            self.predict, source.image, self.condition(s), params.trajectory, objective, params.seed
        )
        return Edited(images.x, s=s, evaluations=images.evaluations)


build = SDEdit
