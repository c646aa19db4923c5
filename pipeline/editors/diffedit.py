"""DiffEdit (Couairon et al. 2023) with style codes for words: encoded a part of the way, decoded inside a mask.

The mask is where the denoiser's answers under s and under s + delta_s differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.editors._diffusion import CARRIED as NEEDS
from pipeline.editors._diffusion import Inside
from pipeline.editors._diffusion import Masked as Params

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "build"]


def build(backbones: Backbones, params: Params) -> Inside:
    return Inside(backbones, params)
