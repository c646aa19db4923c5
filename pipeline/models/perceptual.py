"""Networks that compare photographs, where no truth is known: Inception for FID, AlexNet with LPIPS's heads.

Both are other people's, in their own arithmetic (torchvision's layers, torchmetrics' LPIPS); nothing is downloaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.lean import lean_imports

SEEN = 299  # pixels that Inception takes
SMALLEST = 64  # pixels; AlexNet has no room for less


class Inception(nn.Module):
    """images [B,3,R,R] in [-1,1] -> features [B,2048], in which FID is measured (Heusel et al. 2017).

    The TensorFlow network of 2015, as pytorch-fid holds it: torchvision's Inception3 whose average pooling leaves the
    border out of the mean and whose last block pools by maximum. Pictures are resized bilinearly, without antialiasing.
    """

    def __init__(self) -> None:
        super().__init__()
        with lean_imports(models=True):
            from torchvision.models import inception as blocks

        self.net = blocks.Inception3(num_classes=1, aux_logits=False, init_weights=False)
        self.net.fc = nn.Identity()  # type: ignore[assignment]
        mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
            _pool(getattr(self.net, f"Mixed_{name}"), mean)
        _pool(self.net.Mixed_7c, nn.MaxPool2d(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images.clamp(-1, 1), (SEEN, SEEN), mode="bilinear", align_corners=False)
        return self.net(resized).float()


def _pool(block: nn.Module, pooling: nn.Module) -> None:
    """Let the block's last branch see its input through `pooling`, and not through torchvision's own."""
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    branch: nn.Module = block.branch_pool  # type: ignore[assignment]
    branch.register_forward_pre_hook(lambda _, given: pooling(seen.pop()))


class Lpips(nn.Module):
    """images [B,3,R,R] in [-1,1], twice -> perceptual distances [B] (Zhang et al. 2018, version 0.1, AlexNet).

    heads: take LPIPS's own, which torchmetrics ships; without, they are to be loaded. Pictures below 64 pixels are
    enlarged to it.
    """

    def __init__(self, heads: bool = False) -> None:
        super().__init__()
        with lean_imports(models=True):
            from torchmetrics.functional.image.lpips import _LPIPS

        self.net = _LPIPS(pretrained=heads, net="alex", pnet_rand=True)  # the backbone is never downloaded

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        pair = torch.cat([images, reference]).clamp(-1, 1)
        if pair.shape[-1] < SMALLEST:
            pair = F.interpolate(pair, (SMALLEST, SMALLEST), mode="bilinear", align_corners=False)
        return self.net(*pair.chunk(2)).flatten().float()
