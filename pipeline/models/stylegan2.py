"""StyleGAN2 (Karras et al. 2020) with rosinality's key names, its synthesis split into z -> w -> s -> image.

Modulation scales activations instead of weights, so convolutions are shared by the batch: the same result as grouped
convolutions at a lower cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bias_act import bias_act
from kernels.modulated_epilogue import modulated_epilogue
from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    from pipeline.models.feature_residual import FeatureResidual

EPS = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Normalise x to unit mean square over axis 1, also where axis 1 is not channels (released mappers rely on it)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPS)


class PixelNorm(nn.Module):
    """`pixel_norm` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: weights of variance 1 / lr_mul^2, scaled at run time.

    inputs, outputs: features. bias_init: initial bias. activate: add StyleGAN2's leaky ReLU.
    """

    def __init__(self, inputs: int, outputs: int, bias_init: float = 0.0, lr_mul: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(outputs, inputs), std=1 / lr_mul))
        self.bias = nn.Parameter(torch.full((outputs,), bias_init))
        self.scale, self.lr_mul, self.activate = lr_mul / math.sqrt(inputs), lr_mul, activate

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * self.scale, self.bias * self.lr_mul
        return bias_act(F.linear(x, weight), bias) if self.activate else F.linear(x, weight, bias)


class Blur(nn.Module):
    """Container of an upsampling filter, a buffer in the published files."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(factor=2))


class ModulatedConv(nn.Module):
    """Convolution with input channels scaled per sample by s (StyleGAN2, sections 2.2 and B).

    inputs, outputs: channels. size: of the kernel. style_dim: D. up: double the resolution.
    """

    def __init__(self, inputs: int, outputs: int, size: int, style_dim: int, up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, size, size))
        self.modulation = EqualLinear(style_dim, inputs, bias_init=1.0)
        self.scale, self.up = 1 / math.sqrt(inputs * size**2), up
        if up:
            self.blur = Blur()

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Scaled weights [outputs,inputs,k,k]."""
        return (self.weight[0] * self.scale).to(dtype)

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve x [B,inputs,H,W] with a kernel [outputs,inputs,k,k] -> [B,outputs,H,W], doubled in size if `up`."""
        if not self.up:
            return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2)
        return upfirdn2d(x, self.blur.kernel, pad=(1, 1))

    def forward(self, x: Tensor, s: Tensor | None) -> Tensor:
        """Modulate x [B,inputs,H,W] by s [B,inputs] (None: already done) and convolve, without demodulation."""
        x = x if s is None else x * s.to(x.dtype)[:, :, None, None]
        return self.convolve(x, self.kernel(x.dtype))

    def demodulation(self, s: Tensor) -> Tensor:
        """Factors [B,outputs] that give every filter modulated by s [B,inputs] unit norm (StyleGAN2, eq. 3)."""
        return torch.rsqrt(s.square() @ (self.weight[0] * self.scale).square().sum(dim=(2, 3)).T + EPS)


class NoiseInjection(nn.Module):
    """Container of the noise strength, under its key in the published files."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Activation(nn.Module):
    """Container of the bias, under its key in the published files."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    """Modulated 3 x 3 convolution with demodulation, noise, bias and activation."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up)
        self.noise = NoiseInjection()
        self.activate = Activation(outputs)

    def forward(
        self, x: Tensor, s: Tensor, noise: Tensor, scaled: bool = False, following: Tensor | None = None
    ) -> Tensor:
        """Apply the layer to x [B,inputs,H,W] with s [B,inputs] and noise [1 or B,1,h,w] -> [B,outputs,h,w].

        scaled: x is already multiplied by s. following [B,outputs]: style of the next layer, multiplied in here.
        """
        demod = self.conv.demodulation(s)
        x = self.conv(x, None if scaled else s)
        return modulated_epilogue(x, demod, noise, self.noise.weight, self.activate.bias, following)


class ToRGB(nn.Module):
    """Modulated 1 x 1 convolution to colours, added to the upsampled image of the previous resolution."""

    def __init__(self, inputs: int, style_dim: int, up: bool = True):
        super().__init__()
        if up:
            self.upsample = Blur()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
        """Image [B,3,H,W] of activations x [B,inputs,H,W], w [B,D] and the image at half the resolution, `skip`."""
        image = self.conv(x, self.conv.modulation(w)).float() + self.bias
        if skip is not None:
            image = image + upfirdn2d(skip, self.upsample.kernel, up=2, pad=(2, 1))
        return image


class ConstantInput(nn.Module):
    """Learnt input of the synthesis [1,C,4,4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class Noises(nn.Module):
    """Fixed noise maps, which make synthesis deterministic: noise_0 at 4 pixels, then two per resolution."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        for index, size in enumerate(sizes):
            self.register_buffer(f"noise_{index}", torch.randn(1, 1, size, size))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.buffers())


class Generator(nn.Module):
    """StyleGAN2's mapping and synthesis networks.

    size: R, pixels. style_dim: D, of z and w. widths: resolution -> channels, for 4, 8, ..., `size`.
    n_mlp: layers of the mapping. split: layers that begin the medium and the fine level. layout: of s.
    w_mean [D]: the mean w, for truncation. Raises ValueError when size is not a power of two of at least 8.
    """

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
            inputs, outputs = widths[resolution // 2], widths[resolution]
            self.convs.append(StyledConv(inputs, outputs, style_dim, up=True))
            self.convs.append(StyledConv(outputs, outputs, style_dim))
            self.to_rgbs.append(ToRGB(outputs, style_dim))
        self.noises = Noises([2 ** ((i + 5) // 2) for i in range(2 * steps - 3)])
        self.register_buffer("w_mean", torch.zeros(style_dim), persistent=False)  # `latent_avg` of the published files
        dims = tuple(conv.conv.weight.shape[2] for conv in self.convolutions)
        self.layout = StyleLayout(dims, split)

    @property
    def convolutions(self) -> list[StyledConv]:
        """Modulated convolutions in the order of s."""
        return [self.conv1, *self.convs]  # type: ignore[list-item]

    def mapping(self, z: Tensor) -> Tensor:
        """Map z [B,D] -> w [B,D], in the precision of the weights, also under autocast."""
        with torch.autocast(z.device.type, enabled=False):
            return self.style(z.to(self.w_mean.dtype))

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """Truncate w [...,D] towards the mean w; psi 1 changes nothing."""
        return self.w_mean + psi * (w - self.w_mean)

    def repeat(self, w: Tensor) -> Tensor:
        """Repeat w [B,D] in all rows: w_plus [B,L,D]."""
        return w[:, None].expand(-1, self.num_ws, -1)

    def styles(self, w_plus: Tensor) -> Tensor:
        """Style codes s [B,S] of w_plus [B,L,D]: outputs of the convolutions' modulation layers, layer k of row k."""
        return torch.cat([layer.conv.modulation(w_plus[:, k]) for k, layer in enumerate(self.convolutions)], dim=1)

    def synthesis(
        self, s: Tensor, w_plus: Tensor, noises: list[Tensor] | None = None, detail: FeatureResidual | None = None
    ) -> Tensor:
        """Images [B,3,R,R], not clamped, of s [B,S] and w_plus [B,L,D].

        The toRGB layers read w_plus (rows 1, 3, 5, ...), which edits of s leave unchanged (DeltaEdit's decoder).
        noises: one map [1 or B,1,r,r] per convolution; None: the fixed ones. detail: residual of an inversion.
        """
        if detail is not None:
            size = detail.residual.shape[-1]
            x, image = self.features_at(size, s, w_plus, noises)
            return self.synthesis_from(size, detail.add_to(x), image, s, w_plus, noises)
        image = self.run_layers(range(len(self.layout.dims)), self._input(s), None, s, w_plus, noises)[1]
        assert image is not None
        return image

    def features_at(
        self, size: int, s: Tensor, w_plus: Tensor, noises: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Output of the last convolution of `size` pixels [B,C,size,size], and the image so far [B,3,size/2,size/2].

        s, w_plus, noises: as of `synthesis`.
        """
        last = self.last_layer(size)
        x, image = self.run_layers(range(last), self._input(s), None, s, w_plus, noises)
        noise = list(self.noises) if noises is None else noises
        return self.convolutions[last](x, s.split(self.layout.dims, dim=1)[last], noise[last]), image

    def synthesis_from(
        self,
        size: int,
        x: Tensor,
        image: Tensor | None,
        s: Tensor,
        w_plus: Tensor,
        noises: list[Tensor] | None = None,
    ) -> Tensor:
        """Images [B,3,R,R] from features x [B,C,size,size] and the image so far, as `features_at` returns them.

        s, w_plus, noises: as of `synthesis`.
        """
        last = self.last_layer(size)
        image = self.add_to_image(last, x, image, w_plus)
        image = self.run_layers(range(last + 1, len(self.layout.dims)), x, image, s, w_plus, noises)[1]
        assert image is not None
        return image

    def last_layer(self, size: int) -> int:
        """Index of the last convolution of `size` pixels. Raises InputError when the generator's images are smaller."""
        if size > self.size:
            raise InputError(f"the generator has no features of {size} pixels: set at most {self.size}")
        return 2 * int(math.log2(size)) - 4

    def feature_shape(self, size: int) -> tuple[int, int, int]:
        """Shape (C, size, size) of `features_at`, without the batch."""
        return self.convolutions[self.last_layer(size)].conv.weight.shape[1], size, size

    def _input(self, s: Tensor) -> Tensor:
        x = self.input.input.expand(len(s), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x

    def run_layers(
        self,
        indices: range,
        x: Tensor,
        image: Tensor | None,
        s: Tensor,
        w_plus: Tensor,
        noises: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run some convolutions, each even one with its toRGB layer; return activations and the image so far.

        indices: of the convolutions. x [B,C,H,W], image (None before layer 0): results of the previous layer. s [B,S],
        w_plus [B,L,D], noises: as in `synthesis`. Computed in x's dtype.
        """
        codes = s.split(self.layout.dims, dim=1)
        noise, scaled = list(self.noises) if noises is None else noises, False
        for layer in indices:
            inner = layer % 2 == 1 and layer + 1 in indices  # read by the next convolution only: its style is fused
            x = self.convolutions[layer](x, codes[layer], noise[layer], scaled, codes[layer + 1] if inner else None)
            scaled = inner
            image = self.add_to_image(layer, x, image, w_plus)
        return x, image

    def add_to_image(self, layer: int, x: Tensor, image: Tensor | None, w_plus: Tensor) -> Tensor | None:
        """Image so far after a layer with activations x [B,C,H,W]; odd layers add nothing.

        image: that before the layer [B,3,H/2,W/2], None before layer 0.
        """
        if layer % 2:
            return image
        return self.to_rgb(layer)(x, w_plus[:, layer + 1], image)

    def to_rgb(self, layer: int) -> ToRGB:
        """The toRGB layer of an even layer."""
        return self.to_rgbs[layer // 2 - 1] if layer else self.to_rgb1  # type: ignore[return-value]

    def random_noises(self, batch: int) -> list[Tensor]:
        """Random noise maps [B,1,r,r] per convolution, for training."""
        return [torch.randn(batch, 1, *n.shape[2:], device=n.device) for n in self.noises]

    def forward(self, w_plus: Tensor, noises: list[Tensor] | None = None) -> Tensor:
        """Images [B,3,R,R], not clamped, of w_plus [B,L,D]."""
        return self.synthesis(self.styles(w_plus), w_plus, noises)


def build(numbers: Mapping[str, Any]) -> Generator:
    """Generator with the sizes in a domain file or a weights file: size, style_dim, widths, n_mlp, split."""
    widths = {int(resolution): int(width) for resolution, width in numbers["widths"].items()}
    first, second = numbers.get("split", (3, 7))
    return Generator(numbers["size"], numbers["style_dim"], widths, numbers.get("n_mlp", 8), (first, second))
