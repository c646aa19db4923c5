"""IR-SE50, ArcFace's ResNet (Deng et al. 2019) with squeeze and excitation, under the keys of the published files.

With its output layer it is the identity network `FaceNet` (model_ir_se50.pth); without, the backbone of the e4e and pSp
encoders (`pipeline.models.e4e.PublishedEncoder`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "ir_se50"  # `backbone` in the metadata of a weights file
DEPTHS = 3, 4, 14, 3  # bottlenecks per group; the first of each has stride 2
REDUCTION = 16  # of the channels inside squeeze and excitation
INPUT = 256  # pixels of the training images
FACE = slice(35, 223), slice(32, 220)  # rows and columns of an aligned face within them


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images [B,3,R,R] to [B,3,size,size]: larger ones by box averages, smaller ones bilinearly."""
    if images.shape[-1] < size:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(images, size).contiguous(memory_format=torch.channels_last)


class SqueezeExcitation(nn.Module):
    """Scale the channels of [B,C,H,W] by a two-layer function of their means (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


class Bottleneck(nn.Module):
    """Residual block of ArcFace: norm first, PReLU, squeeze and excitation; a shortcut of equal width subsamples."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcitation(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def stem(width: int) -> nn.Sequential:
    """Input layer [B,3,H,W] -> [B,width,H,W]."""
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))


def body(widths: tuple[int, ...]) -> nn.Sequential:
    """Bottlenecks of all four groups, [B,widths[0],H,W] -> [B,widths[3],H/16,W/16]."""
    blocks, inputs = [], widths[0]
    for width, depth in zip(widths, DEPTHS, strict=True):
        for index in range(depth):
            blocks.append(Bottleneck(inputs, width, 1 if index else 2))
            inputs = width
    return nn.Sequential(*blocks)


def feature_maps(x: Tensor, blocks: nn.Sequential, count: int = len(DEPTHS)) -> list[Tensor]:
    """Outputs of the first `count` groups of a body for x [B,C,H,W], with H/2, H/4, H/8 and H/16 rows."""
    outputs, layers = [], iter(blocks)
    for depth in DEPTHS[:count]:
        for _ in range(depth):
            x = next(layers)(x)
        outputs.append(x)
    return outputs


class FaceNet(nn.Module):
    """Identity network: images [B,3,R,R] in [-1,1] -> unit embeddings [B,dim]. Crops the centre, as e4e and pSp do.

    widths: channels of the four groups.
    """

    def __init__(self, widths: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.input_layer, self.body = stem(widths[0]), body(widths)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(widths[-1] * 7 * 7, dim),
            nn.BatchNorm1d(dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = FACE
        faces = F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(images, INPUT)[:, :, rows, columns], 112)
        x = self.body(self.input_layer(faces.contiguous(memory_format=torch.channels_last)))
        return F.normalize(self.output_layer(x).float(), dim=1)
