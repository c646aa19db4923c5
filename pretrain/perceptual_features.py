"""Network whose features supervised training compares renders by, beside their pixels.

It is trained to predict the parameters that a render was drawn from, and serves as a loss alone: no metric reads it, so
a generator cannot gain in an evaluation by fitting it. As in LPIPS (Zhang et al. 2018), features are normalised to unit
length per pixel before they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.runtime.precision import lowered
from pipeline.training import Metrics, fit
from pretrain.common import learning_rate
from pretrain.datasets import ImageChunks
from pretrain.portrait_parameters import parameter_count, parameters_of

BATCH, IMAGES = 128, 120_000  # images of a step; training images used at most
WIDTHS = 16, 32, 64, 96  # channels at full size, and at 1/2, 1/4 and 1/8 of it
LAST_WIDTH = 128  # channels of the map from which the parameters are predicted


class PerceptualFeatures(nn.Module):
    """Convolutional network from images [B,3,R,R] to four maps of features, with a linear prediction from the last.

    size: R, pixels per side.
    outputs: predicted parameters, P.
    """

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for index, (previous, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
            conv = nn.Conv2d(previous, width, 3, stride=2 if index else 1, padding=1, bias=False)
            stages.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.LeakyReLU(0.2)))
        self.stages = nn.ModuleList(stages)
        conv = nn.Conv2d(WIDTHS[-1], LAST_WIDTH, 3, stride=2, padding=1)
        linear = nn.Linear(LAST_WIDTH * max(1, size // 16) ** 2, outputs)
        self.last = nn.Sequential(conv, nn.LeakyReLU(0.2), nn.Flatten(), linear)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def predict(self, images: Tensor) -> Tensor:
        """Predicted parameters [B,P] of images."""
        return self.last(self(images)[-1])

    def difference(self, generated: Tensor, real: Tensor) -> Tensor:
        """Squared distance of the features of images [B,3,R,R], averaged over pixels and maps.

        The first map is left out: it is the slowest, and adds little to the difference of pixels.
        """
        with torch.no_grad():
            targets = self(real)[1:]
        pairs = zip(self(generated)[1:], targets, strict=True)
        errors = (F.normalize(x.float(), dim=1) - F.normalize(target.float(), dim=1) for x, target in pairs)
        return torch.stack([error.square().sum(dim=1).mean() for error in errors]).mean()


def steps(
    data: ImageChunks,
    state: Path,
    images: int,
    batch: int = BATCH,
    lr: float = 2e-3,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, PerceptualFeatures]]:
    """Yield (images seen, {"unexplained"}: fraction of the parameters' variance, network).

    data: renders, of which the first `IMAGES` are used.
    state: file that the training goes on from when it exists.
    images: images to see in all.
    seconds: time limit; None for no limit.
    """
    torch.manual_seed(0)
    network = PerceptualFeatures(data.chunks[0].shape[1], parameter_count()).to(device)
    adam = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02, fused=True)
    count = min(IMAGES, len(data))

    def step(number: int) -> Metrics:
        torch.manual_seed(number)
        adam.param_groups[0]["lr"] = learning_rate(lr, images, batch, number, 100)
        rows = torch.randint(count, (batch,))
        parameters = parameters_of(list(data.people(rows))).to(device)
        with lowered(device):
            predicted = network.predict(data.images(rows).to(device))
        F.smooth_l1_loss(predicted.float(), parameters).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        return {"unexplained": (predicted.detach().float() - parameters).square().mean().item()}

    parts: dict[str, Any] = {"features": network, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=500, seconds=seconds):
        yield done * batch, metrics, network


def frozen(state: Path) -> PerceptualFeatures:
    """Network of a training's state, in evaluation mode and without gradients of its weights."""
    tensors = torch.load(state, weights_only=True, map_location="cpu")["features"]
    outputs, inputs = tensors["last.3.weight"].shape
    network = PerceptualFeatures(16 * round((inputs / LAST_WIDTH) ** 0.5), outputs)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
