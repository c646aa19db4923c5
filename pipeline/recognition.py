"""The two judges of an edit: a network that knows who it is, and one that reads attributes.

Both are small residual networks trained on renders only; neither sees an edited picture, nor guides an editor unless
asked to. For photographs of faces the published identity network (`pipeline.irse.FaceNet`) can stand in for ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import irse


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a skip connection; with stride 2 the map is halved."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride == 2 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class Trunk(nn.Sequential):
    """images [B,3,R,R] -> features [B,widths[-1]]: a stride-2 stem, one block per width, mean over the picture."""

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


class IdentityNet(nn.Module):
    """images [B,3,R,R] in [-1,1] -> unit embeddings [B,dim]; trained with the ArcFace loss (Deng et al. 2019)."""

    def __init__(self, widths: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        # the norm centres the embeddings: features after a ReLU all point one way, and angles could not tell them apart
        self.head = nn.Sequential(nn.Linear(widths[-1], dim, bias=False), nn.BatchNorm1d(dim))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.trunk(images)), dim=1)


def build(numbers: Mapping[str, Any]) -> IdentityNet | irse.FaceNet:
    """An identity network from the numbers of a weights file: `backbone` says whose; absent, it is one of ours."""
    rest = {name: value for name, value in numbers.items() if name != "backbone"}
    if "backbone" not in numbers:
        return IdentityNet(**rest)
    if numbers["backbone"] != irse.NAME:
        raise ValueError(f"an identity network on '{numbers['backbone']}'")
    return irse.FaceNet(**rest)


class Oracle(nn.Module):
    """Reads every attribute of a portrait. attributes: name -> its values, in the order of the logits."""

    def __init__(self, widths: tuple[int, ...], attributes: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.trunk = Trunk(widths)
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], len(values)) for name, values in attributes.items()})

    def features(self, images: Tensor) -> Tensor:
        """images [B,3,R,R] in [-1,1] -> [B,F]."""
        return self.trunk(images)

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
