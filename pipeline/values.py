"""Values that flow between the parts of the method.

Shape letters used everywhere: B batch, L rows of w+, D width of w, S style channels, E width of CLIP, R resolution.
Images are [B,3,R,R] float32 RGB in [-1,1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.feature_residual import FeatureResidual
    from pipeline.models.stylegan2 import Generator
    from pipeline.portraits import Portrait


@dataclass(frozen=True)
class TextPair:
    """Text condition: edit along the difference from text `source` to text `target`.

    asks: attribute -> value that the target names; only the prompts of a domain have them.
    """

    source: str
    target: str
    asks: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ImagePair:
    """Condition in images: edit along the difference from `source` to `target`, [1,3,R,R] each."""

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Direction:
    """Result of `Editor.fit`.

    delta: CLIP difference [E] of the condition, not normalised
    data: what the editor computed for this condition
    """

    condition: TextPair | ImagePair
    delta: Tensor
    data: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Inversion:
    """Images in terms of the generator.

    w_plus: codes [B,L,D]
    detail: feature residuals that the codes lack [B,C,r,r]; None where none were computed
    refined: steps of descent that both come from; 0 for codes as the encoder or the mapping network gives them
    """

    w_plus: Tensor
    detail: Tensor | None = None
    refined: int = 0

    def __len__(self) -> int:
        return len(self.w_plus)

    def select(self, index: list[int] | slice) -> Inversion:
        """Rows of the batch."""
        return replace(self, w_plus=self.w_plus[index], detail=None if self.detail is None else self.detail[index])

    def to(self, device: Any) -> Inversion:
        """The same tensors on a device."""
        return replace(
            self, w_plus=self.w_plus.to(device), detail=None if self.detail is None else self.detail.to(device)
        )


@dataclass(frozen=True)
class Source:
    """Images to edit, one batch.

    image: [B,3,R,R]
    s: style codes [B,S] of the inversion
    clip: CLIP embeddings [B,E] of the images, not normalised
    people: parameters that the portraits were drawn with, one per image; None for photographs and samples
    residual: the inversion's detail in the form that `Generator.synthesis` adds to its features
    """

    image: Tensor
    inversion: Inversion
    s: Tensor
    clip: Tensor
    people: tuple[Portrait, ...] | None = None
    residual: FeatureResidual | None = None

    def __len__(self) -> int:
        return len(self.image)

    def decode(self, generator: Generator, s: Tensor, w_plus: Tensor | None = None) -> Tensor:
        """Images [B,3,R,R] of style codes s [B,S], with the detail of the inversion.

        w_plus: [B,L,D], of which the layers that turn features into colours get their styles; None: the inversion's.
        """
        return generator.synthesis(s, self.inversion.w_plus if w_plus is None else w_plus, detail=self.residual)

    def select(self, index: list[int]) -> Source:
        """Rows of the batch."""
        return Source(
            self.image[index],
            self.inversion.select(index),
            self.s[index],
            self.clip[index],
            None if self.people is None else tuple(self.people[i] for i in index),
            None if self.residual is None else self.residual.select(index),
        )

    def to(self, device: Any) -> Source:
        """The same tensors on a device."""
        return replace(
            self,
            image=self.image.to(device),
            inversion=self.inversion.to(device),
            s=self.s.to(device),
            clip=self.clip.to(device),
            residual=None if self.residual is None else self.residual.to(device),
        )


@dataclass(frozen=True)
class Prepared:
    """Result of `Editor.prepare`: source images; in subclasses also what an editor computes once for their edits."""

    source: Source


@dataclass(frozen=True)
class Edited:
    """Result of `Editor.edit`; None for what a method does not have.

    images: [B,3,R,R], not clamped
    s: style codes [B,S] after the edit
    mask: [B,1,R,R] in [0,1], 0 where the image stays
    strengths: [B], chosen by the editor per image; the argument `strength` of `edit` is a factor on them
    evaluations: forward passes per image of the network that draws it, encoding included
    """

    images: Tensor
    s: Tensor | None = None
    mask: Tensor | None = None
    strengths: Tensor | None = None
    evaluations: int = 1
