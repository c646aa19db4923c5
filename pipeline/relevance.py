"""The relevance matrix: what each style channel does, in CLIP's words (StyleCLIP global directions, section 6).

Row c is the mean change of the picture's embedding when channel c goes from mean - alpha sigma to mean + alpha sigma.
The released script writes those values into the array it reads next, so that all earlier channels stay at their mean;
here every picture starts from a true copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clip import Clip
from pipeline.generator import Generator


@dataclass(frozen=True)
class RelevanceParams:
    """Section `relevance` of params.yaml. images: pictures that each channel is tried on. alpha: in sigmas.
    psi: truncation of those pictures."""

    images: int
    alpha: float
    psi: float
    seed: int


@dataclass(frozen=True)
class Probe:
    """Everything a worker needs to compute rows of the matrix."""

    embed: Callable[[Tensor, Tensor], Tensor]  # s [B,S], w_plus [B,L,D] -> [B,E]
    s: Tensor  # [N,S]
    w_plus: Tensor  # [N,L,D]
    low: Tensor  # [S]
    high: Tensor  # [S]


def probe(generator: Generator, clip: Clip, mean: Tensor, std: Tensor, params: RelevanceParams) -> Probe:
    """The pictures to try the channels on. mean, std [S]: statistics of s."""
    z = torch.randn(params.images, generator.style_dim, generator=torch.Generator().manual_seed(params.seed))
    with torch.no_grad():
        w_plus = generator.repeat(generator.truncate(generator.mapping(z.to(mean.device)), params.psi))
        s = generator.styles(w_plus)

    def embed(styles: Tensor, codes: Tensor) -> Tensor:
        return clip.embed_images(generator.synthesis(styles, codes))

    return Probe(embed, s, w_plus, mean - params.alpha * std, mean + params.alpha * std)


@torch.no_grad()
def rows(probe: Probe, channels: range) -> Tensor:
    """Rows `channels` of the matrix [len(channels), E], each a mean of unit differences, of unit length itself."""
    result = []
    for channel in channels:
        low, high = probe.s.clone(), probe.s.clone()
        low[:, channel], high[:, channel] = probe.low[channel], probe.high[channel]
        ends = probe.embed(torch.cat([low, high]), torch.cat([probe.w_plus, probe.w_plus]))
        before, after = F.normalize(ends, dim=1).chunk(2)
        result.append(F.normalize(F.normalize(after - before, dim=1, eps=1e-8).mean(dim=0), dim=0, eps=1e-8))
    return torch.stack(result)
