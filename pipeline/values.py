"""The values that flow between the parts of the method, and nothing else.

Shape letters used everywhere: B batch, L rows of w+, D w-dim, S style channels, E CLIP dim, R resolution.
Images are [B,3,R,R] float32 RGB in [-1,1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.feature_residual import Detail
    from pipeline.portraits import Portrait


@dataclass(frozen=True)
class TextPair:
    """A condition in words. What it asks for, attribute -> value, is known only for the prompts of a domain."""

    source: str
    target: str
    asks: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ImagePair:
    """A condition in pictures: source and target [1,3,R,R]."""

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Direction:
    """What an editor learnt of one condition. `delta` [E] is the CLIP difference, not normalised."""

    condition: TextPair | ImagePair
    delta: Tensor
    data: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The people to edit: image [B,3,R,R], w_plus [B,L,D], s [B,S], clip [B,E] as the network gives it; detail: what
    the codes lack of photographs."""

    image: Tensor
    w_plus: Tensor
    s: Tensor
    clip: Tensor
    people: tuple[Portrait, ...] | None = None
    detail: Detail | None = None

    def __len__(self) -> int:
        return len(self.image)

    def select(self, index: list[int]) -> Source:
        people = None if self.people is None else tuple(self.people[i] for i in index)
        detail = None if self.detail is None else self.detail.select(index)
        return Source(self.image[index], self.w_plus[index], self.s[index], self.clip[index], people, detail)

    def to(self, device: Any) -> Source:
        return replace(
            self,
            image=self.image.to(device),
            w_plus=self.w_plus.to(device),
            s=self.s.to(device),
            clip=self.clip.to(device),
            detail=None if self.detail is None else self.detail.to(device),
        )


@dataclass(frozen=True)
class Edited:
    """What an editor returns: images [B,3,R,R]; s [B,S] and mask [B,1,R,R] where the method has them.

    The mask is in [0,1], 0 where the picture stays.

    enough [B]: the strengths that the editor found for each person by itself; the one it was asked for is a factor on
    them.

    `evaluations` counts forward passes per image of the network that draws it, encoding included.
    """

    images: Tensor
    s: Tensor | None = None
    mask: Tensor | None = None
    enough: Tensor | None = None
    evaluations: int = 1
