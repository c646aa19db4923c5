"""StyleMC (Kocasari et al. 2022): one direction in s per text, found in seconds on a few generated people.

Plain descent from zero on the sum of the people's CLIP distances, the same direction added to all; channels whose slope
keeps changing its sign from batch to batch are left out. The first convolution and those beyond 64 pixels stay, as in
the released code. Pictures are rendered whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline import sampling
from pipeline.editors._clip_loss import distance
from pipeline.editors._edit_direction import clip_target
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "baseline"
NEEDS = ("generator", "clip")
LAYERS = slice(1, 9)  # style convolutions that move: those of 8 to 64 pixels
GATHERED = 2  # batches per step


@dataclass(frozen=True)
class Params:
    """strength: factor on the edit. power: on the direction that was found. images, psi, seed: the people it is found
    on, and their truncation. batch, lr: of the descent. identity: weight of the identity term."""

    strength: float
    power: float
    images: int
    psi: float
    batch: int
    lr: float
    identity: float
    seed: int


@dataclass(frozen=True)
class StyleMC:
    backbones: Backbones
    params: Params

    @torch.enable_grad()
    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction, own, generator = clip_target(self.backbones, condition), self.params, self.backbones.generator
        w = sampling.sample_w(generator, range(own.images), own.seed, own.psi).to(self.backbones.device)
        delta_s = torch.zeros(generator.layout.size, device=w.device, requires_grad=True)
        gathered, last, flips = (torch.zeros_like(delta_s) for _ in range(3))
        batches = w.split(own.batch)
        for number, w_plus in enumerate(map(generator.repeat, batches), start=1):
            s = generator.styles(w_plus)
            far = distance(
                self.backbones,
                generator.synthesis(s + delta_s, w_plus),
                direction.data["target"],
                own.identity,
                lambda s=s, w_plus=w_plus: generator.synthesis(s, w_plus),
            )
            (slope,) = torch.autograd.grad(far.sum(), delta_s)
            flips += slope * last < 0
            gathered, last = gathered + slope, slope
            if number % GATHERED == 0 or number == len(batches):
                delta_s = (delta_s - own.lr * gathered).detach().requires_grad_()
                gathered = torch.zeros_like(gathered)
        dims = generator.layout.dims
        first, end = sum(dims[: LAYERS.start]), sum(dims[: LAYERS.stop])
        steady = flips <= len(batches) / 4
        steady[:first] = steady[end:] = False
        return Direction(condition, direction.delta, {"delta_s": torch.where(steady, delta_s.detach(), 0.0)})

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        s = source.s + strength * self.params.power * direction.data["delta_s"]
        return Edited(self.backbones.generator.synthesis(s, source.w_plus, detail=source.detail), s=s)


def build(backbones: Backbones, params: Params) -> StyleMC:
    return StyleMC(backbones, params)
