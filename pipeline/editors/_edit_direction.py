"""Directions in CLIP's space, and the mapper's changes of style codes along them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import delta_mapper, sampling
from pipeline.editors import Editor
from pipeline.relevance import channel_relevance
from pipeline.values import Direction, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Networks


@dataclass(frozen=True)
class NetworkEditor(Editor):
    """Editor on a domain's networks whose direction is the CLIP difference of the condition."""

    networks: Networks
    params: Any

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.networks, condition)


@dataclass(frozen=True, kw_only=True)
class ChannelMask:
    """Settings of the style channels that an edit moves; Params of editors that mask channels inherit them.

    threshold: channels with |relevance . delta_t| below it stay (DeltaEdit, section 3.3). The others are not in the
        paper.
    same_sign: channels that delta_s moves against their own effect stay too: they compensate side effects of channels
        that the mask may have removed
    top_share: only the most relevant channels that make up this share of the effect of delta_s along the text move;
        None: all. Texts differ in how many channels they concern, and how strongly
    max_sigma: see `clamped`
    delta_ridge: see `attainable`; None: the mapper gets the CLIP difference as it is

    Raises ValueError for a share outside (0, 1], and for a max_sigma or delta_ridge of 0 or less.
    """

    SHARED: ClassVar[str] = "channel_mask"  # section of params.yaml for what an editor's own section leaves out
    threshold: float
    same_sign: bool = False
    top_share: float | None = None
    max_sigma: float | None = None
    delta_ridge: float | None = None

    def __post_init__(self) -> None:
        if self.top_share is not None and not 0 < self.top_share <= 1:
            raise ValueError(f"top_share is {self.top_share}: above 0 and at most 1 is expected, or null")
        if self.max_sigma is not None and not self.max_sigma > 0:
            raise ValueError(f"max_sigma is {self.max_sigma}: more than 0 is expected, or null")
        if self.delta_ridge is not None and not self.delta_ridge > 0:
            raise ValueError(f"delta_ridge is {self.delta_ridge}: more than 0 is expected, or null")


# ---------------------------------------------------------------- directions


@torch.no_grad()
def clip_direction(networks: Networks, condition: TextPair | ImagePair) -> Direction:
    """Direction of a condition: delta [E], target minus source in CLIP's space, not normalised."""
    if isinstance(condition, TextPair):
        delta = networks.clip.text_delta(condition.source, condition.target, networks.domain.templates)
    else:
        ends = torch.cat([condition.source, condition.target]).to(networks.device)
        before, after = F.normalize(networks.clip.embed_images(ends), dim=1)
        delta = after - before
    return Direction(condition, delta)


@torch.no_grad()
def clip_target(networks: Networks, condition: TextPair | ImagePair) -> Direction:
    """Direction of a condition, and as `data["target"]` the unit CLIP embedding [E] of its target alone."""
    direction = clip_direction(networks, condition)
    if isinstance(condition, TextPair):
        target = networks.clip.text_feature(condition.target, tuple(networks.domain.templates))
    else:
        target = F.normalize(networks.clip.embed_images(condition.target.to(networks.device)), dim=1)[0]
    return replace(direction, data={"target": target})


@torch.no_grad()
def masked_direction(networks: Networks, direction: Direction, params: ChannelMask) -> Direction:
    """`direction` with the data that `masked_delta` needs; params: whose delta_ridge applies.

    data["relevance"]: relevance . delta [S]; takes seconds in a domain without a relevance matrix
    data["attainable"]: delta [E] for the mapper, see `attainable`; delta itself without a ridge, or without a matrix
    """
    data = {"relevance": channel_relevance(networks, direction.delta), "attainable": direction.delta}
    if params.delta_ridge is not None and not networks.absent("relevance"):
        data["attainable"] = attainable(networks.relevance, direction.delta, params.delta_ridge)
    return replace(direction, data=direction.data | data)


def attainable(relevance: Tensor, delta: Tensor, ridge: float) -> Tensor:
    """Part of a CLIP difference that style channels together can attain, by ridge regression on their relevance.

    Texts differ in ways that no two images do, and a mapper that was trained on images overrates those. Not in the
    paper.

    relevance: [S,E]
    delta: [E] or [B,E]
    ridge: times the mean of the diagonal of relevance' relevance (Hoerl and Kennard 1970)
    """
    rows = relevance.double()
    squares = rows.T @ rows
    added = ridge * squares.diagonal().mean() * torch.eye(len(squares), dtype=rows.dtype, device=rows.device)
    return (delta.double() @ torch.linalg.solve(squares + added, squares)).to(delta)


@torch.no_grad()
def global_direction(networks: Networks, direction: Direction, beta: float) -> Tensor:
    """StyleCLIP's global direction [S]: every channel by its relevance to the unit text direction.

    The most relevant channel moves by one standard deviation; channels whose relevance is below beta stay.
    """
    relevance = channel_relevance(networks, direction.delta) / direction.delta.norm().clamp(min=1e-5)
    relevant = torch.where(relevance.abs() < beta, torch.zeros_like(relevance), relevance)
    std = sampling.style_stats(networks)[1]
    return relevant / relevant.abs().max().clamp(min=1e-8) * std  # all zero where no channel is kept


# ---------------------------------------------------------------- changes of codes


@torch.no_grad()
def mapper_delta(networks: Networks, source: Source, delta: Tensor) -> Tensor:
    """delta_s [B,S] of the mapper for the source images and CLIP differences delta, [E] or [B,E], of any length."""
    condition = delta_mapper.condition(source.clip, F.normalize(delta, dim=-1, eps=1e-5))
    return networks.mapper(source.s, condition)


@torch.no_grad()
def masked_delta(
    networks: Networks, source: Source, direction: Direction, params: ChannelMask, strength: float
) -> Tensor:
    """strength * delta_s [B,S] of the mapper, zero in the channels that the condition does not concern.

    direction: of `masked_direction`
    params: rules by which channels stay
    """
    delta_s, relevance = mapper_delta(networks, source, direction.data["attainable"]), direction.data["relevance"]
    moved = torch.where(relevance.abs() >= params.threshold, strength * delta_s, torch.zeros_like(delta_s))
    if params.same_sign:
        moved = torch.where(delta_s * relevance > 0, moved, torch.zeros_like(moved))
    return moved if params.top_share is None else moved * top_channels(delta_s * relevance, relevance, params.top_share)


def top_channels(effect: Tensor, relevance: Tensor, share: float) -> Tensor:
    """Mask [B,S] of the most relevant channels that make up `share` of the effect of all.

    effect: [B,S] of each channel along the text; negative ones count as 0
    relevance: [S]
    """
    order = relevance.abs().argsort(descending=True, stable=True)
    effect = effect[:, order].clamp(min=0)
    before = effect.cumsum(dim=1) - effect
    return (before < share * effect.sum(dim=1, keepdim=True))[:, order.argsort()]


def clamped(networks: Networks, source: Source, s: Tensor, max_sigma: float | None) -> Tensor:
    """Edited style codes s [B,S], clamped to max_sigma standard deviations from the mean; None: as they are.

    A channel that was farther out before the edit may stay there. Not in the paper: codes beyond did not occur in
    training, and give artefacts such as white glasses.
    """
    if max_sigma is None:
        return s
    mean, std = sampling.style_stats(networks)
    low, high = mean - max_sigma * std, mean + max_sigma * std
    return torch.clamp(s, torch.minimum(source.s, low), torch.maximum(source.s, high))


@torch.no_grad()
def moved_w_plus(networks: Networks, source: Source, direction: Direction, strength: float) -> Tensor:
    """w_plus [B,L,D] plus strength times the delta of the mapper of W+. No mask: relevance is of style channels."""
    delta, w_plus = F.normalize(direction.delta, dim=-1, eps=1e-5), source.inversion.w_plus
    change = networks.mapper_wplus(w_plus.flatten(1), delta_mapper.condition(source.clip, delta))
    return w_plus + strength * change.unflatten(1, w_plus.shape[1:])
