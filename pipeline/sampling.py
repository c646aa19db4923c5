"""Codes of generated and real images: w of fakes by row id, then the pairs (s, CLIP) that all methods train on.

Everything runs in fixed micro-batches whose tail is padded, so that the bytes of a row do not depend on its neighbours:
worker processes, shards of any multiple of the batch, and a resumed run give what one undisturbed process gives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.runtime.precision import lowered
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    from pipeline.models.clip import Clip
    from pipeline.models.stylegan2 import Generator
    from pipeline.models.stylespace import Space
    from pipeline.networks import Networks

Columns = TypeVar("Columns", bound=tuple[Tensor, ...])
Id = TypeVar("Id", int, Tensor)


@dataclass(frozen=True)
class SampleParams:
    """Section `sample` of params.yaml.

    count: number of fakes.
    seed: together with the row id it fixes each of them.
    truncation: psi, 1 for none.
    redrawn: part of its noise that every second fake draws anew; the rest is that of its sibling, the fake before it.
        1: all of it, as published.
    shard: rows per Parquet shard of the fakes and of their codes, the unit of resuming.
    """

    count: int
    seed: int
    truncation: float
    redrawn: float
    shard: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.shard < 1:
            raise ValueError(f"{self.count} fakes in shards of {self.shard}: both must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"the seed {self.seed} must not be negative, nor exceed 64 bits")
        if not 0 < self.redrawn <= 1:
            raise ValueError(f"redrawn is {self.redrawn:g}: a part of the noise is expected, above 0, at most 1")


@dataclass(frozen=True)
class BatchParams:
    """Settings of stages that run networks over images. batch: images per forward pass, a multiple of 8."""

    batch: int

    def __post_init__(self) -> None:
        check_batch(self.batch)


@dataclass(frozen=True)
class CacheParams(BatchParams):
    """Section `cache` of params.yaml. precision: of rendering and embedding fakes; s is computed in float32."""

    precision: Literal["float32", "bfloat16"]


def check_batch(batch: int) -> None:
    """Raise ValueError unless `batch` is a multiple of 8: other sizes change the last bits from machine to machine."""
    if batch < 8 or batch % 8:
        raise ValueError(f"a batch of {batch} is not reproducible: use a multiple of 8")


def fixed_batches(function: Callable[..., Columns], batch: int, *rows: Tensor) -> Columns:
    """Apply `function` to `rows` in batches of exactly `batch` and concatenate the results.

    function: takes a batch of every tensor and returns a tuple of tensors with as many rows.
    rows: tensors of equal length N.
    The last batch is padded with its own first row, so that every call has one shape. Raises ValueError for a batch
    that is no multiple of 8, and for no rows at all.
    """
    check_batch(batch)
    total, results = len(rows[0]), []
    if not total:
        raise ValueError("no rows to compute")
    for start in range(0, total, batch):
        parts = [tensor[start : start + batch] for tensor in rows]
        count = len(parts[0])
        full = [torch.cat([part, part[:1].expand(batch - count, *part.shape[1:])]) for part in parts]
        results.append([result[:count] for result in function(*full)])
    return cast(Columns, tuple(torch.cat(column) for column in zip(*results)))


def decode_images(encoded: Sequence[bytes]) -> Tensor:
    """Decode image files to [N,3,R,R] in [-1,1]."""
    return torch.stack([images.decode_png(image) for image in encoded])


def decode_uint8(encoded: Sequence[bytes]) -> Tensor:
    """Decode image files to uint8 [N,3,R,R], a quarter of the memory."""
    return torch.stack([torch.from_numpy(images.to_uint8(images.decode_png(e))).permute(2, 0, 1) for e in encoded])


def sibling(row_id: Id) -> Id:
    """Id of the other one of two fakes that may share noise (`noise`): 0 and 1, 2 and 3, ..."""
    return row_id ^ 1


def noise(row_ids: Iterable[int], dim: int, seed: int, redrawn: float = 1.0) -> Tensor:
    """Standard normal noise z [N,dim], of which row i depends on (seed, row_ids[i]) alone.

    redrawn: probability that a number of an odd row is its own; at least one is. The others are its sibling's. Rows of
    the split "val" (`artefacts.fake_split`) share noise with no row that is trained on. Mixed in this way normal noise
    stays normal.
    """

    def draw(row: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[seed, row]))
        own = rng.standard_normal(dim, dtype=np.float32)
        other = sibling(row)
        if redrawn == 1 or row < other or "val" in (artefacts.fake_split(row), artefacts.fake_split(other)):
            return own
        chance = rng.random(dim)
        return np.where(chance <= max(redrawn, chance.min()), own, draw(other))

    rows = [draw(row) for row in row_ids]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, dim)


@torch.no_grad()
def sample_w(
    generator: Generator,
    row_ids: Iterable[int],
    seed: int,
    truncation: float,
    batch: int = 1024,
    redrawn: float = 1.0,
) -> Tensor:
    """w codes [N,D] of the fakes `row_ids`, on the CPU; seed and redrawn as for `noise`, truncation psi."""
    device = generator.w_mean.device

    def step(z: Tensor) -> tuple[Tensor]:
        return (generator.truncate(generator.mapping(z.to(device)), truncation).cpu(),)

    return fixed_batches(step, batch, noise(row_ids, generator.style_dim, seed, redrawn))[0]


@torch.no_grad()
def fake_codes(
    generator: Generator, clip: Clip, w: Tensor, batch: int, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Style codes s [N,S] float16 and CLIP embeddings [N,E] float32, not normalised, of fakes. Both on the CPU.

    w: codes [N,D].
    batch: fakes per forward pass.
    precision: of rendering and embedding, "float32" or "bfloat16".
    """
    device, half = generator.w_mean.device, precision == "bfloat16"

    def step(rows: Tensor) -> tuple[Tensor, Tensor]:
        w_plus = generator.repeat(rows.to(device))
        s = generator.styles(w_plus)
        with lowered(device, half):
            return s.half().cpu(), clip.embed_images(generator.synthesis(s, w_plus)).float().cpu()

    return fixed_batches(step, batch, w)


@torch.no_grad()
def real_codes(generator: Generator, clip: Clip, w_plus: Tensor, photos: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Style codes s [N,S] float16 and CLIP embeddings [N,E] float32, not normalised, of photographs. Both on the CPU.

    w_plus: inversions [N,L,D], of which s is computed.
    photos: [N,3,R,R] in [-1,1], which are embedded.
    batch: photos per forward pass.
    """
    device = generator.w_mean.device

    def step(codes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        return generator.styles(codes.to(device)).half().cpu(), clip.embed_images(images.to(device)).cpu()

    return fixed_batches(step, batch, w_plus, photos)


def style_stats(networks: Networks, space: Space = "s") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a domain's codes: style channels [S] each, or flattened w_plus [L*D] each.

    Those of s are the output of stage `cache`; without that file, and for w_plus, they are measured on samples.
    """
    if space == "s" and not networks.absent("s_stats"):
        return networks.s_stats
    return measured_stats(networks.generator, space)


@functools.lru_cache(maxsize=4)
@torch.no_grad()
def measured_stats(generator: Generator, space: Space = "s", count: int = 4096, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, [S] or [L*D] each, of the codes of samples without truncation.

    space: codes to measure, "s" or "w_plus".
    count, seed: number of samples, and the seed of their noise.
    """
    z = torch.randn(count, generator.style_dim, generator=torch.Generator().manual_seed(seed))
    w_plus = generator.repeat(generator.mapping(z.to(generator.w_mean.device)))
    codes = generator.styles(w_plus) if space == "s" else w_plus.flatten(1)
    return codes.mean(dim=0), codes.std(dim=0)


class Moments:
    """Mean and standard deviation of style channels, accumulated in float64 over blocks of rows of any size."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros(()).double()

    def add(self, s: Tensor) -> None:
        """Take in style codes s [N,S]."""
        rows = s.double()
        self.count += len(rows)
        self.total = self.total + rows.sum(dim=0)
        self.squares = self.squares + rows.square().sum(dim=0)

    def result(self) -> dict[str, Tensor]:
        """{"mean": [S], "std": [S]}, float32."""
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        return {"mean": mean.float(), "std": std.float()}
