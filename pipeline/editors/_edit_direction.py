"""What several editors share: a condition in CLIP's space, and the mapper's answer to it, masked or not."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.relevance import relevance_mask
from pipeline.delta_mapper import condition as told
from pipeline.values import Direction, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

Made = TypeVar("Made")
REMEMBERED = 6  # things known of people that are kept for their next edit; editors with masks need three each


class Known:
    """What was computed of the people who were edited last, such as their noise, for their next edits."""

    def __init__(self) -> None:
        self.things: OrderedDict[str, Any] = OrderedDict()

    def once(self, what: str, source: Source, make: Callable[[], Made]) -> Made:
        """What `make` gives, computed once for all edits of the same people."""
        seen = hashlib.sha256(what.encode())
        for part in (source.image, source.w_plus, source.s):
            seen.update(part.cpu().numpy().tobytes())
        key = seen.hexdigest()
        if key not in self.things:
            self.things[key] = make()
            if len(self.things) > REMEMBERED:
                self.things.popitem(last=False)
        self.things.move_to_end(key)
        return self.things[key]


@torch.no_grad()
def clip_direction(backbones: Backbones, condition: TextPair | ImagePair) -> Direction:
    """The direction that texts or pictures point to: delta [E], not normalised."""
    if isinstance(condition, TextPair):
        delta = backbones.direction_delta(condition.source, condition.target)
    else:
        ends = torch.cat([condition.source, condition.target]).to(backbones.device)
        before, after = F.normalize(backbones.clip.embed_images(ends), dim=1)
        delta = after - before
    return Direction(condition, delta)


def effect(backbones: Backbones, direction: Direction) -> Tensor:
    """relevance . delta [S], found once per direction: seconds, in a domain without a relevance matrix."""
    if "effect" not in direction.data:
        direction.data["effect"] = backbones.effect(direction.delta)
    return direction.data["effect"]


@torch.no_grad()
def attained(backbones: Backbones, direction: Direction, ridge: float | None) -> Tensor:
    """`attainable` of a direction's delta [E], found once; delta itself without a ridge, or a relevance matrix."""
    if ridge is None or backbones.absent("relevance"):
        return direction.delta
    if (name := f"attainable {ridge}") not in direction.data:
        direction.data[name] = attainable(backbones.relevance, direction.delta, ridge)
    return direction.data[name]


@torch.no_grad()
def clip_target(backbones: Backbones, condition: TextPair | ImagePair) -> Direction:
    """The direction, and as `data["target"]` the unit CLIP code [E] of where it leads, whatever it starts from."""
    direction = clip_direction(backbones, condition)
    if isinstance(condition, TextPair):
        target = backbones.clip.text_feature(condition.target, tuple(backbones.domain.templates))
    else:
        target = F.normalize(backbones.clip.embed_images(condition.target.to(backbones.device)), dim=1)[0]
    return Direction(condition, direction.delta, {"target": target})


@torch.no_grad()
def answered(backbones: Backbones, source: Source, delta: Tensor) -> Tensor:
    """delta_s [B,S] of the mapper for a difference of CLIP codes, [E] for all or [B,E], of any length."""
    return backbones.mapper(source.s, told(source.clip, F.normalize(delta, dim=-1, eps=1e-5)))


class ChannelMask(Protocol):
    """What params of an editor say of the channels that it moves.

    threshold: channels with |relevance . delta_t| below it stay (DeltaEdit 3.3). The rest is not in the paper. agree:
    so do those that delta_s moves against their own effect, which compensates for side effects of others that the mask
    may have taken away. share: so do all but the most relevant ones that make up this part of what delta_s does along
    the text; null: all. Texts differ in how many channels they concern, and how strongly. within: see `held`. ridge:
    see `attainable`; null: the mapper is told the difference, of texts or pictures, as it is.
    """

    @property
    def threshold(self) -> float: ...
    @property
    def agree(self) -> bool: ...
    @property
    def share(self) -> float | None: ...
    @property
    def within(self) -> float | None: ...
    @property
    def ridge(self) -> float | None: ...


@torch.no_grad()
def mapped(backbones: Backbones, source: Source, direction: Direction, params: ChannelMask, strength: float) -> Tensor:
    """strength * delta_s [B,S] of the mapper, zero in the channels the condition does not concern."""
    delta_s = answered(backbones, source, attained(backbones, direction, params.ridge))
    found = effect(backbones, direction)
    moved = relevance_mask(delta_s, found[:, None], torch.ones_like(found[:1]), params.threshold, strength)
    if params.agree:
        moved = torch.where(delta_s * found > 0, moved, torch.zeros_like(moved))
    return moved if params.share is None else moved * foremost(delta_s * found, found, params.share)


def attainable(relevance: Tensor, delta: Tensor, ridge: float) -> Tensor:
    """What style channels together can attain of a difference of CLIP codes: relevance [S,E], delta [E] or [B,E].

    Ridge regression (Hoerl and Kennard 1970) of delta on the rows of the matrix; `ridge` times the mean of the diagonal
    of relevance' relevance is added to it. Texts differ in ways that no two pictures do, of which a mapper that learnt
    from pictures makes much. Not in the paper.
    """
    rows = relevance.double()
    squares = rows.T @ rows
    added = ridge * squares.diagonal().mean() * torch.eye(len(squares), dtype=rows.dtype, device=rows.device)
    return (delta.double() @ torch.linalg.solve(squares + added, squares)).to(delta)


def foremost(does: Tensor, relevance: Tensor, share: float) -> Tensor:
    """The most relevant channels that make up `share` of what all of them do: [B,S] bool.

    does: [B,S], how far each moves along the text; nothing is made up by those that move against it. relevance: [S].
    """
    order = relevance.abs().argsort(descending=True, stable=True)
    does = does[:, order].clamp(min=0)
    before = does.cumsum(dim=1) - does
    return (before < share * does.sum(dim=1, keepdim=True))[:, order.argsort()]


@torch.no_grad()
def moved_w_plus(backbones: Backbones, source: Source, direction: Direction, strength: float) -> Tensor:
    """w_plus [B,L,D] moved by strength times the answer of the mapper of W+. Nothing is masked, since the relevance
    matrix speaks of style channels."""
    delta = F.normalize(direction.delta, dim=-1, eps=1e-5)
    change = backbones.mapper_wplus(source.w_plus.flatten(1), told(source.clip, delta))
    return source.w_plus + strength * change.unflatten(1, source.w_plus.shape[1:])


def held(backbones: Backbones, source: Source, s: Tensor, within: float | None) -> Tensor:
    """s [B,S] after an edit, no channel beyond `within` sigmas of its mean unless it was before; None: as it is.

    Not in the paper. What lies beyond, no picture of the training had: whites of eyes fill glasses, mouths shimmer.
    """
    if within is None:
        return s
    mean, std = backbones.s_stats
    return torch.clamp(s, torch.minimum(source.s, mean - within * std), torch.maximum(source.s, mean + within * std))


def check_mask(params: ChannelMask) -> None:
    """ValueError for a share that is none, and for a width or a ridge of nothing."""
    if params.share is not None and not 0 < params.share <= 1:
        raise ValueError(f"share is {params.share}: above 0 and at most 1 is expected, or null")
    if params.within is not None and not params.within > 0:
        raise ValueError(f"within is {params.within}: more than 0 sigmas are expected, or null")
    if params.ridge is not None and not params.ridge > 0:
        raise ValueError(f"ridge is {params.ridge}: more than 0 is expected, or null")


@torch.no_grad()
def global_direction(backbones: Backbones, direction: Direction, beta: float) -> Tensor:
    """[S]: every channel by its effect on the unit text, the most relevant one by one sigma; those below beta stay."""
    relevance = effect(backbones, direction) / direction.delta.norm().clamp(min=1e-5)
    kept = torch.where(relevance.abs() < beta, torch.zeros_like(relevance), relevance)
    return kept / kept.abs().max().clamp(min=1e-8) * backbones.s_std  # nothing kept: an edit that changes nothing
