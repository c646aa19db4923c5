"""Text-guided image editing in DeltaSpace.

    import deltaspace
    portraits = deltaspace.load("portraits")
    result = portraits.edit("photo.png", "face with red hair")
    result.save("red.png")

Importing this package is cheap; networks are read when they are first needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaspace.studio import Studio

__all__ = ["load"]


def load(domain: str = "portraits", *, device: str = "auto", root: str | Path | None = None) -> Studio:
    """What edits pictures of `domain`.

    device: "auto", "cpu", "cuda" or "cuda:1". root: the folder of params.yaml and domains/, found by itself when None.
    Raises `pipeline.runtime.errors.InputError`, one line, for an unknown domain or a device that is not there.
    """
    from deltaspace.studio import Studio

    return Studio.load(domain, device=device, root=root)
