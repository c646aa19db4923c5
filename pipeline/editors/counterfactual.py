"""Upper bound of every table: the same portrait rendered with the attribute changed and nothing else.

It needs the renderer's parameters, and prompts that name an attribute and its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline import portraits
from pipeline.editors import Editor
from pipeline.runtime.errors import InputError, nearest
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Networks

KIND = "baseline"
NEEDS = ()
DRAWN = True  # edits drawn portraits only


@dataclass(frozen=True)
class Params:
    """strength: 0 for the image itself, anything else for its counterfactual"""

    strength: float


@dataclass(frozen=True)
class Counterfactual(Editor):
    """Renderer of counterfactuals."""

    networks: Networks
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        """Raises InputError for a condition without attributes, and for unknown ones."""
        if not isinstance(condition, TextPair) or not condition.asks:
            raise InputError("the counterfactual editor needs a prompt of the domain, which names attribute and value")
        for attribute, value in condition.asks.items():
            check(attribute, value)
        return Direction(condition, torch.zeros(0))

    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        """Raises InputError for images that are not drawn portraits."""
        source, condition = prepared.source, direction.condition
        if source.people is None:
            raise InputError("the counterfactual editor needs the renderer's parameters: give --portrait ID")
        if strength == 0:
            return Edited(source.image, evaluations=0)
        assert isinstance(condition, TextPair)
        changed = [portraits.counterfactual(person, condition.asks) for person in source.people]
        size = self.networks.domain.resolution
        drawn = torch.stack([torch.from_numpy(portraits.render(person, size)) for person in changed])
        images = drawn.permute(0, 3, 1, 2).float() / 127.5 - 1
        return Edited(images.to(source.image.device), evaluations=0)


def check(attribute: str, value: str) -> None:
    """Raise InputError with the nearest name for an attribute or a value that portraits do not have."""
    known_values = portraits.ATTRIBUTES.get(attribute, ())
    for kind, name, known in (("attribute", attribute, portraits.ATTRIBUTES), (attribute, value, known_values)):
        if name not in known:
            raise InputError(f"portraits have no {kind} '{name}'{nearest(name, known)}: there are {', '.join(known)}")


build = Counterfactual
