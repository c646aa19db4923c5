"""DiffEdit (Couairon et al. 2023) with styles in place of texts: inverted a part of the way, sampled inside a mask.

The mask is where the denoiser's outputs under s and under s + delta_s differ.
"""

from __future__ import annotations

from pipeline.editors._diffusion import NEEDS_WITH_GENERATOR as NEEDS
from pipeline.editors._diffusion import MaskedEditor
from pipeline.editors._diffusion import MaskParams as Params

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "build"]

build = MaskedEditor
