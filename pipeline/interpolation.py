"""Between two pictures, or two edits of one, and a picture in the style of another (DeltaEdit section 5.3).

Style codes are mixed, linearly or level by level, and so is the noise that the pictures stand on, along a sphere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.models.ode_solvers import Sampled
from pipeline.runtime.errors import InputError, nearest
from pipeline.values import Direction, Source

if TYPE_CHECKING:
    from pipeline.editors._diffusion import Walker
    from pipeline.models.stylespace import StyleLayout


@dataclass(frozen=True)
class End:
    """A picture as the diffusion model draws it: its noise, the style s [1,S], and own [1,S], of the encoding."""

    noise: Sampled
    s: Tensor
    own: Tensor


def end(walker: Walker, source: Source, direction: Direction | None = None, strength: float = 1.0) -> End:
    """A picture itself, or its edit."""
    s = source.s if direction is None else walker.moved(source, direction, strength)
    return End(walker.noise(source), s, source.s)


def slerp(start: Tensor, stop: Tensor, weight: float) -> Tensor:
    """Along the great circle from one to the other, [B,...] each, row by row; a straight line where they agree."""
    one, other = start.flatten(1), stop.flatten(1)
    angle = torch.arccos(torch.cosine_similarity(one, other, dim=1).clamp(-1, 1))[:, None]
    sine = angle.sin()
    curved = ((1 - weight) * angle).sin() / sine * one + (weight * angle).sin() / sine * other
    return torch.where(sine > 1e-4, curved, torch.lerp(one, other, weight)).view_as(start)


@torch.no_grad()
def between(walker: Walker, start: End, stop: End, weights: Sequence[float]) -> Tensor:
    """Pictures [K,3,R,R] on the way: weight 0 is `start`, 1 is `stop`."""
    found, edited = [], any(not torch.equal(end.s, end.own) for end in (start, stop))
    for weight in weights:
        pairs = zip(start.noise.path, stop.noise.path, strict=True)
        path = tuple(slerp(one, other, weight) for one, other in pairs)
        noise = Sampled(slerp(start.noise.x, stop.noise.x, weight), start.noise.evaluations, path)
        own = torch.lerp(start.own, stop.own, weight) if edited else None
        found.append(walker.drawn(noise, torch.lerp(start.s, stop.s, weight), own).x)
    return torch.cat(found).clamp(-1, 1)


@torch.no_grad()
def mixed(walker: Walker, content: End, style: End, levels: Collection[str]) -> Tensor:
    """The picture [1,3,R,R] of the content's noise under its own s, but for `levels`, which are those of the style."""
    layout: StyleLayout = walker.backbones.generator.layout
    s = content.s.clone()
    for level in levels:
        if level not in layout.levels:
            raise InputError(
                f"there is no level '{level}'{nearest(level, layout.levels)}: there are {', '.join(layout.levels)}"
            )
        s[:, layout.levels[level]] = style.s[:, layout.levels[level]]
    return walker.drawn(content.noise, s).x.clamp(-1, 1)
