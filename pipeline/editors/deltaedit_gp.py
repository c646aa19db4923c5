"""DeltaEdit-GP, ours: DeltaEdit-G's change on the photograph, as strong as the text needs, in regions that have effect.

The detail that the inversion lost is added back wherever the edit changes little, which keeps identity. Prompts and
images differ in the strength they need, so several candidates are tried: the weakest one that moves the image nearly
as far along the text as the best one does is taken, since stronger ones change more than the text requires. Regions
whose change moves the image no further along the text stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.editors._edit_direction import ChannelMask, NetworkEditor, clamped, masked_delta, masked_direction
from pipeline.values import Direction, Edited, ImagePair, Prepared, Source, TextPair

KIND = "latent"
NEEDS = ("generator", "clip", "mapper", "relevance", "s_stats")
TEST_IMAGES = {"default": 100, "full": 1000}  # an edit is drawn once per candidate
BLUR = 64  # changes are averaged over this part of the image's side
CELLS = 16  # regions to a side of the image
STEPS = 4  # images between photograph and edit, of the integrated gradients


@dataclass(frozen=True)
class Params(ChannelMask):
    """Settings of DeltaEdit-GP.

    strength: factor on the chosen candidate
    candidate_strengths: rising
    clip_progress: share of the best candidate's progress along the text in CLIP's space that is sufficient
    detail_decay: change of a colour, on [-1,1], at which 1/e of the photograph's detail is left
    region_share: see `region_mask`; None: no mask

    Raises ValueError for values out of range.
    """

    strength: float
    candidate_strengths: tuple[float, ...]
    clip_progress: float
    detail_decay: float
    region_share: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        strengths = list(self.candidate_strengths)
        if not strengths or strengths != sorted({*strengths}) or not strengths[0] > 0:
            raise ValueError(f"candidate_strengths are {strengths}: rising numbers above 0 are expected")
        if not (0 < self.clip_progress <= 1 and self.detail_decay > 0):
            raise ValueError("clip_progress above 0 and at most 1, detail_decay above 0 are expected")
        if self.region_share is not None and not 0 < self.region_share <= 1:
            raise ValueError(f"region_share is {self.region_share}: above 0 and at most 1 is expected, or null")


@dataclass(frozen=True)
class Reconstructed(Prepared):
    """unedited: the generator's images [B,3,R,R] of the inversion, without its detail"""

    unedited: Tensor


class DeltaEditGP(NetworkEditor):
    """DeltaEdit-G on photographs."""

    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return masked_direction(self.networks, super().fit(condition), self.params)

    @torch.no_grad()
    def prepare(self, source: Source) -> Reconstructed:
        return Reconstructed(source, self.networks.generator.synthesis(source.s, source.inversion.w_plus))

    @torch.no_grad()
    def edit(self, prepared: Reconstructed, direction: Direction, strength: float) -> Edited:
        """Strength 0 is the photograph. Other strengths are factors on the choice, and have the mask, of strength 1."""
        source, params = prepared.source, self.params
        if strength == 0:
            return Edited(source.image, s=source.s)
        move = masked_delta(self.networks, source, direction, params, 1.0)

        def draw(amounts: Tensor) -> tuple[Tensor, Tensor]:
            """s [B,S] and images [B,3,R,R] of strengths [B]."""
            s = clamped(self.networks, source, source.s + amounts[:, None] * move, params.max_sigma)
            edited = self.networks.generator.synthesis(s, source.inversion.w_plus)
            return s, with_detail(source.image, prepared.unedited, edited, params.detail_decay)

        def progress(images: Tensor) -> Tensor:
            """Distance [B] of images from the source along the direction in CLIP's space."""
            after = F.normalize(self.networks.clip.embed_images(images.clamp(-1, 1)), dim=1)
            return (after - F.normalize(source.clip, dim=1)) @ direction.delta

        candidates = source.s.new_tensor(params.candidate_strengths)
        rows = torch.arange(len(source), device=source.s.device)
        drawn = [draw(amount.expand(len(source))) for amount in candidates]
        chosen = weakest(torch.stack([progress(images) for _, images in drawn]), params.clip_progress)
        s, images = (torch.stack(each)[chosen, rows] for each in zip(*drawn, strict=True))
        mask = None if params.region_share is None else region_mask(progress, source.image, images, params.region_share)
        if strength != 1:  # 1 has been drawn
            s, images = draw(strength * candidates[chosen])
        if mask is not None:
            images = torch.lerp(source.image, images, mask)
        evaluations = len(candidates) + 1 + (strength != 1)
        return Edited(images, s=s, mask=mask, strengths=candidates[chosen], evaluations=evaluations)


def weakest(progress: Tensor, share: float) -> Tensor:
    """Index [B] of the first candidate with `share` of the best one's progress; 0 where there is no progress at all.

    progress: [C,B] of C candidates, from weak to strong
    """
    return (progress >= share * progress.amax(dim=0).clamp(min=0)).float().argmax(dim=0)


def with_detail(photo: Tensor, unedited: Tensor, edited: Tensor, decay: float) -> Tensor:
    """The generator's edited images plus the detail that `unedited` lacks of the photographs, where the edit is small.

    photo, unedited, edited: [B,3,R,R] in [-1,1]
    decay: change of any colour, averaged over its surroundings, at which 1/e of the detail is left
    """
    change = (edited - unedited).abs().amax(dim=1, keepdim=True)
    reach = max(1, photo.shape[-1] // BLUR)
    change = F.pad(change, [reach] * 4, mode="replicate")
    for window in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        change = F.avg_pool2d(change, window, stride=1)
    left = torch.exp(-((change / decay) ** 2))
    return torch.lerp(edited, photo, left) + left * (edited - unedited)  # exactly the photo where nothing changes


def region_mask(progress: Callable[[Tensor], Tensor], photo: Tensor, edited: Tensor, share: float) -> Tensor:
    """Soft mask [B,1,R,R] in [0,1] of the fewest regions that make up `share` of an edit's progress along the text.

    The progress from photo to edit is attributed to regions by integrated gradients over STEPS images (Sundararajan et
    al., "Axiomatic attribution for deep networks"); negative attributions count as 0. Regions next to a chosen one
    belong to the mask too. The mask is 0 where no region makes progress.

    progress: of images [B,3,R,R], [B], row by row
    photo, edited: [B,3,R,R] in [-1,1]
    """
    change = edited.clamp(-1, 1) - photo
    attribution = photo.new_zeros(len(photo), 1, CELLS, CELLS)
    for step in range(STEPS):
        weights = torch.full_like(attribution, (step + 0.5) / STEPS, requires_grad=True)
        with torch.enable_grad():
            between = photo + _enlarged(weights, photo) * change
            attribution += torch.autograd.grad(progress(between).sum(), weights)[0]
    most, order = attribution.flatten(1).clamp(min=0).sort(dim=1, descending=True, stable=True)
    chosen = (most > 0) & (most.cumsum(dim=1) - most < share * most.sum(dim=1, keepdim=True))
    mask = torch.zeros_like(most).scatter(1, order, chosen.to(most)).view_as(attribution)
    mask = F.max_pool2d(mask, 3, stride=1, padding=1)
    return _enlarged(F.avg_pool2d(F.pad(mask, [1] * 4, mode="replicate"), 3, stride=1), photo)


def _enlarged(cells: Tensor, images: Tensor) -> Tensor:
    """[B,1,CELLS,CELLS] in the size of images [B,3,R,R]: [B,1,R,R]."""
    return F.interpolate(cells, size=images.shape[-2:], mode="bilinear", align_corners=False)


build = DeltaEditGP
