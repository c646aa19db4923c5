"""The relevance matrix R [S,E]: effect of every style channel in CLIP's space (StyleCLIP global directions, section 6).

Row c is the mean change of the image embedding when channel c goes from mean - alpha sigma to mean + alpha sigma
(method `finite`), or its mean derivative (`reverse`: E backward passes per image instead of 2 S forward passes),
normalised. For a single text no matrix is needed: `prompt_relevance`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import sampling
from pipeline.models.clip import Clip
from pipeline.models.stylegan2 import Generator
from pipeline.runtime.precision import low

if TYPE_CHECKING:
    from pipeline.finite_differences import FiniteDifferences
    from pipeline.networks import Networks

COTANGENTS = 28  # per backward pass
CHANNELS, IMAGES = 64, {"finite": 8, "reverse": 4}  # per part at most


@dataclass(frozen=True)
class RelevanceParams:
    """Section `relevance` of params.yaml.

    images: number of images on which each channel is changed.
    alpha: size of the change in standard deviations.
    psi: truncation of the images.
    seed: fixes the images.
    method: finite differences, or derivatives ("reverse").
    precision: of the changes of method "finite"; "reverse" and emulate_published always compute in float32.
    emulate_published: leave channels that were changed at their mean for those changed after them, as the released
        script does by writing into the array that it reads next.
    """

    images: int
    alpha: float
    psi: float
    seed: int
    method: Literal["finite", "reverse"] = "finite"
    precision: Literal["float32", "bfloat16"] = "float32"
    emulate_published: bool = False

    def __post_init__(self) -> None:
        if self.images < 1 or not self.alpha > 0:
            raise ValueError(f"{self.images} images and alpha {self.alpha:g}: at least 1, and more than 0, are needed")
        if self.method == "reverse" and self.emulate_published:
            raise ValueError("emulate_published needs method finite: derivatives have no order of channels")


SINGLE_TEXT = RelevanceParams(images=32, alpha=5.0, psi=0.7, seed=0, method="reverse")  # without a matrix


@dataclass(frozen=True, eq=False)
class Probe:
    """Networks, images and statistics from which any part of the matrix is computed."""

    generator: Generator
    clip: Clip
    s: Tensor  # [N,S]
    w_plus: Tensor  # [N,L,D]
    mean: Tensor  # [S]
    std: Tensor  # [S]
    params: RelevanceParams

    @property
    def low(self) -> Tensor:
        """mean - alpha sigma [S]."""
        return self.mean - self.params.alpha * self.std

    @property
    def high(self) -> Tensor:
        """mean + alpha sigma [S]."""
        return self.mean + self.params.alpha * self.std

    @property
    def dtype(self) -> torch.dtype:
        """Type of the changes of finite differences; all else is float32."""
        half = self.params.precision == "bfloat16" and not self.params.emulate_published
        return low(self.s.device, half)


def probe(generator: Generator, clip: Clip, mean: Tensor, std: Tensor, params: RelevanceParams) -> Probe:
    """Draw the images on which channels are changed.

    mean, std: statistics of the style channels [S].
    params: number of images, their truncation and seed; all of it becomes a part of the probe.
    """
    z = torch.randn(params.images, generator.style_dim, generator=torch.Generator().manual_seed(params.seed))
    with torch.no_grad():
        w_plus = generator.repeat(generator.truncate(generator.mapping(z.to(mean.device)), params.psi))
        s = generator.styles(w_plus)
    return Probe(generator, clip, s, w_plus, mean, std, params)


def derivatives(probe: Probe, image: int, cotangents: Tensor) -> Tensor:
    """d(cotangents . e)/ds of the unit embedding e of one image: cotangents [V,E] -> [V,S]."""
    s = probe.s[image : image + 1].clone().requires_grad_(True)
    with torch.enable_grad():
        rgb = probe.generator.synthesis(s, probe.w_plus[image : image + 1])
        e = F.normalize(probe.clip.embed_images(rgb), dim=1)
    parts = cotangents[:, None].split(COTANGENTS)
    return torch.cat(
        [torch.autograd.grad(e, s, part, retain_graph=True, is_grads_batched=True)[0][:, 0] for part in parts]
    )


def derivative_rows(probe: Probe, images: range) -> Tensor:
    """Sum over `images` of the unit derivative of the unit embedding by every channel [S,E]."""
    basis = torch.eye(probe.clip.dim, device=probe.s.device)
    total = torch.zeros(probe.s.shape[1], probe.clip.dim, device=probe.s.device)
    for image in images:
        total += F.normalize(derivatives(probe, image, basis).T, dim=1, eps=1e-8)
    return total


def prompt_relevance(probe: Probe, delta_t: Tensor, cotangents: int = 16) -> Tensor:
    """R . delta_t [S] for the matrix R of method `reverse`, without computing R.

    delta_t: difference of text embeddings [E].
    cotangents: random orthogonal directions from which the norms of the rows are estimated; exact with E of them.

    The derivative of <e, delta_t> by s costs one backward pass per image. With the rows normalised, thresholds apply
    as usual.
    """
    dim, generator = len(delta_t), torch.Generator().manual_seed(probe.params.seed)
    directions = torch.linalg.qr(torch.randn(dim, min(cotangents, dim), generator=generator))[0].T  # orthonormal rows
    vectors = torch.cat([delta_t[None], directions.to(delta_t)])
    total = torch.zeros(len(vectors), probe.s.shape[1], device=probe.s.device)
    for image in range(len(probe.s)):
        rows = derivatives(probe, image, vectors)
        total += rows / rows[1:].norm(dim=0).clamp(min=1e-8)  # all norms are short by one factor, which cancels
    return total[0] / (total[1:].norm(dim=0) * (dim / len(directions)) ** 0.5).clamp(min=1e-8)


@torch.no_grad()
def channel_relevance(networks: Networks, delta: Tensor) -> Tensor:
    """R . delta [S] of a CLIP difference delta [E]; without a matrix it is measured for this difference, in seconds."""
    if not networks.absent("relevance"):
        return networks.relevance @ delta
    stats = sampling.style_stats(networks)
    return prompt_relevance(probe(networks.generator, networks.clip, *stats, SINGLE_TEXT), delta)


# ---------------------------------------------------------------- the matrix, part by part


@dataclass(frozen=True)
class Part:
    """One shard: contribution of some images to some rows, of one layer (finite) or of all channels (reverse)."""

    images: range
    channels: range


def parts(probe: Probe) -> list[Part]:
    """All shards for `compute`, those of the same images in a row."""
    layout, params = probe.generator.layout, probe.params
    if params.method == "reverse":
        channels = [range(layout.size)]
    else:
        layers = [range(offset, offset + width) for offset, width in zip(layout.offsets, layout.dims)]
        channels = [part for layer in layers for part in chunks(layer, CHANNELS)]
    images = chunks(range(len(probe.s)), IMAGES[params.method])
    return [Part(chunk, some) for chunk in images for some in channels]


def compute(probe: Probe, part: Part) -> Tensor:
    """Sum over the part's images of the unit differences, or unit derivatives, of its channels [K,E]."""
    if probe.params.method == "reverse":
        return derivative_rows(probe, part.images)[part.channels.start : part.channels.stop]
    return _finite_differences(probe).rows(part.images, part.channels)


@functools.lru_cache(maxsize=1)
def _finite_differences(probe: Probe) -> FiniteDifferences:
    """The same object for the same probe, so that parts with the same images share their forward pass."""
    from pipeline.finite_differences import FiniteDifferences

    return FiniteDifferences(probe)


def chunks(whole: range, size: int) -> list[range]:
    """`whole` cut into ranges of `size`; the last may be shorter."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def joined(probe: Probe, shards: list[Tensor]) -> Tensor:
    """Matrix [S,E] with unit rows from the shards of `parts`, in order."""
    total = torch.zeros(probe.generator.layout.size, probe.clip.dim)
    for part, rows in zip(parts(probe), shards, strict=True):
        total[part.channels.start : part.channels.stop] += rows.to(total)
    return F.normalize(total, dim=1, eps=1e-8)


def matrix(probe: Probe) -> Tensor:
    """Matrix [S,E], computed in this process."""
    return joined(probe, [compute(probe, part) for part in parts(probe)])
