"""StyleCLIP's latent optimisation (Patashnik et al. 2021, section 4): gradient descent for every image and text.

Adam on w+ or s from the inversion, with the learning rate of StyleGAN2's projector (Karras et al. 2020, appendix D).
The loss is eq. 1: CLIP distance of image and text, squared distance of the codes, and identity loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.editors._clip_loss import clip_loss
from pipeline.editors._edit_direction import NetworkEditor, clip_target
from pipeline.values import Direction, Edited, ImagePair, Prepared, Source, TextPair

KIND = "baseline"
NEEDS = ("generator", "clip")
TEST_IMAGES = {"default": 8, "full": 100}  # an edit takes three passes per step
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps


@dataclass(frozen=True)
class Params:
    """strength: factor on the change of the code. space: of that code. steps, lr: of Adam. l2: weight of a squared unit
    of the change. identity: weight of the identity loss; the authors' default is 0 as well."""

    strength: float
    space: Literal["w_plus", "s"]
    steps: int
    lr: float
    l2: float
    identity: float


class LatentOptimisation(NetworkEditor):
    """StyleCLIP-OP."""

    params: Params

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_target(self.networks, condition)

    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        """Rows are independent: losses are summed, and Adam has a rate for every number of a code."""
        source = prepared.source
        change = torch.zeros_like(source.s if self.params.space == "s" else source.inversion.w_plus)
        evaluations = 1
        if strength:
            change = self._descend(source, direction.data["target"], change)
            evaluations = 1 + self.params.steps
        with torch.no_grad():
            s, w_plus = self._moved(source, strength * change)
            return Edited(source.decode(self.networks.generator, s, w_plus), s=s, evaluations=evaluations)

    @torch.enable_grad()
    def _descend(self, source: Source, target: Tensor, start: Tensor) -> Tensor:
        """Change of the code that lowers the loss, in the shape of `start`."""
        params, change = self.params, start.clone().requires_grad_()
        adam = torch.optim.Adam([change])
        for step in range(params.steps):
            images = source.decode(self.networks.generator, *self._moved(source, change))
            distance = clip_loss(self.networks, images, target, params.identity, lambda: source.image)
            loss = distance + params.l2 * change.square().flatten(1).sum(dim=1)
            adam.param_groups[0]["lr"] = params.lr * ramp(step / params.steps)
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
        return change.detach()

    def _moved(self, source: Source, change: Tensor) -> tuple[Tensor, Tensor]:
        """(s [B,S], w_plus [B,L,D]) after a change of either."""
        if self.params.space == "s":
            return source.s + change, source.inversion.w_plus
        w_plus = source.inversion.w_plus + change
        return self.networks.generator.styles(w_plus), w_plus


def ramp(done: float) -> float:
    """Learning rate as a share of the highest: linear rise, cosine fall. done: share of all steps."""
    fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / RAMP_DOWN))
    return fall * min(1.0, done / RAMP_UP)


build = LatentOptimisation
