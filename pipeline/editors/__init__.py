"""Editors: one file per method, found by name, all behind one protocol.

A module defines `Params` (a frozen dataclass), `KIND` ("latent", "baseline" or "diffusion": the stage that runs it),
`NEEDS` (the artefacts it reads) and `build(backbones, params) -> Editor`. Where an edit or a fit is dear, `PEOPLE` says
how many test people it edits at each scale, in place of what its kind does (`pipeline.sources.PEOPLE`).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.runtime.errors import InputError, nearest
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

Condition = TextPair | ImagePair
DEFAULT = "deltaedit_gp"  # who edits where nobody is named


class Editor(Protocol):
    def fit(self, condition: Condition) -> Direction:
        """Learn one condition; paid once. All that was learnt is in the direction: another process may edit by it."""
        ...

    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        """Edit a batch of people; strength 0 is the method's reconstruction, 1 what the method calls an edit."""
        ...


def names() -> tuple[str, ...]:
    """All editors there are, by name."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def module(name: str) -> Any:
    """The module of an editor; InputError with the nearest name when there is none."""
    if name not in names():
        raise InputError(f"unknown editor '{name}'{nearest(name, names())}: known are {', '.join(names())}")
    return importlib.import_module(f"pipeline.editors.{name}")


def load(name: str, backbones: Backbones, params: Any) -> Editor:
    """The editor `name` on a domain's networks. params: its own frozen dataclass, `module(name).Params`."""
    return module(name).build(backbones, params)
