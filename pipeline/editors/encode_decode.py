"""Encode-Decode, a baseline of DiffEdit's (Couairon et al. 2023): DeltaEdit-D, but only a part of the way to noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.editors._diffusion import CARRIED as NEEDS
from pipeline.editors._diffusion import Partial as Params
from pipeline.editors._diffusion import Walker

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "build"]


def build(backbones: Backbones, params: Params) -> Walker:
    return Walker(backbones, params)
