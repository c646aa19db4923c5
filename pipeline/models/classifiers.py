"""Networks that evaluate edits of portraits: an identity network and two attribute classifiers of different kinds.

All are small and trained on renders only, never on edited images. Metrics come from the first classifier; the second
one checks them. For photographs of faces the published identity network (`pipeline.models.arcface.FaceNet`) is used.
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
    """Residual block: two 3 x 3 convolutions with batch norm, [B,inputs,H,W] -> [B,outputs,H/stride,W/stride]."""

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
        # not a strided 1 x 1 convolution: its backward pass in PyTorch 2.15 writes out of bounds (channels_last, AVX2)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class Trunk(nn.Sequential):
    """Images [B,3,R,R] -> features [B,widths[-1]]: a stem of stride 2, one block per width, mean over the map."""

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
    """Maps [B,C,H,W] -> expected positions of `count` patterns [B,2*count]: all x, then all y, in [-1,1].

    Spatial softmax (Levine et al. 2016, section 5.1): the mean position weighted by the softmax of the pattern's
    response, which is finer than a pixel.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.patterns = nn.Conv2d(channels, count, 1)

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.patterns(maps).float().flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])
        down, across = (torch.linspace(-1, 1, size, device=maps.device) for size in maps.shape[2:])
        # no matrix product: autocast would round positions to a sixteenth of a pixel
        return torch.cat([(weight.sum(2) * across).sum(2), (weight.sum(3) * down).sum(2)], dim=1)


class LandmarkTrunk(nn.Module):
    """Images [B,3,R,R] -> features [B,F]: the mean of the last map, and `landmarks` positions in each of the last two.

    The stem has stride 1, since identities differ by lengths of less than two pixels.
    """

    def __init__(self, widths: tuple[int, ...], landmarks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        pairs = zip(widths, widths[1:], strict=False)
        self.blocks = nn.ModuleList([Block(widths[0], widths[0], 1), *(Block(a, b, 2) for a, b in pairs)])
        self.landmarks = nn.ModuleList([Landmarks(width, landmarks) for width in widths[-2:]])
        self.width = widths[-1] + 2 * landmarks * len(self.landmarks)
        self.norm = nn.BatchNorm1d(self.width)  # positions differ by hundredths and would be learnt last

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = [x]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        positions = [find(x) for find, x in zip(self.landmarks, maps[-len(self.landmarks) :], strict=True)]
        return self.norm(torch.cat([maps[-1].float().mean(dim=(2, 3)), *positions], dim=1))


class IdentityNet(nn.Module):
    """Identity network: images [B,3,R,R] in [-1,1] -> unit embeddings [B,dim].

    widths: channels per map. landmarks: positions in each of the last two maps; 0: a plain `Trunk`.
    hidden: units of a layer between features and embedding; 0: none.
    """

    def __init__(self, widths: tuple[int, ...], dim: int, landmarks: int = 0, hidden: int = 0) -> None:
        super().__init__()
        self.trunk = LandmarkTrunk(widths, landmarks) if landmarks else Trunk(widths)
        self.width = self.trunk.width if isinstance(self.trunk, LandmarkTrunk) else widths[-1]
        # batch norm centres the embeddings: features after a ReLU have small angles between them
        between = [nn.Linear(self.width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()] if hidden else []
        last = hidden or self.width
        self.head = nn.Sequential(*between, nn.Linear(last, dim, bias=False), nn.BatchNorm1d(dim))

    def features(self, images: Tensor) -> Tensor:
        """Features [B,width] of images [B,3,R,R], before the embedding layers."""
        return self.trunk(images)

    def embed(self, features: Tensor) -> Tensor:
        """Unit embeddings [B,dim] of features [B,width]."""
        return F.normalize(self.head(features), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(self.features(images))


def build_identity(numbers: Mapping[str, Any]) -> IdentityNet | arcface.FaceNet:
    """Identity network with the sizes in a weights file's metadata: `FaceNet` if it has a `backbone`.

    Raises ValueError for an unknown backbone.
    """
    rest = {name: value for name, value in numbers.items() if name != "backbone"}
    if "backbone" not in numbers:
        return IdentityNet(**rest)
    if numbers["backbone"] != arcface.NAME:
        raise ValueError(f"unknown backbone of an identity network: '{numbers['backbone']}'")
    return arcface.FaceNet(**rest)


class AttributeClassifier(nn.Module, ABC):
    """Classifier of all attributes of a portrait by linear heads on common features.

    width: F, of the features. attributes: name -> its values, in the order of the logits.
    """

    def __init__(self, width: int, attributes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in attributes.items()})

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features [B,F] of images [B,3,R,R] in [-1,1]."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Attribute -> logits [B,values] of images [B,3,R,R]."""
        return self.logits(self.features(images))

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Attribute -> logits [B,values] of features [B,F]."""
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Attribute -> index of the most likely value [B] in images [B,3,R,R]."""
        return {name: logits.argmax(dim=1) for name, logits in self(images).items()}


class Oracle(AttributeClassifier):
    """The classifier that metrics are computed with: a residual network."""

    def __init__(self, widths: tuple[int, ...], attributes: dict[str, tuple[str, ...]]) -> None:
        super().__init__(widths[-1], attributes)
        self.trunk = Trunk(widths)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer [B,N,D] -> [B,N,D]: self-attention, then a two-layer MLP."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widened, self.narrowed = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mixed(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.joined(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.narrowed(F.gelu(self.widened(self.norm2(x))))


class TokenOracle(AttributeClassifier):
    """The classifier that checks the metrics of `Oracle`: a vision transformer (Dosovitskiy et al. 2021).

    size: R, pixels of the images. stem: widths of stride-2 convolutions that make the tokens (Xiao et al. 2021), which
    are (R / 2**len(stem)) squared in number. layers, heads, hidden: of the transformer; hidden units of its MLPs.
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
        self.layers = nn.Sequential(*(TransformerLayer(width, heads, hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def features(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.place
        return self.norm(self.layers(tokens)).mean(dim=1).float()


def build_classifier(numbers: Mapping[str, Any]) -> AttributeClassifier:
    """Classifier with the sizes in a weights file's metadata: `TokenOracle` if they have a `stem`, else `Oracle`."""
    return TokenOracle(**numbers) if "stem" in numbers else Oracle(**numbers)
