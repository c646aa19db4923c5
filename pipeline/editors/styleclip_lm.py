"""StyleCLIP's latent mapper (Patashnik et al. 2021, section 5): one small network per text moves w+, level by level.

Fitted on generated images; Adam in place of Ranger. PixelNorm runs over the features of every row: in the released code
it runs over the rows of a level, which are equal for generated codes, so that only signs would remain. The weights of a
text's network are its direction's `data`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline import sampling
from pipeline.delta_mapper import Stack
from pipeline.editors._clip_loss import clip_loss
from pipeline.editors._edit_direction import NetworkEditor, clip_target
from pipeline.values import Direction, Edited, ImagePair, Prepared, TextPair

KIND = "baseline"
NEEDS = ("generator", "clip")
TEST_IMAGES = {"default": 64, "full": 500}  # fitting a prompt takes most of the time
SCALE = 0.1  # of the network's output, in units of w


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_w_plus. steps, batch, lr: of Adam. l2: weight of the mean squared delta_w_plus.
    identity: weight of the identity loss. seed: of the generated images and of the initial network."""

    strength: float
    steps: int
    batch: int
    lr: float
    l2: float
    identity: float
    seed: int


class LevelsMapper(nn.Module):
    """w_plus [B,L,D] -> delta_w_plus [B,L,D]: a stack per level, applied to each of its rows.

    split: rows [0, a) are coarse, [a, b) medium, the rest fine; a level without rows has no stack
    """

    def __init__(self, count: int, dim: int, split: tuple[int, int]) -> None:
        super().__init__()
        ends = (0, *(min(end, count) for end in split), count)
        self.rows = [end - start for start, end in zip(ends, ends[1:]) if end > start]
        self.levels = nn.ModuleList(Stack(dim, dim, norm=True) for _ in self.rows)

    def forward(self, w_plus: Tensor) -> Tensor:
        parts = zip(self.levels, w_plus.split(self.rows, dim=1))
        return SCALE * torch.cat([level(part.flatten(0, 1)).view_as(part) for level, part in parts], dim=1)


class LatentMapper(NetworkEditor):
    """StyleCLIP-LM."""

    params: Params

    @torch.enable_grad()
    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction, params, generator = clip_target(self.networks, condition), self.params, self.networks.generator
        rows = range(params.steps * params.batch)  # every image once
        w = sampling.sample_w(generator, rows, params.seed, truncation=1.0).to(self.networks.device)
        mapper = self._network()
        adam = torch.optim.Adam(mapper.parameters(), lr=params.lr)
        for w_plus in map(generator.repeat, w.split(params.batch)):
            move = mapper(w_plus)
            loss = clip_loss(
                self.networks,
                generator(w_plus + move),
                direction.data["target"],
                params.identity,
                lambda w_plus=w_plus: generator(w_plus),
            )
            adam.zero_grad()
            (loss.mean() + params.l2 * move.square().mean()).backward()
            adam.step()
        return replace(direction, data={name: value.detach() for name, value in mapper.named_parameters()})

    @torch.no_grad()
    def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
        source, generator, network = prepared.source, self.networks.generator, self._network()
        w_plus = source.inversion.w_plus
        w_plus = w_plus + strength * functional_call(network, direction.data, (w_plus,))
        s = generator.styles(w_plus)
        return Edited(source.decode(generator, s, w_plus), s=s)

    def _network(self) -> LevelsMapper:
        """The network before fitting. Layer k of the generator reads rows up to k + 1 of w+."""
        generator = self.networks.generator
        coarse, medium = generator.layout.split
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.params.seed)
            network = LevelsMapper(generator.num_ws, generator.style_dim, (coarse + 1, medium + 1))
        return network.to(self.networks.device)


build = LatentMapper
