"""StyleMC (Kocasari et al. 2022): one direction in s per text, fitted in seconds on a few generated images.

Plain gradient descent from zero on the sum of CLIP distances; channels whose gradient keeps changing its sign from
batch to batch are left out. The first convolution and those above 64 pixels stay, as in the released code. Images are
rendered in full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pipeline import sampling
from pipeline.editors._clip_loss import clip_loss
from pipeline.editors._edit_direction import NetworkEditor, clip_target
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

KIND = "baseline"
NEEDS = ("generator", "clip")
LAYERS = slice(1, 9)  # style convolutions that move: those of 8 to 64 pixels
BATCHES_PER_STEP = 2


@dataclass(frozen=True)
class Params:
    """strength: factor on the edit. power: factor on the direction. images, psi, seed: generated images that it is
    fitted on, and their truncation. batch, lr: of the descent. identity: weight of the identity loss."""

    strength: float
    power: float
    images: int
    psi: float
    batch: int
    lr: float
    identity: float
    seed: int


class StyleMC(NetworkEditor):
    """StyleMC."""

    params: Params

    @torch.enable_grad()
    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction, params, generator = clip_target(self.networks, condition), self.params, self.networks.generator
        w = sampling.sample_w(generator, range(params.images), params.seed, params.psi).to(self.networks.device)
        delta_s = torch.zeros(generator.layout.size, device=w.device, requires_grad=True)
        total, last, flips = (torch.zeros_like(delta_s) for _ in range(3))
        batches = w.split(params.batch)
        for number, w_plus in enumerate(map(generator.repeat, batches), start=1):
            s = generator.styles(w_plus)
            loss = clip_loss(
                self.networks,
                generator.synthesis(s + delta_s, w_plus),
                direction.data["target"],
                params.identity,
                lambda s=s, w_plus=w_plus: generator.synthesis(s, w_plus),
            )
            (gradient,) = torch.autograd.grad(loss.sum(), delta_s)
            flips += gradient * last < 0
            total, last = total + gradient, gradient
            if number % BATCHES_PER_STEP == 0 or number == len(batches):
                delta_s = (delta_s - params.lr * total).detach().requires_grad_()
                total = torch.zeros_like(total)
        dims = generator.layout.dims
        first, end = sum(dims[: LAYERS.start]), sum(dims[: LAYERS.stop])
        steady = flips <= len(batches) / 4
        steady[:first] = steady[end:] = False
        return replace(direction, data={"delta_s": torch.where(steady, delta_s.detach(), 0.0)})

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source = prepared.source
        s = source.s + strength * self.params.power * direction.data["delta_s"]
        return Edited(source.decode(self.networks.generator, s), s=s)


build = StyleMC
