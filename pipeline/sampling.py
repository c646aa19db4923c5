"""From row ids and photographs to codes: w of fakes, then the pairs (s, CLIP) that all methods learn from.

Everything runs in fixed micro-batches whose tail is padded, so a row's bytes do not depend on its neighbours: worker
processes and a resumed run give what one undisturbed process gives, and so do shards of any multiple of the batch.
"""

from __future__ import annotations

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

Columns = TypeVar("Columns", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class SampleParams:
    """count: fakes to draw. seed: together with the row id it fixes each of them. truncation: psi, 1 for none.

    redrawn: the part of its noise that every second fake draws anew, the rest being its sibling's, the one before it;
    1: all of it, as published. shard: rows per Parquet shard, here and in the codes made of them: the unit of resuming.
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
    """What `cache` asks for. batch: images per forward pass, a multiple of 8."""

    batch: int

    def __post_init__(self) -> None:
        check_batch(self.batch)


@dataclass(frozen=True)
class CacheParams(BatchParams):
    """precision: of the networks that render and embed fakes; s is float32's, rounded, in any case."""

    precision: Literal["float32", "bfloat16"]


def check_batch(batch: int) -> None:
    """Raises ValueError unless `batch` is a multiple of 8: other sizes change the last bits from machine to machine."""
    if batch < 8 or batch % 8:
        raise ValueError(f"a batch of {batch} is not reproducible: use a multiple of 8")


def fixed_batches(function: Callable[..., Columns], batch: int, *rows: Tensor) -> Columns:
    """`function` over `rows` (tensors of equal length N) in batches of exactly `batch`, results joined to N rows.

    The last batch is filled up with its own first row, so that every call has one shape. Raises ValueError for a batch
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


def decoded(pictures: Sequence[bytes]) -> Tensor:
    """Encoded pictures -> [N,3,R,R] in [-1,1]."""
    return torch.stack([images.decode_png(picture) for picture in pictures])


def pixels(pictures: Sequence[bytes]) -> Tensor:
    """Encoded pictures -> uint8 [N,3,R,R], a quarter of the memory."""
    return torch.stack([torch.from_numpy(images.to_uint8(images.decode_png(p))).permute(2, 0, 1) for p in pictures])


def noise(row_ids: Iterable[int], dim: int, seed: int, redrawn: float = 1.0) -> Tensor:
    """z [N,dim], standard normal: row i depends on (seed, row id) alone.

    redrawn: the chance of each number of an odd row to be its own, one at least is; the others are its sibling's. What
    is redrawn of normal noise is normal noise, so that siblings are spread as all others are. Those for validation have
    no siblings to learn from.
    """

    def drawn(row: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[seed, row]))
        own = rng.standard_normal(dim, dtype=np.float32)
        other = artefacts.sibling(row)
        if redrawn == 1 or row < other or "val" in (artefacts.fake_split(row), artefacts.fake_split(other)):
            return own
        chance = rng.random(dim)
        return np.where(chance <= max(redrawn, chance.min()), own, drawn(other))

    rows = [drawn(row) for row in row_ids]
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
    """w [N,D] of the generated people `row_ids`, on the CPU; see `noise`."""
    device = generator.w_mean.device

    def step(z: Tensor) -> tuple[Tensor]:
        return (generator.truncate(generator.mapping(z.to(device)), truncation).cpu(),)

    return fixed_batches(step, batch, noise(row_ids, generator.style_dim, seed, redrawn))[0]


@torch.no_grad()
def rendered(generator: Generator, s: Tensor, w_plus: Tensor, batch: int = 64) -> Tensor:
    """s [N,S] and w_plus [N,L,D] -> the generator's pictures, uint8 [N,3,R,R]."""
    device = generator.w_mean.device

    def step(codes: Tensor, rows: Tensor) -> tuple[Tensor]:
        made = generator.synthesis(codes.float().to(device), rows.to(device)).clamp(-1, 1)
        return (((made + 1) * 127.5).round().byte().cpu(),)

    return fixed_batches(step, batch, s, w_plus)[0]


@torch.no_grad()
def fake_codes(
    generator: Generator, clip: Clip, w: Tensor, batch: int, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """w [N,D] -> s [N,S] float16 and clip [N,E] float32 (not normalised) of the pictures, which are not kept."""
    device, half = generator.w_mean.device, precision == "bfloat16"

    def step(rows: Tensor) -> tuple[Tensor, Tensor]:
        w_plus = generator.repeat(rows.to(device))
        s = generator.styles(w_plus)
        with lowered(device, half):
            return s.half().cpu(), clip.embed_images(generator.synthesis(s, w_plus)).float().cpu()

    return fixed_batches(step, batch, w)


@torch.no_grad()
def real_codes(generator: Generator, clip: Clip, w_plus: Tensor, photos: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """w_plus [N,L,D] and photographs [N,3,R,R] -> s [N,S] float16 of the inversion, clip [N,E] of the photograph."""
    device = generator.w_mean.device

    def step(codes: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        return generator.styles(codes.to(device)).half().cpu(), clip.embed_images(shown.to(device)).cpu()

    return fixed_batches(step, batch, w_plus, photos)


@torch.no_grad()
def spread(generator: Generator, space: Space = "s", count: int = 4096, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of codes over `count` samples: of s, [S] each, nearly what `cache` measures on all
    fakes, or of w_plus, [L*D] each."""
    z = torch.randn(count, generator.style_dim, generator=torch.Generator().manual_seed(seed))
    w_plus = generator.repeat(generator.mapping(z.to(generator.w_mean.device)))
    codes = generator.styles(w_plus) if space == "s" else w_plus.flatten(1)
    return codes.mean(dim=0), codes.std(dim=0)


class Moments:
    """Mean and standard deviation of style channels over any number of rows, in float64, row blocks in any size."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros(()).double()

    def add(self, s: Tensor) -> None:
        """s [N,S]"""
        rows = s.double()
        self.count += len(rows)
        self.total = self.total + rows.sum(dim=0)
        self.squares = self.squares + rows.square().sum(dim=0)

    def result(self) -> dict[str, Tensor]:
        """mean [S] and std [S], float32."""
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        return {"mean": mean.float(), "std": std.float()}
