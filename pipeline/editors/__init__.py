"""Editors: one file per method, found by name, all with one protocol.

A module defines `Params` (a frozen dataclass with a `strength`), `KIND` ("latent", "baseline" or "diffusion": the stage
that runs it), `NEEDS` (the networks it uses) and `build(networks, params) -> Editor`. Optional: `TEST_IMAGES`, the
number of test images that it edits at each scale, where that differs from its kind's (`pipeline.sources.TEST_IMAGES`);
`DRAWN = True`, where it edits drawn portraits only.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.runtime.errors import InputError, nearest
from pipeline.values import Direction, Edited, ImagePair, Prepared, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Networks

Condition = TextPair | ImagePair
DEFAULT = "deltaedit_gp"  # editor of the command line and the library


class Editor(Protocol):
    """Text-guided editing in three phases; editors inherit from here."""

    def fit(self, condition: Condition) -> Direction:
        """Fit one condition, once for all images. The direction may be used in another process."""
        ...

    def prepare(self, source: Source) -> Prepared:
        """Compute what does not depend on the condition, once for all edits of the same images."""
        return Prepared(source)

    def edit(self, prepared: Any, direction: Direction, strength: float) -> Edited:
        """Edit a batch of images. Strength 0 is the method's reconstruction, 1 its usual edit.

        prepared: by the same editor's `prepare`
        """
        ...


def names() -> tuple[str, ...]:
    """Names of all editors, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def module(name: str) -> Any:
    """Module of an editor. Raises InputError with the nearest name for an unknown one."""
    if name not in names():
        raise InputError(f"unknown editor '{name}'{nearest(name, names())}: known are {', '.join(names())}")
    return importlib.import_module(f"pipeline.editors.{name}")


def load(name: str, networks: Networks, params: Any) -> Editor:
    """Editor of that name on a domain's networks. params: `module(name).Params`."""
    return module(name).build(networks, params)


def label(name: str) -> str:
    """Display name of an editor: deltaedit_g -> DeltaEdit-G."""
    known = {"identity_editor": "input, unedited", "counterfactual": "counterfactual"}
    words = {
        "deltaedit": "DeltaEdit",
        "styleclip": "StyleCLIP",
        "stylemc": "StyleMC",
        "diffedit": "DiffEdit",
        "wplus": "W+",
        "clip": "CLIP",
        "sdedit": "SDEdit",
    }
    return known.get(name) or "-".join(
        words.get(word, word.upper() if len(word) < 4 else word) for word in name.split("_")
    )
