"""DeltaEdit-DM, ours: DeltaEdit-D inside DiffEdit's mask; outside it the input's own pixels come back exactly.

That is DiffEdit with masks that suit styles, half way to noise, where the generator's own change is carried in.
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
