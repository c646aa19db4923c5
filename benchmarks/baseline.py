"""The published algorithms in plain PyTorch: the other side of `benchmarks.compare`.

StyleGAN2 with one set of weights per sample and grouped convolutions, a whole synthesis per perturbed channel, nearest
x7 and average pooling, every fake rendered twice; float32. With `shared`, the convolutions have one set of weights
for all samples: the fastest batched PyTorch without an operation or algorithm of this repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.delta_mapper import DeltaMapper
    from pipeline.models.clip import Clip
    from pipeline.models.stylegan2 import Generator, ModulatedConv, ToRGB
    from pipeline.relevance import Probe


def blur(x: Tensor, kernel: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
    """Insert up - 1 zeros after every sample of x [B,C,H,W], pad, and convolve every channel with kernel [k,k]."""
    if up > 1:
        stuffed = x.new_zeros(*x.shape[:2], x.shape[2], up, x.shape[3], up)
        stuffed[:, :, :, 0, :, 0] = x
        x = stuffed.flatten(4).flatten(2, 3)
    weight = kernel.flip(0, 1).to(x.dtype).expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(F.pad(x, (*pad, *pad)), weight, groups=x.shape[1])


def convolve(conv: ModulatedConv, x: Tensor, s: Tensor, shared: bool) -> Tensor:
    """Modulated convolution: x [B,I,H,W], s [B,I] -> [B,O,H,W], demodulated except in toRGB layers.

    shared: scale x instead of the weights, so that all images share them.
    """
    weight, demodulated = conv.weight[0] * conv.scale, conv.weight.shape[-1] > 1  # toRGB layers are 1 x 1
    if shared:
        x, groups = x * s.to(x.dtype)[..., None, None], 1
        norm = torch.rsqrt(s.square() @ weight.square().sum(dim=(2, 3)).T + 1e-8)
        kernels = weight
    else:
        kernels = weight * s[:, None, :, None, None]  # [B,O,I,k,k]
        if demodulated:
            kernels = kernels * torch.rsqrt(kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        groups, batch, norm = len(x), len(x), None
        x, kernels = x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1)
    if conv.up:
        if not shared:
            kernels = kernels.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        kernels = kernels.transpose(0, 1) if shared else kernels
        x = F.conv_transpose2d(x, kernels.to(x.dtype), stride=2, groups=groups)
    else:
        x = F.conv2d(x, kernels.to(x.dtype), padding=kernels.shape[-1] // 2, groups=groups)
    if not shared:
        x = x.reshape(batch, -1, *x.shape[2:])
    if conv.up:
        x = blur(x, conv.blur.kernel, 1, (1, 1))
    return x * norm.to(x.dtype)[..., None, None] if shared and demodulated and norm is not None else x


def synthesis(
    generator: Generator, s: Tensor, w_plus: Tensor, shared: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images [B,3,R,R] from s [B,S] and w_plus [B,L,D], equal to those of `Generator.synthesis`.

    shared: as in `convolve`. dtype: of the products.
    """
    codes, noises = s.split(generator.layout.dims, dim=1), list(generator.noises)
    x = generator.input.input.to(dtype).expand(len(s), -1, -1, -1)
    image: Tensor | None = None
    for layer, block in enumerate(generator.convolutions):
        x = convolve(block.conv, x, codes[layer], shared) + (block.noise.weight * noises[layer]).to(dtype)
        x = F.leaky_relu(x + block.activate.bias.to(dtype)[:, None, None], 0.2) * 2**0.5
        if layer % 2 == 0:
            to_rgb: ToRGB = generator.to_rgbs[layer // 2 - 1] if layer else generator.to_rgb1  # type: ignore[assignment]
            style = to_rgb.conv.modulation(w_plus[:, layer + 1])
            shown = convolve(to_rgb.conv, x, style, shared).float() + to_rgb.bias
            image = shown if image is None else shown + blur(image, to_rgb.upsample.kernel, 2, (2, 1))
    assert image is not None
    return image


def resampled(images: Tensor, size: int) -> Tensor:
    """Upsample by 7 (nearest), then average blocks: [B,3,R,R] -> [B,3,size,size]; R * 7 is a multiple of size."""
    large = F.interpolate(images, scale_factor=7, mode="nearest")
    return F.avg_pool2d(large, large.shape[-1] // size)


def embed(clip: Clip, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """CLIP embeddings [B,E] of images [B,3,R,R], by the published resampling where R allows it."""
    if images.shape[-1] * 7 % clip.image_size == 0:
        images = resampled(images, clip.image_size)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        return clip.embed_images(images)


@torch.no_grad()
def relevance_rows(probe: Probe, channels: Iterable[int], shared: bool = False) -> Tensor:
    """Rows of the relevance matrix [len(channels),E]: two whole syntheses per channel."""
    rows, dtype = [], probe.dtype if shared else torch.float32
    for channel in channels:
        low, high = probe.s.clone(), probe.s.clone()
        low[:, channel], high[:, channel] = probe.low[channel], probe.high[channel]
        ends = [
            F.normalize(embed(probe.clip, synthesis(probe.generator, s, probe.w_plus, shared, dtype), dtype), dim=1)
            for s in (low, high)
        ]
        rows.append(F.normalize(F.normalize(ends[1] - ends[0], dim=1).mean(dim=0), dim=0))
    return torch.stack(rows)


@torch.no_grad()
def fake_codes(generator: Generator, clip: Clip, w: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """s [N,S] and CLIP embeddings [N,E] of w [N,D]; each in its own rendering pass, as published."""
    codes, embeddings = [], []
    for part in w.split(batch):
        w_plus = generator.repeat(part)
        s = generator.styles(w_plus)
        synthesis(generator, s, w_plus)
        codes.append(s)
    for part in w.split(batch):
        w_plus = generator.repeat(part)
        embeddings.append(embed(clip, synthesis(generator, generator.styles(w_plus), w_plus)))
    return torch.cat(codes), torch.cat(embeddings)


class Codes:
    """Dataset of pairs: item n is code n, raw, with another one drawn at random."""

    def __init__(self, s: Tensor, clip: Tensor) -> None:
        self.s, self.clip = s, clip

    def __len__(self) -> int:
        return len(self.s)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        other = int(torch.randint(len(self.s), ()))
        first, second = (F.normalize(self.clip[row], dim=0) for row in (n, other))
        return self.s[n].float(), first, self.s[other].float(), second


def mapper_training(mapper: DeltaMapper, s: Tensor, clip: Tensor, steps: int, batch: int, lr: float) -> None:
    """The released training: single items from a DataLoader, Adam at a constant rate, float32."""
    from torch.utils.data import DataLoader

    loader = DataLoader(Codes(s, clip), batch, shuffle=True, drop_last=True)  # type: ignore[arg-type]

    def batches() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    adam = torch.optim.Adam(mapper.parameters(), lr=lr, foreach=False)
    for _, (s_first, first, s_second, second) in zip(range(steps), batches(), strict=False):
        condition = torch.cat([first, F.normalize(second - first, dim=1)], dim=1)
        predicted, target = mapper(s_first, condition), s_second - s_first
        loss = F.mse_loss(predicted, target) + 1 - F.cosine_similarity(predicted, target, dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
