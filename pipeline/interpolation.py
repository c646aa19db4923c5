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
class Endpoint:
    """End of an interpolation: an image in terms of the diffusion model.

    noise: of the image's inversion.
    s: style [1,S] that it is sampled under.
    source_style: style [1,S] that it was inverted under; another one than s after an edit.
    """

    noise: Sampled
    s: Tensor
    source_style: Tensor


def endpoint(
    editor: WholeImageEditor, prepared: Inverted, direction: Direction | None = None, strength: float = 1.0
) -> Endpoint:
    """Endpoint of an inverted image, or of its edit.

    editor, prepared: a diffusion editor, and one image [1,3,R,R] as its `prepare` gives it.
    direction, strength: the edit; None for the image itself.
    """
    source = prepared.source
    s = source.s if direction is None else editor.moved(source, direction, strength)
    return Endpoint(prepared.noise, s, source.s)


def slerp(start: Tensor, stop: Tensor, weight: float) -> Tensor:
    """Spherical interpolation between rows of start and stop [B,...]; linear where the angle is almost 0.

    weight: 0 gives `start`, 1 gives `stop`.
    """
    one, other = start.flatten(1), stop.flatten(1)
    angle = torch.arccos(torch.cosine_similarity(one, other, dim=1).clamp(-1, 1))[:, None]
    sine = angle.sin()
    curved = ((1 - weight) * angle).sin() / sine * one + (weight * angle).sin() / sine * other
    return torch.where(sine > 1e-4, curved, torch.lerp(one, other, weight)).view_as(start)


@torch.no_grad()
def between(editor: WholeImageEditor, start: Endpoint, stop: Endpoint, weights: Sequence[float]) -> Tensor:
    """Interpolated images [K,3,R,R], one per weight: 0 is `start`, 1 is `stop`."""
    images, edited = [], any(not torch.equal(end.s, end.source_style) for end in (start, stop))
    for weight in weights:
        pairs = zip(start.noise.path, stop.noise.path, strict=True)
        path = tuple(slerp(one, other, weight) for one, other in pairs)
        noise = Sampled(slerp(start.noise.x, stop.noise.x, weight), start.noise.evaluations, path)
        source_style = torch.lerp(start.source_style, stop.source_style, weight) if edited else None
        images.append(editor.sample(noise, torch.lerp(start.s, stop.s, weight), source_style).x)
    return torch.cat(images).clamp(-1, 1)


@torch.no_grad()
def mixed(editor: WholeImageEditor, content: Endpoint, style: Endpoint, levels: Collection[str]) -> Tensor:
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
