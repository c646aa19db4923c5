"""The judges of an edit: a network that knows who it is, and two of different kinds that read attributes.

All are small and trained on renders only; none sees an edited picture, nor guides an editor unless asked to; the second
reader only checks what the first has read. For photographs of faces the published identity network
(`pipeline.models.arcface.FaceNet`) can stand in for ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import arcface


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a skip connection; with stride 2 the map is halved."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            if stride == 2 or inputs != outputs
            else nn.Identity()
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        # no strided convolution of one pixel: backwards, PyTorch 2.15 writes where it may not (channels_last, AVX2)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class Trunk(nn.Sequential):
    """images [B,3,R,R] -> features [B,widths[-1]]: a stem of stride 2, one block per width, mean over the picture."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        pairs = zip(widths, widths[1:], strict=False)
        super().__init__(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            Block(widths[0], widths[0], 1),
            *(Block(a, b, 2) for a, b in pairs),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last)).float()


class Landmarks(nn.Module):
    """maps [B,C,H,W] -> [B,2*count]: where in the picture each of `count` patterns is, x and then y in [-1,1].

    A place is the mean over the map, weighted by the softmax of how much each point is like the pattern, so it is finer
    than a pixel (spatial softmax, Levine et al. 2016, section 5.1).
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.patterns = nn.Conv2d(channels, count, 1)

    def forward(self, maps: Tensor) -> Tensor:
        like = self.patterns(maps).float().flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])
        down, across = (torch.linspace(-1, 1, size, device=maps.device) for size in maps.shape[2:])
        # no matrix product: under autocast it would round places to a sixteenth of a pixel
        return torch.cat([(like.sum(2) * across).sum(2), (like.sum(3) * down).sum(2)], dim=1)


class LandmarkTrunk(nn.Module):
    """images [B,3,R,R] -> features [B,F]: what the picture shows on average, and where `landmarks` patterns of each of
    the last two maps are. The stem keeps every pixel: who it is shows in lengths that differ by less than two."""

    def __init__(self, widths: tuple[int, ...], landmarks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        pairs = zip(widths, widths[1:], strict=False)
        self.blocks = nn.ModuleList([Block(widths[0], widths[0], 1), *(Block(a, b, 2) for a, b in pairs)])
        self.landmarks = nn.ModuleList([Landmarks(width, landmarks) for width in widths[-2:]])
        self.width = widths[-1] + 2 * landmarks * len(self.landmarks)
        self.norm = nn.BatchNorm1d(self.width)  # places differ by hundredths, and would be learnt last

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = [x]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        places = [find(seen) for find, seen in zip(self.landmarks, maps[-len(self.landmarks) :], strict=True)]
        return self.norm(torch.cat([maps[-1].float().mean(dim=(2, 3)), *places], dim=1))


class IdentityNet(nn.Module):
    """images [B,3,R,R] in [-1,1] -> unit embeddings [B,dim].

    landmarks: patterns to find in each of the last two maps, read together by `hidden` units; 0: a plain `Trunk`.
    """

    def __init__(self, widths: tuple[int, ...], dim: int, landmarks: int = 0, hidden: int = 0) -> None:
        super().__init__()
        self.trunk = LandmarkTrunk(widths, landmarks) if landmarks else Trunk(widths)
        self.width = self.trunk.width if isinstance(self.trunk, LandmarkTrunk) else widths[-1]
        # the norm centres the embeddings: features after a ReLU all point one way, and angles could not tell them apart
        between = [nn.Linear(self.width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()] if hidden else []
        last = hidden or self.width
        self.head = nn.Sequential(*between, nn.Linear(last, dim, bias=False), nn.BatchNorm1d(dim))

    def features(self, images: Tensor) -> Tensor:
        """images [B,3,R,R] -> [B,width], what the embedding is made of."""
        return self.trunk(images)

    def embed(self, features: Tensor) -> Tensor:
        """features [B,width] -> unit embeddings [B,dim]."""
        return F.normalize(self.head(features), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(self.features(images))


def build(numbers: Mapping[str, Any]) -> IdentityNet | arcface.FaceNet:
    """An identity network from the numbers of a weights file: `backbone` says whose; absent, it is one of ours."""
    rest = {name: value for name, value in numbers.items() if name != "backbone"}
    if "backbone" not in numbers:
        return IdentityNet(**rest)
    if numbers["backbone"] != arcface.NAME:
        raise ValueError(f"an identity network on '{numbers['backbone']}'")
    return arcface.FaceNet(**rest)


class Reader(nn.Module, ABC):
    """Reads every attribute of a portrait off features. attributes: name -> its values, in the order of the logits."""

    def __init__(self, width: int, attributes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in attributes.items()})

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """images [B,3,R,R] in [-1,1] -> [B,F]."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images [B,3,R,R] -> attribute -> logits [B,values]."""
        return self.logits(self.features(images))

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """features [B,F] of images -> attribute -> logits [B,values]."""
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """images [B,3,R,R] -> attribute -> index of the value seen [B]."""
        return {name: logits.argmax(dim=1) for name, logits in self(images).items()}


class Oracle(Reader):
    """The reader that the numbers are from: a residual network."""

    def __init__(self, widths: tuple[int, ...], attributes: dict[str, tuple[str, ...]]) -> None:
        super().__init__(widths[-1], attributes)
        self.trunk = Trunk(widths)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images)


class Layer(nn.Module):
    """tokens [B,N,D] -> the same: attention, then two linear maps, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widened, self.narrowed = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        asked, known, told = self.mixed(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.joined(F.scaled_dot_product_attention(asked, known, told).transpose(1, 2).flatten(2))
        return x + self.narrowed(F.gelu(self.widened(self.norm2(x))))


class TokenOracle(Reader):
    """The reader that checks the first: a transformer over patches, without batch norm or residual convolutions.

    A vision transformer (Dosovitskiy et al. 2021) whose patches come from one convolution of stride 2 per width of
    `stem` (Xiao et al. 2021); size R: of the images, whose tokens are (R / 2**len(stem)) squared in number.
    """

    def __init__(
        self,
        size: int,
        stem: tuple[int, ...],
        layers: int,
        heads: int,
        hidden: int,
        attributes: dict[str, tuple[str, ...]],
    ) -> None:
        width, side = stem[-1], size // 2 ** len(stem)
        super().__init__(width, attributes)
        parts: list[nn.Module] = []
        for inputs, outputs in zip((3, *stem), stem, strict=False):
            parts += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GELU()]
        self.stem = nn.Sequential(*parts[:-1])
        self.place = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        self.layers = nn.Sequential(*(Layer(width, heads, hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def features(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.place
        return self.norm(self.layers(tokens)).mean(dim=1).float()


def reader(numbers: Mapping[str, Any]) -> Reader:
    """An oracle from the numbers of a weights file: `stem` tells a transformer from a residual network."""
    return TokenOracle(**numbers) if "stem" in numbers else Oracle(**numbers)
