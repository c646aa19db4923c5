"""DeltaEdit-GP, ours: DeltaEdit-G's change, laid onto the photograph, as far as CLIP follows and where it does.

What the inversion lost of a picture is added back wherever the edit changes little, so that the person stays. Since
prompts and people differ in how far they must be moved, several strengths are tried: the weakest that takes the picture
nearly as far along the text as the best of them is enough, and what goes further spoils what was not asked for. And
where CLIP sees a change take the picture no further along the text, the photograph stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.editors._edit_direction import Known, check_mask, clip_direction, held, mapped
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "latent"
NEEDS = ("generator", "clip", "mapper", "relevance", "s_stats")
PEOPLE = {"default": 100, "full": 1000}  # test people: an edit is drawn once per try
NEAR = 64  # a change is felt over this part of the picture's side around it
PLACES = 16  # to a side of the picture
LOOKS = 4  # at pictures between the photograph and the edit, by which places are credited


@dataclass(frozen=True)
class Params:
    """strength: factor on the strength that is found. threshold to ridge: see `_deltas.ChannelMask`.
    tries: strengths that are tried, from weak to strong. enough: part of the longest way along the text in CLIP's space
    that the chosen one must go. fade: change of a colour, on [-1,1], at which the photograph's detail is at 1/e.
    places: see `where`; null: everywhere."""

    strength: float
    threshold: float
    agree: bool
    share: float | None
    within: float | None
    ridge: float | None
    tries: tuple[float, ...]
    enough: float
    fade: float
    places: float | None

    def __post_init__(self) -> None:
        check_mask(self)
        if not self.tries or list(self.tries) != sorted({*self.tries}) or not self.tries[0] > 0:
            raise ValueError(f"tries are {list(self.tries)}: strengths above 0 that rise are expected")
        if not (0 < self.enough <= 1 and self.fade > 0):
            raise ValueError("enough above 0 and at most 1, fade above 0 are expected")
        if self.places is not None and not 0 < self.places <= 1:
            raise ValueError(f"places is {self.places}: above 0 and at most 1 is expected, or null")


@dataclass(frozen=True)
class DeltaEditGP:
    backbones: Backbones
    params: Params
    known: Known = field(default_factory=Known, repr=False, compare=False)

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        """Strength 0 is the photograph; a negative one goes the other way, as far and where was found forwards."""
        if strength == 0:
            return Edited(source.image, s=source.s)
        params, draw = self.params, self.backbones.generator.synthesis
        unedited = self.known.once("unedited", source, lambda: draw(source.s, source.w_plus))
        move = mapped(self.backbones, source, direction, params, 1.0)

        def laid(amounts: Tensor) -> tuple[Tensor, Tensor]:
            """s, and the picture, of people moved by amounts [B]."""
            s = held(self.backbones, source, source.s + amounts[:, None] * move, params.within)
            return s, onto(source.image, unedited, draw(s, source.w_plus), params.fade)

        def way(images: Tensor) -> Tensor:
            """How far they are from the source, along the direction in CLIP's space: [B]."""
            after = F.normalize(self.backbones.clip.embed_images(images.clamp(-1, 1)), dim=1)
            return (after - F.normalize(source.clip, dim=1)) @ direction.delta

        tries, each = source.s.new_tensor(params.tries), torch.arange(len(source), device=source.s.device)
        tried = [laid(amount.expand(len(source))) for amount in tries]
        found = weakest(torch.stack([way(images) for _, images in tried]), params.enough)
        s, images = (torch.stack(made)[found, each] for made in zip(*tried, strict=True))
        mask = None if params.places is None else where(way, source.image, images, params.places)
        if strength != 1:  # 1 has been drawn
            s, images = laid(strength * tries[found])
        if mask is not None:
            images = torch.lerp(source.image, images, mask)
        return Edited(images, s=s, mask=mask, enough=tries[found], evaluations=len(tries) + 1 + (strength != 1))


def weakest(ways: Tensor, enough: float) -> Tensor:
    """For the ways [T,B] of T tries, weak to strong, the first that goes `enough` of the longest one: [B].

    Where no try goes along the text at all, the weakest of them.
    """
    return (ways >= enough * ways.amax(dim=0).clamp(min=0)).float().argmax(dim=0)


def onto(photo: Tensor, unedited: Tensor, edited: Tensor, fade: float) -> Tensor:
    """The generator's pictures `edited`, and on them what the photo has and `unedited` lacks, where the two are alike.

    Pictures are [B,3,R,R] in [-1,1]. Alike is what changes little in any colour, averaged over what is near: where that
    is `fade`, 1/e of the photo's detail is left.
    """
    change = (edited - unedited).abs().amax(dim=1, keepdim=True)
    reach = max(1, photo.shape[-1] // NEAR)
    change = F.pad(change, [reach] * 4, mode="replicate")
    for window in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        change = F.avg_pool2d(change, window, stride=1)
    left = torch.exp(-((change / fade) ** 2))
    return torch.lerp(edited, photo, left) + left * (edited - unedited)  # where nothing changes, the photo to the bit


def where(way: Callable[[Tensor], Tensor], photo: Tensor, edited: Tensor, part: float) -> Tensor:
    """The fewest places that make up `part` of what takes photos along by an edit, as soft masks [B,1,R,R] in [0,1].

    Pictures are [B,3,R,R] in [-1,1]; way: how far such pictures have come, [B], each for itself. A place is credited
    with its part of the way from photo to edit, all places going at once, as LOOKS pictures between them tell
    (integrated gradients: Sundararajan et al., "Axiomatic attribution for deep networks"); those that lead back count
    for nothing. What lies next to a place that counts is changed with it. Where no place counts, nothing is.
    """
    change = edited.clamp(-1, 1) - photo
    credit = photo.new_zeros(len(photo), 1, PLACES, PLACES)
    for look in range(LOOKS):
        shown = torch.full_like(credit, (look + 0.5) / LOOKS, requires_grad=True)
        with torch.enable_grad():
            between = photo + _over(shown, photo) * change
            credit += torch.autograd.grad(way(between).sum(), shown)[0]
    most, order = credit.flatten(1).clamp(min=0).sort(dim=1, descending=True, stable=True)
    counts = (most > 0) & (most.cumsum(dim=1) - most < part * most.sum(dim=1, keepdim=True))
    mask = torch.zeros_like(most).scatter(1, order, counts.to(most)).view_as(credit)
    mask = F.max_pool2d(mask, 3, stride=1, padding=1)
    return _over(F.avg_pool2d(F.pad(mask, [1] * 4, mode="replicate"), 3, stride=1), photo)


def _over(places: Tensor, pictures: Tensor) -> Tensor:
    """[B,1,PLACES,PLACES] spread over pictures [B,3,R,R]: [B,1,R,R]."""
    return F.interpolate(places, size=pictures.shape[-2:], mode="bilinear", align_corners=False)


def build(backbones: Backbones, params: Params) -> DeltaEditGP:
    return DeltaEditGP(backbones, params)
