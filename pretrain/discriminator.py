"""StyleGAN2's discriminator: residual blocks with equalised learning rate (Karras et al. 2020)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline.models.stylegan2 import EqualLinear


class EqualConv(nn.Module):
    """Convolution with equalised learning rate.

    inputs, outputs: channels.
    size: of the kernel.
    down: blur, and halve the resolution.
    activate: add bias, leaky ReLU and gain.
    """

    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, down: bool = False, activate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activate else None
        self.scale, self.down, self.pad = 1 / math.sqrt(inputs * size**2), down, size // 2
        self.register_buffer("kernel", binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.scale).to(x.dtype)
        if self.down:
            pad = 2 + weight.shape[-1] - 1  # in all, for four filter taps; the output is half the size
            x = upfirdn2d(x, self.kernel, pad=((pad + 1) // 2, pad // 2))
            x = F.conv2d(x, weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=self.pad)
        if self.bias is None:
            return x
        return F.leaky_relu(x + self.bias.to(x.dtype)[:, None, None], 0.2) * math.sqrt(2)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip connection; half the resolution. inputs, outputs: channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = EqualConv(inputs, inputs, 3)
        self.conv2 = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Residual discriminator with minibatch standard deviation as one more channel (Karras et al. 2018).

    size: pixels per side.
    widths: resolution -> channels.
    group: images that a standard deviation is taken over.
    """

    def __init__(self, size: int, widths: dict[int, int], group: int = 4) -> None:
        super().__init__()
        resolutions = [2**k for k in range(int(math.log2(size)), 2, -1)]
        self.from_rgb = EqualConv(3, widths[size], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(widths[r], widths[r // 2]) for r in resolutions))
        self.conv = EqualConv(widths[4] + 1, widths[4], 3)
        self.linear = EqualLinear(widths[4] * 16, widths[4], activate=True)
        self.out = EqualLinear(widths[4], 1)
        self.group = group

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B] of images [B,3,R,R]."""
        x = self.blocks(self.from_rgb(images.contiguous(memory_format=torch.channels_last))).float()
        group = math.gcd(len(x), self.group)
        deviation = x.view(group, -1, *x.shape[1:]).var(dim=0, unbiased=False).add(1e-8).sqrt().mean(dim=(1, 2, 3))
        x = torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)
        return self.out(self.linear(self.conv(x).float().flatten(1)))[:, 0]
