"""Photographs -> w+: e4e's answer in one pass, then, for pictures that will be edited, some steps of descent from it,
and as many more for the detail that no codes hold.

The encoder's answer is close in kind but loses small things. Gradient steps bring them back, on the picture's error in
pixels and, as pixels alone end in a blur, in the encoder's own features (LPIPS needs a network of photographs). They
start where editing works well and are held near it, as in hybrid inversions (II2S; PTI's first phase).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.models.stylegan2 import Generator
from pipeline.runtime.precision import lowered
from pipeline.sampling import BatchParams, fixed_batches

BETAS = 0.9, 0.99
RATE, HOLD = 0.15, 0.005  # Adam's rate, and the price of leaving the encoder's answer, both in units of that answer
LOOK = 0.2  # weight of the features
FINE = 1 / 3  # of the usual size of features: what detail moves in; three times as much leaves noise on plain grounds


class Encodes(Protocol):
    """`pipeline.models.e4e.Encoder`, or what can stand in for it."""

    def __call__(self, images: Tensor, /) -> Tensor: ...
    def features(self, images: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class InvertParams(BatchParams):
    """refine: steps of descent for people who are edited, 0 for none. detail: pixels of the generator's layer that is
    given the detail of theirs, 0 for none of it."""

    refine: int
    detail: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine < 0:
            raise ValueError(f"{self.refine} steps of refinement: give 0 or more")
        if self.detail and (self.detail < 4 or self.detail & (self.detail - 1)):
            raise ValueError(f"detail of {self.detail} pixels: give 0, or a power of two from 4 to the picture's size")

    @property
    def seeks_detail(self) -> bool:
        return self.detail > 0 and self.refine > 0


def errors(generator: Generator, images: Tensor, w_plus: Tensor) -> Tensor:
    """Mean squared error [B] of pixels in [0,1] between images [B,3,R,R] and what w_plus [B,L,D] renders to."""
    return ((generator(w_plus).clamp(-1, 1) - images) / 2).square().mean(dim=(1, 2, 3))


def refine(encoder: Encodes, generator: Generator, images: Tensor, w_plus: Tensor, steps: int) -> Tensor:
    """w_plus [B,L,D] moved by `steps` of Adam towards rendering images [B,3,R,R], where that helped.

    Rows do not touch one another.
    """
    if not steps:
        return w_plus
    unit = (w_plus - generator.w_mean).square().mean(dim=(1, 2), keepdim=True).sqrt()
    found = _descended(encoder, generator, images, w_plus, unit, steps)
    better = errors(generator, images, found) < errors(generator, images, w_plus)
    return torch.where(better[:, None, None], found, w_plus)


def refine_s(
    encoder: Encodes, generator: Generator, images: Tensor, w_plus: Tensor, unit: Tensor, steps: int
) -> Tensor:
    """As `refine`, in the style space itself: the s [B,S] found, from that of w_plus [B,L,D].

    unit [S]: how far style channels differ from person to person. What turns features into colours keeps w_plus.
    """

    def draw(s: Tensor) -> Tensor:
        return generator.synthesis(s, w_plus)

    def error(s: Tensor) -> Tensor:
        return (draw(s).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))

    s = generator.styles(w_plus)
    found = _descended(encoder, draw, images, s, unit, steps)
    return torch.where((error(found) < error(s))[:, None], found, s)


def lacking(encoder: Encodes, generator: Generator, images: Tensor, w_plus: Tensor, size: int, steps: int) -> Tensor:
    """What w_plus [B,L,D] lack of images [B,3,R,R]: `Detail.added` [B,C,size,size], by `steps` of descent from none.

    Zeros where that did not help.
    """
    s = generator.styles(w_plus)
    with torch.no_grad():
        plain, below = generator.features(size, s, w_plus)

    def draw(added: Tensor) -> Tensor:
        return generator.onwards(size, plain + added, below, s, w_plus)

    def error(added: Tensor) -> Tensor:
        return (draw(added).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))

    none, unit = torch.zeros_like(plain), FINE * plain.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    found = _descended(encoder, draw, images, none, unit, steps)
    with torch.no_grad():
        return torch.where((error(found) < error(none))[:, None, None, None], found, none)


def _descended(
    encoder: Encodes, draw: Callable[[Tensor], Tensor], images: Tensor, start: Tensor, unit: Tensor, steps: int
) -> Tensor:
    """Codes [B,...] from `start` towards drawing images [B,3,R,R]; a step of `unit`, [...] or one each, is usual."""
    with torch.no_grad(), lowered(images.device):
        wanted = encoder.features(images)
    with torch.enable_grad():
        moved = torch.zeros_like(start, requires_grad=True)
        mean, square = torch.zeros_like(start), torch.zeros_like(start)
        for step in range(steps):
            with lowered(images.device):
                picture = draw(start + unit * moved)
                seen = encoder.features(picture)
            wrong = (picture - images).square().mean(dim=(1, 2, 3)).sum()
            for one, other in zip(seen, wanted, strict=True):
                wrong = wrong + LOOK * (1 - (one * other).sum(dim=1).mean(dim=(1, 2))).sum()
            (slope,) = torch.autograd.grad(
                wrong + HOLD * moved.square().mean(dim=tuple(range(1, moved.dim()))).sum(), moved
            )
            with torch.no_grad():  # Adam by hand: torch.optim would import its compiler, seconds in `deltaspace edit`
                rate = RATE * min(1.0, 2 * (1 - step / steps)) / (1 - BETAS[0] ** (step + 1))
                mean.lerp_(slope, 1 - BETAS[0])
                square.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
                spread = (square.sqrt() / math.sqrt(1 - BETAS[1] ** (step + 1))).add_(1e-8)
                moved.addcdiv_(mean, spread, value=-rate)
    return start + unit * moved.detach()


@torch.no_grad()
def details(encoder: Encodes, generator: Generator, photos: Tensor, w_plus: Tensor, params: InvertParams) -> Tensor:
    """What w_plus [N,L,D] lack of photos [N,3,R,R]: `Detail.added` [N,C,r,r], on the CPU in float16, as artefacts hold
    it."""
    device = generator.w_mean.device

    def step(images: Tensor, codes: Tensor) -> tuple[Tensor]:
        found = lacking(encoder, generator, images.to(device), codes.to(device), params.detail, params.refine)
        return (found.half().cpu(),)

    return fixed_batches(step, params.batch, photos, w_plus)[0]


@torch.no_grad()
def invert(encoder: Encodes, generator: Generator, photos: Tensor, batch: int, steps: int = 0) -> tuple[Tensor, Tensor]:
    """photos [N,3,R,R] -> w_plus [N,L,D] and the inversion error [N], both on the CPU."""
    device = generator.w_mean.device

    def step(images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(device)
        w_plus = refine(encoder, generator, images, encoder(images), steps)
        return w_plus.cpu(), errors(generator, images, w_plus).cpu()

    return fixed_batches(step, batch, photos)
