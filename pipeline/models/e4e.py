"""e4e (Tov et al. 2021): a picture -> w+, as an average code plus one common and L - 1 own differences.

A feature pyramid; one style block per row of w+ reads it at the scale of its level (coarse rows the smallest map). The
rows beyond the `stage`-th get no difference of their own, which is how training lets them in one after the other.
`Encoder` is small and trained here; `PublishedEncoder` holds the files of e4e and pSp (Richardson et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import arcface
from pipeline.models.classifiers import Block
from pipeline.models.stylegan2 import EqualLinear


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


class StyleEncoder(nn.Module):
    """images [B,3,R,R] in [-1,1] -> w_plus [B,L,D], whatever network looks at the pictures (`pyramid`, `features`).

    rows: L. sizes: pixels of the three maps of the pyramid, largest first, of `channels` channels each. split: rows
    before a are coarse, before b medium. common: rows are differences from the first one. latent_avg [L,D]: the code
    that all of it is added to.
    """

    latent_avg: Tensor

    def __init__(
        self,
        rows: int,
        style_dim: int,
        channels: int,
        sizes: Sequence[int],
        split: tuple[int, int],
        common: bool = True,
    ) -> None:
        super().__init__()
        self.rows, self.split, self.common = rows, split, common
        self.styles = nn.ModuleList(StyleBlock(channels, style_dim, sizes[self._scale(row)]) for row in range(rows))
        self.register_buffer("latent_avg", torch.zeros(rows, style_dim))

    def _scale(self, row: int) -> int:
        """The pyramid level that a row reads: 2 is the smallest map."""
        coarse, medium = self.split
        return 2 if row < coarse else 1 if row < medium else 0

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Three maps of the pictures, largest first, each with what the smaller ones see."""
        raise NotImplementedError

    def features(self, images: Tensor) -> list[Tensor]:
        """What it sees of a picture at a half, a quarter and an eighth of its size, unit length per pixel.

        To compare two pictures by.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, stage: int | None = None) -> Tensor:
        """`stage`: rows 1 .. stage get a difference of their own; all of them when None."""
        maps = self.pyramid(images)
        first = self.styles[0](maps[self._scale(0)])
        active = self.rows - 1 if stage is None else min(stage, self.rows - 1)
        rows = [first]
        for row in range(1, self.rows):
            own = self.styles[row](maps[self._scale(row)]) if row <= active else 0
            rows.append(first + own if self.common else own)
        return torch.stack(rows, dim=1) + self.latent_avg


class Encoder(StyleEncoder):
    """The encoder that is trained here. resolution: pixels it looks at; widths: channels at 1/2 .. 1/16 of them."""

    def __init__(
        self, resolution: int, widths: tuple[int, ...], rows: int, style_dim: int, split: tuple[int, int] = (3, 7)
    ) -> None:
        sizes = [resolution // 2**k for k in range(2, len(widths) + 1)]  # of the outputs of `stages`
        super().__init__(rows, style_dim, widths[-1], sizes, split)
        self.stem = Stem(resolution, widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(Block(a, b, 2), Block(b, b, 1)) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, widths[-1], 1) for width in widths[1:-1])

    def features(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images.contiguous(memory_format=torch.channels_last)), []
        for block in (nn.Identity(), *self.stages[:2]):
            x = block(x)
            maps.append(F.normalize(x.float(), dim=1))
        return maps

    def pyramid(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images.contiguous(memory_format=torch.channels_last)), []
        for block in self.stages:
            x = block(x)
            maps.append(x)
        return _summed(maps, self.lateral)[-3:]


class PublishedEncoder(StyleEncoder):
    """e4e's network on an IR-SE50, with the published keys. Pictures of other sizes are brought to `size` pixels.

    widths: channels of the four groups of its body. common False: pSp, whose rows are independent of the first.
    """

    def __init__(
        self, widths: tuple[int, ...], rows: int, style_dim: int, size: int = arcface.INPUT, common: bool = True
    ) -> None:
        super().__init__(rows, style_dim, widths[-1], [size // 4, size // 8, size // 16], (3, 7), common)
        self.size = size
        self.input_layer, self.body = arcface.stem(widths[0]), arcface.body(widths)
        self.latlayer1, self.latlayer2 = nn.Conv2d(widths[2], widths[-1], 1), nn.Conv2d(widths[1], widths[-1], 1)

    def features(self, images: Tensor) -> list[Tensor]:
        x = self.input_layer(arcface.pictures(images, self.size))
        return [F.normalize(found.float(), dim=1) for found in arcface.maps(x, self.body, 3)]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        x = self.input_layer(arcface.pictures(images, self.size))
        return _summed(arcface.maps(x, self.body)[1:], [self.latlayer2, self.latlayer1])


def _summed(maps: list[Tensor], lateral: Sequence[nn.Module] | nn.ModuleList) -> list[Tensor]:
    """Every map but the smallest, through its own convolution, plus the one below it enlarged to its size."""
    for k in range(len(maps) - 2, -1, -1):
        above = F.interpolate(maps[k + 1], size=maps[k].shape[-2:], mode="bilinear", align_corners=True)
        maps[k] = above + lateral[k](maps[k])
    return maps


def build(numbers: Mapping[str, Any]) -> StyleEncoder:
    """An encoder from the plain numbers of a weights file: `backbone` says whose; absent, it is one of ours."""
    rest = {name: value for name, value in numbers.items() if name != "backbone"}
    if "backbone" not in numbers:
        return Encoder(**rest)
    if numbers["backbone"] != arcface.NAME:
        raise ValueError(f"an encoder on '{numbers['backbone']}'")
    return PublishedEncoder(**rest)
