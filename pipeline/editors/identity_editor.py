"""Lower bound of every table: the input, unedited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.editors import Editor
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

KIND = "baseline"
NEEDS = ()


@dataclass(frozen=True)
class Params:
    """strength: without effect"""

    strength: float


@dataclass(frozen=True)
class IdentityEditor(Editor):
    """Editor that returns its input."""

    networks: Any
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return Direction(condition, torch.zeros(0))

    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        return Edited(prepared.source.image, evaluations=0)


build = IdentityEditor
