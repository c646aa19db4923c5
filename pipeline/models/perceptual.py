"""Networks of perceptual metrics without ground truth: Inception for FID, AlexNet with LPIPS's heads.

Architectures are torchvision's and torchmetrics'; nothing is downloaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INCEPTION_SIZE = 299  # pixels
ALEXNET_MIN_SIZE = 64  # pixels


class Inception(nn.Module):
    """Images [B,3,R,R] in [-1,1] -> the features [B,2048] of FID (Heusel et al. 2017).

    The TensorFlow network of 2015, as in pytorch-fid: torchvision's Inception3, except that average pooling leaves
    padding out of the mean and the last block pools by maximum. Images are resized bilinearly, without antialiasing.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception

        self.net = inception.Inception3(num_classes=1, aux_logits=False, init_weights=False)
        self.net.fc = nn.Identity()  # type: ignore[assignment]
        mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
            _replace_pooling(getattr(self.net, f"Mixed_{name}"), mean)
        _replace_pooling(self.net.Mixed_7c, nn.MaxPool2d(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(
            images.clamp(-1, 1), (INCEPTION_SIZE, INCEPTION_SIZE), mode="bilinear", align_corners=False
        )
        return self.net(resized).float()


def _replace_pooling(block: nn.Module, pooling: nn.Module) -> None:
    """Feed the block's last branch with `pooling` of the block's input instead of torchvision's pooling."""
    inputs: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    branch: nn.Module = block.branch_pool  # type: ignore[assignment]
    branch.register_forward_pre_hook(lambda _, arguments: pooling(inputs.pop()))


class Lpips(nn.Module):
    """LPIPS distances [B] of two batches of images [B,3,R,R] in [-1,1] (Zhang et al. 2018, version 0.1, AlexNet).

    heads: start with LPIPS's linear heads, which torchmetrics ships; else they must be loaded. Images below 64 pixels
    are enlarged.
    """

    def __init__(self, heads: bool = False) -> None:
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS

        self.net = _LPIPS(pretrained=heads, net="alex", pnet_rand=True)  # the backbone is never downloaded

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        pair = torch.cat([images, reference]).clamp(-1, 1)
        if pair.shape[-1] < ALEXNET_MIN_SIZE:
            pair = F.interpolate(pair, (ALEXNET_MIN_SIZE, ALEXNET_MIN_SIZE), mode="bilinear", align_corners=False)
        return self.net(*pair.chunk(2)).flatten().float()
