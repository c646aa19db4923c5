"""Interpolation between images, or between edits of one, and style mixing (DeltaEdit, section 5.3).

Style codes are interpolated linearly, or mixed level by level; noise is interpolated along a sphere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.models.ode_solvers import Sampled
from pipeline.runtime.errors import InputError, nearest
from pipeline.values import Direction

if TYPE_CHECKING:
    from pipeline.editors._diffusion import Inverted, WholeImageEditor
    from pipeline.models.stylespace import StyleLayout


@dataclass(frozen=True)
class End:
    """An image in terms of the diffusion model: its noise, the style s [1,S] to sample it under, and its own [1,S]."""

    noise: Sampled
    s: Tensor
    own: Tensor


def end(editor: WholeImageEditor, prepared: Inverted, direction: Direction | None = None, strength: float = 1.0) -> End:
    """An inverted image itself, or its edit along a direction."""
    source = prepared.source
    s = source.s if direction is None else editor.moved(source, direction, strength)
    return End(prepared.noise, s, source.s)


def slerp(start: Tensor, stop: Tensor, weight: float) -> Tensor:
    """Spherical interpolation of [B,...], row by row; linear where the angle is almost 0."""
    one, other = start.flatten(1), stop.flatten(1)
    angle = torch.arccos(torch.cosine_similarity(one, other, dim=1).clamp(-1, 1))[:, None]
    sine = angle.sin()
    curved = ((1 - weight) * angle).sin() / sine * one + (weight * angle).sin() / sine * other
    return torch.where(sine > 1e-4, curved, torch.lerp(one, other, weight)).view_as(start)


@torch.no_grad()
def between(editor: WholeImageEditor, start: End, stop: End, weights: Sequence[float]) -> Tensor:
    """Interpolated images [K,3,R,R]: weight 0 is `start`, 1 is `stop`."""
    images, edited = [], any(not torch.equal(end.s, end.own) for end in (start, stop))
    for weight in weights:
        pairs = zip(start.noise.path, stop.noise.path, strict=True)
        path = tuple(slerp(one, other, weight) for one, other in pairs)
        noise = Sampled(slerp(start.noise.x, stop.noise.x, weight), start.noise.evaluations, path)
        own = torch.lerp(start.own, stop.own, weight) if edited else None
        images.append(editor.sample(noise, torch.lerp(start.s, stop.s, weight), own).x)
    return torch.cat(images).clamp(-1, 1)


@torch.no_grad()
def mixed(editor: WholeImageEditor, content: End, style: End, levels: Collection[str]) -> Tensor:
    """Image [1,3,R,R] of the content's noise and s, with the `levels` of the style's s.

    Raises InputError with the nearest name for an unknown level.
    """
    layout: StyleLayout = editor.networks.generator.layout
    s = content.s.clone()
    for level in levels:
        if level not in layout.levels:
            raise InputError(
                f"there is no level '{level}'{nearest(level, layout.levels)}: there are {', '.join(layout.levels)}"
            )
        s[:, layout.levels[level]] = style.s[:, layout.levels[level]]
    return editor.sample(content.noise, s).x.clamp(-1, 1)
