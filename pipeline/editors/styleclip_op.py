"""StyleCLIP's optimisation (Patashnik et al. 2021, section 4): every person's code descends towards every text anew.

Adam on w+ or s, from the person, with the rate of StyleGAN2's projector (Karras et al. 2020, appendix D); the loss is
eq. 1: CLIP distance of picture and text, squared distance of the codes, and an identity term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pipeline.editors._clip_loss import distance
from pipeline.editors._edit_direction import clip_target
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "baseline"
NEEDS = ("generator", "clip")
PEOPLE = {"default": 8, "full": 100}  # test people: an edit costs three passes per step
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps


@dataclass(frozen=True)
class Params:
    """strength: factor on the step that was found. space: what descends. steps, lr: of Adam. l2: price of a squared
    unit of the code. identity: weight of the identity term; the authors' default is 0 as well."""

    strength: float
    space: Literal["w_plus", "s"]
    steps: int
    lr: float
    l2: float
    identity: float


@dataclass(frozen=True)
class Optimisation:
    backbones: Backbones
    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_target(self.backbones, condition)

    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        """Rows do not touch one another: the sum of people's losses, and a rate for every number of a code."""
        move, evaluations = torch.zeros_like(source.s if self.params.space == "s" else source.w_plus), 1
        if strength:
            move, evaluations = self._descend(source, direction.data["target"], move), 1 + self.params.steps
        with torch.no_grad():
            s, w_plus = self._moved(source, strength * move)
            images = self.backbones.generator.synthesis(s, w_plus, detail=source.detail)
            return Edited(images, s=s, evaluations=evaluations)

    @torch.enable_grad()
    def _descend(self, source: Source, target: Tensor, start: Tensor) -> Tensor:
        """The step that lowers the loss, in the shape of `start`."""
        own, move = self.params, start.clone().requires_grad_()
        adam = torch.optim.Adam([move])
        for step in range(own.steps):
            images = self.backbones.generator.synthesis(*self._moved(source, move), detail=source.detail)
            far = distance(self.backbones, images, target, own.identity, lambda: source.image)
            loss = far + own.l2 * move.square().flatten(1).sum(dim=1)
            adam.param_groups[0]["lr"] = own.lr * ramp(step / own.steps)
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
        return move.detach()

    def _moved(self, source: Source, move: Tensor) -> tuple[Tensor, Tensor]:
        """(s [B,S], w_plus [B,L,D]) after a step in either space."""
        if self.params.space == "s":
            return source.s + move, source.w_plus
        w_plus = source.w_plus + move
        return self.backbones.generator.styles(w_plus), w_plus


def ramp(done: float) -> float:
    """The rate, as a share of the highest, when `done` of all steps are: a rise in a line, a fall along a cosine."""
    fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / RAMP_DOWN))
    return fall * min(1.0, done / RAMP_UP)


def build(backbones: Backbones, params: Params) -> Optimisation:
    return Optimisation(backbones, params)
