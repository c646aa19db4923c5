"""StyleGAN2 (Karras et al. 2020) with rosinality's key names and the synthesis split into z -> w -> s -> image.

Modulation scales activations instead of weights, so all convolutions are shared over the batch: the same numbers as
the grouped form, without its cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bias_act import bias_act
from kernels.epilogue import modulated_epilogue
from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from pipeline.models.feature_residual import Detail

EPS = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Unit mean square over axis 1, whatever axis 1 is (released mappers rely on that)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPS)


class PixelNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: weights of unit variance (over lr_mul), scaled at run time."""

    def __init__(self, inputs: int, outputs: int, bias_init: float = 0.0, lr_mul: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(outputs, inputs), std=1 / lr_mul))
        self.bias = nn.Parameter(torch.full((outputs,), bias_init))
        self.scale, self.lr_mul, self.activate = lr_mul / math.sqrt(inputs), lr_mul, activate

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * self.scale, self.bias * self.lr_mul
        return bias_act(F.linear(x, weight), bias) if self.activate else F.linear(x, weight, bias)


class Blur(nn.Module):
    """Holds the filter of an up-sampling step as a buffer, as the published files do."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(factor=2))


class ModulatedConv(nn.Module):
    """k x k convolution whose input channels are scaled per sample by s (sections 2.2 and B of StyleGAN2)."""

    def __init__(self, inputs: int, outputs: int, size: int, style_dim: int, up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, size, size))
        self.modulation = EqualLinear(style_dim, inputs, bias_init=1.0)
        self.scale, self.up = 1 / math.sqrt(inputs * size**2), up
        if up:
            self.blur = Blur()

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """The weights as they are multiplied with, [outputs,inputs,k,k]."""
        return (self.weight[0] * self.scale).to(dtype)

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """x [B,inputs,H,W], kernel [outputs,inputs,k,k] -> [B,outputs,H,W], twice the size when `up`; nothing else."""
        if not self.up:
            return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2)
        return upfirdn2d(x, self.blur.kernel, pad=(1, 1))

    def forward(self, x: Tensor, s: Tensor | None) -> Tensor:
        """x [B,inputs,H,W], s [B,inputs], None where x is multiplied by it already -> [B,outputs,H,W], as above.

        Not demodulated.
        """
        x = x if s is None else x * s.to(x.dtype)[:, :, None, None]
        return self.convolve(x, self.kernel(x.dtype))

    def demodulation(self, s: Tensor) -> Tensor:
        """s [B,inputs] -> [B,outputs]: the factors that give every modulated filter unit norm (eq. 3)."""
        return torch.rsqrt(s.square() @ (self.weight[0] * self.scale).square().sum(dim=(2, 3)).T + EPS)


class NoiseInjection(nn.Module):
    """Holds the strength of the noise, as the published files do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Activation(nn.Module):
    """Holds the bias, as the published files do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up)
        self.noise = NoiseInjection()
        self.activate = Activation(outputs)

    def forward(
        self, x: Tensor, s: Tensor, noise: Tensor, scaled: bool = False, following: Tensor | None = None
    ) -> Tensor:
        """x [B,inputs,H,W], s [B,inputs], noise [1 or B,1,h,w] -> [B,outputs,h,w].

        scaled: x is multiplied by s already. following [B,outputs]: what to multiply the result by for the next layer.
        """
        demod = self.conv.demodulation(s)
        x = self.conv(x, None if scaled else s)
        return modulated_epilogue(x, demod, noise, self.noise.weight, self.activate.bias, following)


class ToRGB(nn.Module):
    def __init__(self, inputs: int, style_dim: int, up: bool = True):
        super().__init__()
        if up:
            self.upsample = Blur()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
        """x [B,inputs,H,W], w [B,D], skip: the image so far at half the size -> image [B,3,H,W]."""
        image = self.conv(x, self.conv.modulation(w)).float() + self.bias
        if skip is not None:
            image = image + upfirdn2d(skip, self.upsample.kernel, up=2, pad=(2, 1))
        return image


class ConstantInput(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class Noises(nn.Module):
    """The fixed noise pictures that make decoding deterministic: noise_0 at 4 px, then two per resolution."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        for index, size in enumerate(sizes):
            self.register_buffer(f"noise_{index}", torch.randn(1, 1, size, size))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.buffers())


class Generator(nn.Module):
    """widths: resolution -> channels, for 4, 8, ... up to `size`. style_dim is D, of z and w alike."""

    w_mean: Tensor

    def __init__(
        self, size: int, style_dim: int, widths: dict[int, int], n_mlp: int = 8, split: tuple[int, int] = (3, 7)
    ) -> None:
        super().__init__()
        steps = int(math.log2(size))
        if 2**steps != size or size < 8:
            raise ValueError(f"resolution {size} is not a power of two of at least 8")
        self.size, self.style_dim, self.num_ws = size, style_dim, 2 * steps - 2
        self.style = nn.Sequential(
            PixelNorm(), *(EqualLinear(style_dim, style_dim, lr_mul=0.01, activate=True) for _ in range(n_mlp))
        )
        self.input = ConstantInput(widths[4])
        self.conv1 = StyledConv(widths[4], widths[4], style_dim)
        self.to_rgb1 = ToRGB(widths[4], style_dim, up=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for resolution in (2**k for k in range(3, steps + 1)):
            below, here = widths[resolution // 2], widths[resolution]
            self.convs.append(StyledConv(below, here, style_dim, up=True))
            self.convs.append(StyledConv(here, here, style_dim))
            self.to_rgbs.append(ToRGB(here, style_dim))
        self.noises = Noises([2 ** ((i + 5) // 2) for i in range(2 * steps - 3)])
        self.register_buffer("w_mean", torch.zeros(style_dim), persistent=False)  # `latent_avg` of the published files
        dims = tuple(conv.conv.weight.shape[2] for conv in self.styled)
        self.layout = StyleLayout(dims, split)

    @property
    def styled(self) -> list[StyledConv]:
        """The modulated convolutions, in the order of s."""
        return [self.conv1, *self.convs]  # type: ignore[list-item]

    def mapping(self, z: Tensor) -> Tensor:
        """z [B,D] -> w [B,D], in the precision of its weights whatever surrounds it."""
        with torch.autocast(z.device.type, enabled=False):
            return self.style(z.to(self.w_mean.dtype))

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """w [..., D] drawn towards the mean w; psi 1 leaves it as it is."""
        return self.w_mean + psi * (w - self.w_mean)

    def repeat(self, w: Tensor) -> Tensor:
        """w [B,D] -> w_plus [B,L,D] with equal rows."""
        return w[:, None].expand(-1, self.num_ws, -1)

    def styles(self, w_plus: Tensor) -> Tensor:
        """w_plus [B,L,D] -> s [B,S]: what the modulation layers of the convolutions give; layer k reads row k."""
        return torch.cat([layer.conv.modulation(w_plus[:, k]) for k, layer in enumerate(self.styled)], dim=1)

    def synthesis(
        self, s: Tensor, w_plus: Tensor, noises: list[Tensor] | None = None, detail: Detail | None = None
    ) -> Tensor:
        """s [B,S], w_plus [B,L,D] -> images [B,3,R,R], not clamped.

        The toRGB layers read w_plus (rows 1, 3, 5, ...), which an edit of s leaves as it was (DeltaEdit's decoder).
        `noises`: one [1 or B,1,r,r] per convolution; the fixed buffers when None. detail: of photographs.
        """
        if detail is not None:
            size = detail.added.shape[-1]
            x, below = self.features(size, s, w_plus, noises)
            return self.onwards(size, detail.onto(x), below, s, w_plus, noises)
        image = self.layers(range(len(self.layout.dims)), self._first(s), None, s, w_plus, noises)[1]
        assert image is not None
        return image

    def features(
        self, size: int, s: Tensor, w_plus: Tensor, noises: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the last convolution of `size` pixels gives, [B,C,size,size], and the image so far, of half the size."""
        last = self.last(size)
        x, image = self.layers(range(last), self._first(s), None, s, w_plus, noises)
        noise = list(self.noises) if noises is None else noises
        return self.styled[last](x, s.split(self.layout.dims, dim=1)[last], noise[last]), image

    def onwards(
        self,
        size: int,
        x: Tensor,
        image: Tensor | None,
        s: Tensor,
        w_plus: Tensor,
        noises: list[Tensor] | None = None,
    ) -> Tensor:
        """Images [B,3,R,R] from what `features` gives, or something like it."""
        last = self.last(size)
        image = self.shown(last, x, image, w_plus)
        image = self.layers(range(last + 1, len(self.layout.dims)), x, image, s, w_plus, noises)[1]
        assert image is not None
        return image

    def last(self, size: int) -> int:
        """The last convolution of `size` pixels; InputError when the pictures are smaller."""
        if size > self.size:
            raise InputError(f"detail of {size} pixels is asked for, the generator draws {self.size}: give no more")
        return 2 * int(math.log2(size)) - 4

    def shape(self, size: int) -> tuple[int, int, int]:
        """C, size, size of `features`."""
        return self.styled[self.last(size)].conv.weight.shape[1], size, size

    def _first(self, s: Tensor) -> Tensor:
        x = self.input.input.expand(len(s), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x

    def layers(
        self,
        which: range,
        x: Tensor,
        image: Tensor | None,
        s: Tensor,
        w_plus: Tensor,
        noises: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Some convolutions of the synthesis, each even one with its toRGB: (activations, image so far) -> the same.

        x [B,C,H,W] and image (None before layer 0) are what the layer before `which` gave; computed in x's dtype.
        """
        codes = s.split(self.layout.dims, dim=1)
        noise, scaled = list(self.noises) if noises is None else noises, False
        for layer in which:
            inner = layer % 2 == 1 and layer + 1 in which  # only the next convolution reads its activations
            x = self.styled[layer](x, codes[layer], noise[layer], scaled, codes[layer + 1] if inner else None)
            scaled = inner
            image = self.shown(layer, x, image, w_plus)
        return x, image

    def shown(self, layer: int, x: Tensor, image: Tensor | None, w_plus: Tensor) -> Tensor | None:
        """The image so far after layer `layer`, whose activations are x; only even layers add to it."""
        if layer % 2:
            return image
        return self.to_rgb(layer)(x, w_plus[:, layer + 1], image)

    def to_rgb(self, layer: int) -> ToRGB:
        """What shows the activations of even layer `layer`."""
        return self.to_rgbs[layer // 2 - 1] if layer else self.to_rgb1  # type: ignore[return-value]

    def random_noises(self, batch: int) -> list[Tensor]:
        """Fresh noise per sample, for training."""
        return [torch.randn(batch, 1, *n.shape[2:], device=n.device) for n in self.noises]

    def forward(self, w_plus: Tensor, noises: list[Tensor] | None = None) -> Tensor:
        """w_plus [B,L,D] -> images [B,3,R,R]."""
        return self.synthesis(self.styles(w_plus), w_plus, noises)


def build(numbers: Mapping[str, Any]) -> Generator:
    """A generator from the plain numbers of a domain or of a weights file: size, style_dim, widths, n_mlp, split."""
    widths = {int(resolution): int(width) for resolution, width in numbers["widths"].items()}
    first, second = numbers.get("split", (3, 7))
    return Generator(numbers["size"], numbers["style_dim"], widths, numbers.get("n_mlp", 8), (first, second))
