"""The relevance matrix: what each style channel does, in CLIP's words (StyleCLIP global directions, section 6).

Row c is the mean change of the picture's embedding when channel c goes from mean - alpha sigma to mean + alpha sigma
(`finite`), or its mean derivative (`reverse`: E backward passes per picture instead of 2 S forward passes). For a
single text no matrix is needed: `prompt_relevance`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import perturbation
from pipeline.differences import Base
from pipeline.models.clip import Clip
from pipeline.models.stylegan2 import Generator
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import low

TOGETHER = 28  # cotangents per backward pass
CHANNELS = 64  # per part at most, and
PICTURES = {"finite": perturbation.CHUNK, "reverse": 4}


@dataclass(frozen=True)
class RelevanceParams:
    """Section `relevance` of params.yaml. images: pictures that each channel is tried on. alpha: in sigmas.

    psi: truncation of those pictures. method: of the computation. precision: of the changes that finite differences
    pass on; derivatives and emulate_published, which round pictures instead, are computed in float32 whatever it says.
    layers: rows of other layers stay zero; None for all. emulate_published: channels that were tried stay at their mean
    for those tried after them, as the released script leaves them by writing into the array that it reads next.
    """

    images: int
    alpha: float
    psi: float
    seed: int
    method: Literal["finite", "reverse"] = "finite"
    precision: Literal["float32", "bfloat16"] = "float32"
    layers: tuple[int, ...] | None = None
    emulate_published: bool = False

    def __post_init__(self) -> None:
        if self.images < 1 or not self.alpha > 0:
            raise ValueError(f"{self.images} images and alpha {self.alpha:g}: at least 1, and more than 0, are needed")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise ValueError(f"layers {list(self.layers)} are none: use null for all, or numbers from 0 up")
        if self.method == "reverse" and self.emulate_published:
            raise ValueError("emulate_published needs method finite: derivatives have no order of channels")


@dataclass(frozen=True)
class Probe:
    """Everything a worker needs to compute a part of the matrix."""

    generator: Generator
    clip: Clip
    s: Tensor  # [N,S]
    w_plus: Tensor  # [N,L,D]
    mean: Tensor  # [S]
    std: Tensor  # [S]
    params: RelevanceParams
    held: dict[range, Base] = field(init=False, repr=False, compare=False, default_factory=dict)  # see perturbation

    @property
    def low(self) -> Tensor:
        return self.mean - self.params.alpha * self.std

    @property
    def high(self) -> Tensor:
        return self.mean + self.params.alpha * self.std

    @property
    def dtype(self) -> torch.dtype:
        """Of the changes that finite differences pass on; all else is float32."""
        half = self.params.precision == "bfloat16" and not self.params.emulate_published
        return low(self.s.device, half)


def probe(generator: Generator, clip: Clip, mean: Tensor, std: Tensor, params: RelevanceParams) -> Probe:
    """The pictures to try the channels on. mean, std [S]: statistics of s. InputError for layers that are not there."""
    layers = params.layers or ()
    if layers and max(layers) >= len(generator.layout.dims):
        last = len(generator.layout.dims) - 1
        raise InputError(f"relevance.layers: there is no layer {max(layers)}: this generator has layers 0 to {last}")
    z = torch.randn(params.images, generator.style_dim, generator=torch.Generator().manual_seed(params.seed))
    with torch.no_grad():
        w_plus = generator.repeat(generator.truncate(generator.mapping(z.to(mean.device)), params.psi))
        s = generator.styles(w_plus)
    return Probe(generator, clip, s, w_plus, mean, std, params)


def _derivatives(probe: Probe, picture: int, cotangents: Tensor) -> Tensor:
    """Of one picture's unit embedding e: d(cotangents . e)/ds, cotangents [V,E] -> [V,S]."""
    s = probe.s[picture : picture + 1].clone().requires_grad_(True)
    with torch.enable_grad():
        image = probe.generator.synthesis(s, probe.w_plus[picture : picture + 1])
        e = F.normalize(probe.clip.embed_images(image), dim=1)
    parts = cotangents[:, None].split(TOGETHER)
    found = [torch.autograd.grad(e, s, part, retain_graph=True, is_grads_batched=True)[0][:, 0] for part in parts]
    return torch.cat(found)


def derivative_rows(probe: Probe, pictures: range) -> Tensor:
    """The sum over `pictures` of every channel's unit derivative of the unit embedding [S,E].

    The unit rows of the sum over all pictures are the matrix of method `reverse`.
    """
    basis = torch.eye(probe.clip.dim, device=probe.s.device)
    total = torch.zeros(probe.s.shape[1], probe.clip.dim, device=probe.s.device)
    for picture in pictures:
        total += F.normalize(_derivatives(probe, picture, basis).T, dim=1, eps=1e-8)
    return total


def prompt_relevance(probe: Probe, delta_t: Tensor, cotangents: int = 16) -> Tensor:
    """delta_t [E] -> R . delta_t [S] without R, the matrix of method `reverse` on the same pictures.

    Per picture, the derivative of <e, delta_t> by s is one backward pass; the lengths that make rows unit rows come
    from `cotangents` random orthogonal directions more (exactly with all E of them), so that usual thresholds apply.
    """
    dim, generator = len(delta_t), torch.Generator().manual_seed(probe.params.seed)
    directions = torch.linalg.qr(torch.randn(dim, min(cotangents, dim), generator=generator))[0].T  # orthonormal rows
    asked = torch.cat([delta_t[None], directions.to(delta_t)])
    total = torch.zeros(len(asked), probe.s.shape[1], device=probe.s.device)
    for picture in range(len(probe.s)):
        found = _derivatives(probe, picture, asked)
        total += found / found[1:].norm(dim=0).clamp(min=1e-8)  # all lengths are short by one factor, which cancels
    return total[0] / (total[1:].norm(dim=0) * (dim / len(directions)) ** 0.5).clamp(min=1e-8)


@dataclass(frozen=True)
class Part:
    """A shard of the work: what some pictures add to some rows, channels of one layer (finite) or all (reverse)."""

    pictures: range
    channels: range


def parts(probe: Probe) -> list[Part]:
    """The whole work as shards for `compute`, those of the same pictures one after another."""
    layout, params = probe.generator.layout, probe.params
    if params.method == "reverse":
        channels = [range(layout.size)]
    else:
        layers = range(len(layout.dims)) if params.layers is None else params.layers
        whole = [range(layout.offsets[layer], layout.offsets[layer] + layout.dims[layer]) for layer in layers]
        channels = [part for layer in whole for part in perturbation.pieces(layer, CHANNELS)]
    chunks = perturbation.pieces(range(len(probe.s)), PICTURES[params.method])
    return [Part(pictures, some) for pictures in chunks for some in channels]


def compute(probe: Probe, part: Part) -> Tensor:
    """One shard: the sum over its pictures of unit differences, or derivatives, of its channels [K,E]."""
    if probe.params.method == "reverse":
        return derivative_rows(probe, part.pictures)[part.channels.start : part.channels.stop]
    return perturbation.rows(probe, part.pictures, part.channels)


def joined(probe: Probe, shards: list[Tensor]) -> Tensor:
    """The shards of `parts`, in order -> the matrix [S,E]: rows of unit length, zero for layers that were left out."""
    layout, chosen = probe.generator.layout, probe.params.layers
    total = torch.zeros(layout.size, probe.clip.dim)
    for part, rows in zip(parts(probe), shards, strict=True):
        total[part.channels.start : part.channels.stop] += rows.to(total)
    for layer in set(range(len(layout.dims))) - set(range(len(layout.dims)) if chosen is None else chosen):
        total[layout.layer(layer)] = 0
    return F.normalize(total, dim=1, eps=1e-8)


def matrix(probe: Probe) -> Tensor:
    """The matrix [S,E] in this process."""
    return joined(probe, [compute(probe, part) for part in parts(probe)])
