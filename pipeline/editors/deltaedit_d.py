"""DeltaEdit-D: the mapper's delta_s, masked by relevance, moves the condition of a diffusion model (section 4.2)."""

from __future__ import annotations

from pipeline.editors._diffusion import NEEDS, WholeImageEditor
from pipeline.editors._diffusion import WholeImageParams as Params

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "build"]

build = WholeImageEditor
