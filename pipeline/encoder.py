"""e4e (Tov et al. 2021): a picture -> w+, as an average code plus one common and L - 1 own differences.

A feature pyramid; one style block per row of w+ reads it at the scale of its level (coarse rows the smallest map). The
rows beyond the `stage`-th get no difference of their own, which is how training lets them in one after the other.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.generator import EqualLinear
from pipeline.recognition import Block


class StyleBlock(nn.Module):
    """A feature map [B,C,size,size] -> one row [B,D]: stride-2 convolutions down to one pixel, then a linear layer."""

    def __init__(self, channels: int, style_dim: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(int(math.log2(size))):
            layers += [nn.Conv2d(channels, channels, 3, 2, 1), nn.LeakyReLU()]
        self.convs, self.linear = nn.Sequential(*layers), EqualLinear(channels, style_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1).float())


class Stem(nn.Sequential):
    """The first convolution; larger pictures [B,3,R,R] are averaged down to `size` before it."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.shape[-1] <= self.size else F.adaptive_avg_pool2d(images, self.size))


class Encoder(nn.Module):
    """images [B,3,R,R] in [-1,1] -> w_plus [B,L,D]. resolution: pixels that it looks at, R or less.

    widths: channels at R/2, R/4, R/8 and R/16. rows: L. split: rows before a are coarse, before b medium. latent_avg
    [L,D]: the code that all differences are added to.
    """

    latent_avg: Tensor

    def __init__(
        self, resolution: int, widths: tuple[int, ...], rows: int, style_dim: int, split: tuple[int, int] = (3, 7)
    ) -> None:
        super().__init__()
        self.rows, self.split = rows, split
        self.stem = Stem(resolution, widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(Block(a, b, 2), Block(b, b, 1)) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, widths[-1], 1) for width in widths[1:-1])
        sizes = [resolution // 2**k for k in range(2, len(widths) + 1)]  # of the outputs of `stages`
        self.styles = nn.ModuleList(StyleBlock(widths[-1], style_dim, sizes[self._scale(row)]) for row in range(rows))
        self.register_buffer("latent_avg", torch.zeros(rows, style_dim))

    def _scale(self, row: int) -> int:
        """The pyramid level that a row reads: 2 is the smallest map."""
        coarse, medium = self.split
        return 2 if row < coarse else 1 if row < medium else 0

    def features(self, images: Tensor) -> list[Tensor]:
        """What it sees of a picture down to R/8, unit length per pixel: to compare two pictures by."""
        x, maps = self.stem(images.contiguous(memory_format=torch.channels_last)), []
        for block in (nn.Identity(), *self.stages[:2]):
            x = block(x)
            maps.append(F.normalize(x.float(), dim=1))
        return maps

    def forward(self, images: Tensor, stage: int | None = None) -> Tensor:
        """`stage`: rows 1 .. stage get a difference of their own; all of them when None."""
        x, maps = self.stem(images.contiguous(memory_format=torch.channels_last)), []
        for block in self.stages:
            x = block(x)
            maps.append(x)
        for k in range(len(maps) - 2, -1, -1):
            above = F.interpolate(maps[k + 1], size=maps[k].shape[-2:], mode="bilinear", align_corners=True)
            maps[k] = above + self.lateral[k](maps[k])
        maps = maps[-3:]
        first = self.styles[0](maps[self._scale(0)])
        active = self.rows - 1 if stage is None else min(stage, self.rows - 1)
        rows = [first]
        for row in range(1, self.rows):
            own = self.styles[row](maps[self._scale(row)]) if row <= active else 0
            rows.append(first + own)
        return torch.stack(rows, dim=1) + self.latent_avg
