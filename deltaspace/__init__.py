"""Text-guided image editing in DeltaSpace.

    import deltaspace
    portraits = deltaspace.load("portraits")
    result = portraits.edit("photo.png", "face with red hair")
    result.save("red.png")

Importing this package is cheap; networks are read when they are first needed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaspace.studio import Studio

__all__ = ["load"]

# In a wheel the other packages (kernels, pipeline, ...) lie here, so that site-packages gets no package of such a name;
# in a clone, where this folder does not exist, they lie beside this package and are importable as it is.
if (_rooms := Path(__file__).resolve().parent / "_rooms").is_dir():
    sys.path.insert(0, str(_rooms))


def load(domain: str = "portraits", *, device: str = "auto", root: str | Path | None = None) -> Studio:
    """The studio of a domain, which opens images and edits them.

    device: "auto", "cpu", "cuda" or "cuda:1"
    root: the folder of params.yaml and domains/; None: of the current folder or above, else of this package
    Raises `pipeline.runtime.errors.InputError`, one line, for an unknown domain or a device that is not there.
    """
    from deltaspace.studio import Studio

    return Studio.load(domain, device=device, root=root)
