"""DeltaEdit-DM, ours: DeltaEdit-D inside DiffEdit's mask; the input's own pixels outside it come back exactly.

DiffEdit with mask settings that suit styles, half way to noise, where the generator's own change is added.
"""

from __future__ import annotations

from pipeline.editors._diffusion import NEEDS_WITH_GENERATOR as NEEDS
from pipeline.editors._diffusion import MaskedEditor
from pipeline.editors._diffusion import MaskParams as Params

KIND = "diffusion"
__all__ = ["KIND", "NEEDS", "Params", "build"]

build = MaskedEditor
