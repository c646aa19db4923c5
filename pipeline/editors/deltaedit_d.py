"""DeltaEdit-D: the mapper's delta_s, masked by relevance, moves the condition of a diffusion model (section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.editors._diffusion import NEEDS, Walker
from pipeline.editors._diffusion import Settings as Params

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "build"]


def build(backbones: Backbones, params: Params) -> Walker:
    return Walker(backbones, params)
