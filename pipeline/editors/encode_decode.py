"""Encode-Decode, a baseline of DiffEdit (Couairon et al. 2023): DeltaEdit-D, but only a part of the way to noise."""

from __future__ import annotations

from pipeline.editors._diffusion import NEEDS_WITH_GENERATOR as NEEDS
from pipeline.editors._diffusion import PartialParams as Params
from pipeline.editors._diffusion import WholeImageEditor

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "build"]

build = WholeImageEditor
