"""e4e (Tov et al. 2021): an image -> w+, as the average code plus one common offset and an own offset per row.

One style block per row of w+ reads a feature pyramid at the scale of its level (coarse rows the smallest map).
Progressive training adds own offsets row by row (`stage`). `Encoder` is small and trained by this project;
`PublishedEncoder` has the architecture and keys of e4e's and pSp's files (Richardson et al. 2021).
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
    """Feature map [B,C,size,size] -> one row [B,D]: stride-2 convolutions down to one pixel, then a linear layer."""

    def __init__(self, channels: int, style_dim: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(int(math.log2(size))):
            layers += [nn.Conv2d(channels, channels, 3, 2, 1), nn.LeakyReLU()]
        self.convs, self.linear = nn.Sequential(*layers), EqualLinear(channels, style_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1).float())


class Stem(nn.Sequential):
    """First convolution, for images [B,3,R,R]; larger ones are averaged down to `size` pixels first."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.shape[-1] <= self.size else F.adaptive_avg_pool2d(images, self.size))


class StyleEncoder(nn.Module):
    """Images [B,3,R,R] in [-1,1] -> w_plus [B,L,D]; subclasses define the backbone by `pyramid` and `features`.

    rows: L. style_dim: D.
    channels, sizes: of the three maps of the pyramid; sizes in pixels, largest first.
    split: rows below the first number are coarse, below the second medium.
    common: every row is the first one plus its own offset; False: rows are independent (pSp).
    latent_avg [L,D]: the average code, added to the result.
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
        """Index of the map that a row reads; 2 is the smallest."""
        coarse, medium = self.split
        return 2 if row < coarse else 1 if row < medium else 0

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Feature pyramid of the images: three maps, largest first, each merged with the smaller ones."""
        raise NotImplementedError

    def features(self, images: Tensor) -> list[Tensor]:
        """Perceptual features: maps at 1/2, 1/4 and 1/8 of the image size, of unit length per pixel."""
        raise NotImplementedError

    def forward(self, images: Tensor, stage: int | None = None) -> Tensor:
        """Encode images [B,3,R,R] -> w_plus [B,L,D]; `stage`: rows 1 to stage get own offsets, None: all rows."""
        maps = self.pyramid(images)
        first = self.styles[0](maps[self._scale(0)])
        active = self.rows - 1 if stage is None else min(stage, self.rows - 1)
        rows = [first]
        for row in range(1, self.rows):
            own = self.styles[row](maps[self._scale(row)]) if row <= active else 0
            rows.append(first + own if self.common else own)
        return torch.stack(rows, dim=1) + self.latent_avg


class Encoder(StyleEncoder):
    """Small encoder. resolution: input pixels; widths: channels at 1/2, 1/4, 1/8, ... of the resolution."""

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
        return _merged(maps, self.lateral)[-3:]


class PublishedEncoder(StyleEncoder):
    """e4e on an IR-SE50 backbone, with the published keys.

    widths: channels of the backbone's four groups. size: input pixels; images of other sizes are resized. common: True
    for e4e, False for pSp.
    """

    def __init__(
        self, widths: tuple[int, ...], rows: int, style_dim: int, size: int = arcface.INPUT, common: bool = True
    ) -> None:
        super().__init__(rows, style_dim, widths[-1], [size // 4, size // 8, size // 16], (3, 7), common)
        self.size = size
        self.input_layer, self.body = arcface.stem(widths[0]), arcface.body(widths)
        self.latlayer1, self.latlayer2 = nn.Conv2d(widths[2], widths[-1], 1), nn.Conv2d(widths[1], widths[-1], 1)

    def features(self, images: Tensor) -> list[Tensor]:
        x = self.input_layer(arcface.resize(images, self.size))
        return [F.normalize(features.float(), dim=1) for features in arcface.feature_maps(x, self.body, 3)]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        x = self.input_layer(arcface.resize(images, self.size))
        return _merged(arcface.feature_maps(x, self.body)[1:], [self.latlayer2, self.latlayer1])


def _merged(maps: list[Tensor], lateral: Sequence[nn.Module] | nn.ModuleList) -> list[Tensor]:
    """Add to every map but the smallest, after its lateral convolution, the next smaller one, enlarged."""
    for k in range(len(maps) - 2, -1, -1):
        enlarged = F.interpolate(maps[k + 1], size=maps[k].shape[-2:], mode="bilinear", align_corners=True)
        maps[k] = enlarged + lateral[k](maps[k])
    return maps


def build(numbers: Mapping[str, Any]) -> StyleEncoder:
    """Encoder with the sizes in a weights file's metadata: `PublishedEncoder` if it has a `backbone`, else `Encoder`.

    Raises ValueError for an unknown backbone.
    """
    rest = {name: value for name, value in numbers.items() if name != "backbone"}
    if "backbone" not in numbers:
        return Encoder(**rest)
    if numbers["backbone"] != arcface.NAME:
        raise ValueError(f"unknown backbone of an encoder: '{numbers['backbone']}'")
    return PublishedEncoder(**rest)
