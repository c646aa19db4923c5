"""The upper frame of every table: the same person drawn again with the attribute changed and nothing else.

Only people with known parameters can be drawn again, and only prompts that name an attribute and its value say how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.runtime.errors import InputError, nearest
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "baseline"
NEEDS = ()
DRAWN = True  # edits only people whose parameters are known


@dataclass(frozen=True)
class Params:
    strength: float


@dataclass(frozen=True)
class Counterfactual:
    resolution: int
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        if not isinstance(condition, TextPair) or not condition.asks:
            raise InputError("the counterfactual editor needs a prompt of the domain, which names attribute and value")
        for attribute, value in condition.asks.items():
            check(attribute, value)
        return Direction(condition, torch.zeros(0))

    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        from pipeline import portraits

        if source.people is None:
            raise InputError("the counterfactual editor needs people whose parameters are known: give --portrait ID")
        if strength == 0:
            return Edited(source.image, evaluations=0)
        condition = direction.condition
        assert isinstance(condition, TextPair)
        changed = [portraits.counterfactual(person, condition.asks) for person in source.people]
        drawn = torch.stack([torch.from_numpy(portraits.render(person, self.resolution)) for person in changed])
        images = drawn.permute(0, 3, 1, 2).float() / 127.5 - 1
        return Edited(images.to(source.image.device), evaluations=0)


def check(attribute: str, value: str) -> None:
    """InputError with the nearest name for an attribute or a value that no portrait has."""
    from pipeline.portraits import ATTRIBUTES

    for kind, name, known in (("attribute", attribute, ATTRIBUTES), (attribute, value, ATTRIBUTES.get(attribute, ()))):
        if name not in known:
            raise InputError(f"portraits have no {kind} '{name}'{nearest(name, known)}: there are {', '.join(known)}")


def build(backbones: Backbones, params: Params) -> Counterfactual:
    return Counterfactual(backbones.domain.resolution, params)
