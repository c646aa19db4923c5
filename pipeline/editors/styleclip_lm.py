"""StyleCLIP's latent mapper (Patashnik et al. 2021, section 5): one small network per text moves w+, level by level.

Fitted on generated people, which is all the codes that weights alone give; Adam in place of Ranger. PixelNorm runs over
the features of every row: the released code's runs over the rows of a level, of which generated codes have equal ones,
and would leave signs. The network of a text is its direction's `data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline import sampling
from pipeline.delta_mapper import Stack
from pipeline.editors._clip_loss import distance
from pipeline.editors._edit_direction import clip_target
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

KIND = "baseline"
NEEDS = ("generator", "clip")
PEOPLE = {"default": 64, "full": 500}  # test people; what is dear is to fit a prompt
SCALE = 0.1  # of the network's answer, in units of w


@dataclass(frozen=True)
class Params:
    """strength: factor on delta_w_plus. steps, batch, lr: of Adam on the network. l2: price of the mean squared
    delta_w_plus. identity: weight of the identity term. seed: of the people and of the network at first."""

    strength: float
    steps: int
    batch: int
    lr: float
    l2: float
    identity: float
    seed: int


class LevelsMapper(nn.Module):
    """w_plus [B,L,D] -> delta_w_plus [B,L,D]: a stack for each level, whose rows it moves one by one.

    split: rows [0, a) are coarse, [a, b) medium, the rest fine; a level without rows has no stack.
    """

    def __init__(self, count: int, dim: int, split: tuple[int, int]) -> None:
        super().__init__()
        ends = (0, *(min(end, count) for end in split), count)
        self.rows = [end - start for start, end in zip(ends, ends[1:]) if end > start]
        self.levels = nn.ModuleList(Stack(dim, dim, norm=True) for _ in self.rows)

    def forward(self, w_plus: Tensor) -> Tensor:
        parts = zip(self.levels, w_plus.split(self.rows, dim=1))
        return SCALE * torch.cat([level(part.flatten(0, 1)).view_as(part) for level, part in parts], dim=1)


@dataclass(frozen=True)
class LatentMapper:
    backbones: Backbones
    params: Params

    @torch.enable_grad()
    def fit(self, condition: TextPair | ImagePair) -> Direction:
        direction, own, generator = clip_target(self.backbones, condition), self.params, self.backbones.generator
        people = range(own.steps * own.batch)  # nobody twice
        w = sampling.sample_w(generator, people, own.seed, truncation=1.0).to(self.backbones.device)
        mapper = self._network()
        adam = torch.optim.Adam(mapper.parameters(), lr=own.lr)
        for w_plus in map(generator.repeat, w.split(own.batch)):
            move = mapper(w_plus)
            far = distance(
                self.backbones,
                generator(w_plus + move),
                direction.data["target"],
                own.identity,
                lambda w_plus=w_plus: generator(w_plus),
            )
            adam.zero_grad()
            (far.mean() + own.l2 * move.square().mean()).backward()
            adam.step()
        weights = {name: value.detach() for name, value in mapper.named_parameters()}
        return Direction(condition, direction.delta, weights)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        generator, network = self.backbones.generator, self._network()
        w_plus = source.w_plus + strength * functional_call(network, direction.data, (source.w_plus,))
        s = generator.styles(w_plus)
        return Edited(generator.synthesis(s, w_plus, detail=source.detail), s=s)

    def _network(self) -> LevelsMapper:
        """The network as every fit begins; row k + 1 of w+ is the last that layer k of the generator looks at."""
        generator = self.backbones.generator
        coarse, medium = generator.layout.split
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.params.seed)
            network = LevelsMapper(generator.num_ws, generator.style_dim, (coarse + 1, medium + 1))
        return network.to(self.backbones.device)


def build(backbones: Backbones, params: Params) -> LatentMapper:
    return LatentMapper(backbones, params)
