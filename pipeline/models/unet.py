"""Denoiser of DeltaEdit-D: a U-Net over noisy pixels, conditioned on the image's style code by hierarchical AdaGN.

It is `diffusers.UNet2DModel` with the architecture of DiffAE's U-Net (resampling inside ResBlocks, one attention head,
zero-initialised last convolutions). Three parts are replaced, the forward pass is not:

* the time projection of every ResBlock by a `StyleProjection`: after its second GroupNorm the block computes
  (1 + z_s) * ((1 + t_s) * GroupNorm(h) + t_b), time scale and shift first, then a style scale, as in DiffAE;
* the time embedding by a wider one, and the class embedding by a `StyleEmbedding`: their sum, which UNet2DModel passes
  to all blocks, is [time | coarse | medium | fine].

A block reads the style level of its *image* resolution: after a pixel-unshuffle of `patch`, features of n x n
correspond to an image of n*patch pixels. With the generator's boundaries, image resolutions up to 8 are coarse, 16 and
32 medium, from 64 on fine; the middle block is always coarse. So a 64 px network with patch 2 and four resolutions
(network 32, 16, 8, 4) reads fine, medium, medium, coarse. A resampling ResBlock modulates after resampling, and counts
as the resolution of its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.ode_solvers import Objective
from pipeline.models.stylespace import LEVELS, Space

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
OBJECTIVES, SPACES = get_args(Objective), get_args(Space)
PIXEL_STD = 0.5  # typical standard deviation of pixels in [-1,1]


class StyleProjection(nn.Linear):
    """Embedding -> scale and shift of a ResBlock: DiffAE's AdaGN, time inside and style outside, as one affine map.

    time_dim: of the time embedding. channels: C, of the block. style_slice: the block's level in the embedding.
    The inherited weight and bias are the time projection, with the keys of an unconditional `UNet2DModel`; the style
    head is zero-initialised, so a new network ignores the style.
    """

    def __init__(self, time_dim: int, channels: int, style_slice: slice):
        super().__init__(time_dim, 2 * channels)
        self.style_slice = style_slice
        self.style = zeroed(nn.Linear(style_slice.stop - style_slice.start, channels))

    def forward(self, embedding: Tensor) -> Tensor:
        """[scale | shift] [B,2C], for h * (1 + scale) + shift, from SiLU(embedding) [B, time + levels]."""
        scale, shift = super().forward(embedding[:, : self.in_features]).chunk(2, dim=1)  # t_s, t_b
        z = self.style(embedding[:, self.style_slice])
        return torch.cat([scale + z * (1 + scale), shift + z * shift], dim=1)  # (1+z)(1+t_s) - 1, (1+z) t_b


class PaddedTimeEmbedding(TimestepEmbedding):
    """Time embedding, padded with zeros for the style [B, time + levels]."""

    def __init__(self, in_channels: int, time_dim: int, style_width: int):
        super().__init__(in_channels, time_dim)
        self.style_width = style_width

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return F.pad(super().forward(sample, condition), (0, self.style_width))


class StyleEmbedding(nn.Module):
    """Embedding of standardised s [B,S] -> [B, time + levels]: zeros for the time, then a two-layer MLP per level.

    sizes: level -> its channels in s. time_dim, style_dim: widths of the embeddings of time and of each level.
    """

    def __init__(self, sizes: dict[str, int], time_dim: int, style_dim: int):
        super().__init__()
        self.sizes, self.time_dim = sizes, time_dim
        self.levels = nn.ModuleDict(
            {
                level: nn.Sequential(nn.Linear(size, style_dim), nn.SiLU(), nn.Linear(style_dim, style_dim))
                for level, size in sizes.items()
            }
        )

    def forward(self, s: Tensor) -> Tensor:
        parts = s.split(list(self.sizes.values()), dim=1)
        embedded = [mlp(part) for mlp, part in zip(self.levels.values(), parts, strict=True)]
        return F.pad(torch.cat(embedded, dim=1), (self.time_dim, 0))


class Denoiser(UNet2DModel):
    """U-Net that predicts the noise, the velocity or the flow of noisy images, given their style codes.

    resolution: R, pixels of the images.
    style_sizes: channels of s that are coarse, medium, fine; a level of 0 channels is left out.
    channels, mult: width channels * mult[i] at image resolution R / 2**i.
    blocks: ResBlocks per resolution in the encoder (one more in the decoder).
    patch: pixel-unshuffle before and pixel-shuffle after the network.
    attention: image resolutions with self-attention (the middle block always has it).
    time_dim, style_dim: widths of the time embedding and of each level's style embedding.
    boundaries: largest image resolution that is coarse, largest that is medium.
    objective: the prediction. "eps" (the paper): DDPM's noise. "v" (Salimans & Ho 2022): sqrt(abar) noise -
        sqrt(1 - abar) image. "flow" (Liu et al. 2023): noise - image, of (1 - t/1000) image + t/1000 noise.
    space: of the style codes: "s" (the paper), or "w_plus", flattened (its figure 19).

    128 channels, mult (1, 1, 2, 2, 4, 4), 2 blocks, time and style 512, dropout 0.1 at 256 px and style_sizes
    (1536, 2048, 2464) is DiffAE's FFHQ-256 network without its semantic encoder: the reading of DeltaEdit's section 4.2
    that fits all its numbers. 32 channels and mult (2, 2, 3, 3) with patch 2 suit 64 px on a CPU (4M parameters).
    Raises ValueError for sizes that do not fit together, and for a style level that no block reads.
    """

    def __init__(
        self,
        resolution: int,
        style_sizes: Sequence[int],
        channels: int = 64,
        mult: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1,
        patch: int = 1,
        attention: Sequence[int] = (16,),
        time_dim: int = 128,
        style_dim: int = 128,
        dropout: float = 0.0,
        boundaries: tuple[int, int] = (8, 32),
        objective: Objective = "eps",
        space: Space = "s",
    ):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}: {', '.join(OBJECTIVES)} are known")
        if space not in SPACES:
            raise ValueError(f"space is {space!r}: {', '.join(SPACES)} are known")
        if resolution % (patch << (len(mult) - 1)):
            raise ValueError(f"resolution {resolution} cannot be halved {len(mult) - 1} times after a patch of {patch}")
        widths = [channels * m for m in mult]
        resolutions = [resolution >> level for level in range(len(mult))]
        attentive = [r in attention for r in resolutions]
        super().__init__(
            sample_size=resolution // patch,
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
            time_embedding_dim=time_dim,
            freq_shift=0,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attentive),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attentive)),
            block_out_channels=tuple(widths),
            layers_per_block=blocks,
            downsample_type="resnet",
            upsample_type="resnet",
            dropout=dropout,
            attention_head_dim=None,  # one head
            norm_num_groups=math.gcd(32, *widths),
            resnet_time_scale_shift="scale_shift",
        )
        self.spec: dict[str, Any] = {
            "resolution": resolution,
            "style_sizes": list(style_sizes),
            "channels": channels,
            "mult": list(mult),
            "blocks": blocks,
            "patch": patch,
            "attention": list(attention),
            "time_dim": time_dim,
            "style_dim": style_dim,
            "dropout": dropout,
            "boundaries": list(boundaries),
            "objective": objective,
            "space": space,
        }
        self.patch = patch
        self.objective: Objective = objective
        self.space: Space = space
        sizes = {level: size for level, size in zip(LEVELS, style_sizes, strict=True) if size}
        self.time_embedding = PaddedTimeEmbedding(widths[0], time_dim, style_dim * len(sizes))
        self.class_embedding = StyleEmbedding(sizes, time_dim, style_dim)
        start = {level: time_dim + number * style_dim for number, level in enumerate(sizes)}
        self.block_levels: dict[str, str] = {}
        for name, block, block_resolution in self._blocks(resolutions):
            level = "coarse" if block_resolution is None else level_of(block_resolution, boundaries)
            if level in sizes:
                style_slice = slice(start[level], start[level] + style_dim)
                block.time_emb_proj = StyleProjection(time_dim, block.out_channels, style_slice)
                self.block_levels[name] = level
            else:
                block.time_emb_proj = TimeOnlyProjection(time_dim, 2 * block.out_channels)
        if unread := sorted(set(sizes) - set(self.block_levels.values())):
            raise ValueError(f"no block reads the {' and '.join(unread)} style: image resolutions are {resolutions}")
        self._zero_residuals()

    def _blocks(self, resolutions: list[int]) -> Iterator[tuple[str, Any, int | None]]:
        """Name, module and image resolution of every ResBlock (None: the middle block)."""
        down: Any
        for level, down in enumerate(self.down_blocks):
            for j, block in enumerate(down.resnets):
                yield f"down_blocks.{level}.resnets.{j}", block, resolutions[level]
            for j, block in enumerate(down.downsamplers or ()):
                yield f"down_blocks.{level}.downsamplers.{j}", block, resolutions[level] // 2
        middle: Any = self.mid_block
        for j, block in enumerate(middle.resnets):
            yield f"mid_block.resnets.{j}", block, None
        up: Any
        for level, up in enumerate(self.up_blocks):
            for j, block in enumerate(up.resnets):
                yield f"up_blocks.{level}.resnets.{j}", block, resolutions[-1 - level]
            for j, block in enumerate(up.upsamplers or ()):
                yield f"up_blocks.{level}.upsamplers.{j}", block, resolutions[-1 - level] * 2

    def _zero_residuals(self) -> None:
        """Zero-initialise the residual branches and the output, as in guided diffusion."""
        module: Any
        for module in self.modules():
            if hasattr(module, "time_emb_proj"):
                zeroed(module.conv2)
            elif hasattr(module, "to_out"):
                zeroed(module.to_out[0])
        zeroed(self.conv_out)

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Prediction [B,3,R,R] of the objective for noisy images.

        x: noisy images [B,3,R,R]. t: [B] or scalar, in 0..1000; a whole number up to 999 except for "flow".
        s: codes of `space` [B,S], standardised. For "flow" the network's output is a correction of the best linear
        prediction from x alone (for images of independent pixels with deviation `PIXEL_STD`), which is added.
        """
        h = F.pixel_unshuffle(x, self.patch)
        output = F.pixel_shuffle(super().forward(h, t, class_labels=s, return_dict=False)[0], self.patch)
        return output + _linear_factor(t / 1000) * x if self.objective == "flow" else output


class TimeOnlyProjection(nn.Linear):
    """Time projection of a block whose style level has no channels."""

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding[:, : self.in_features])


def _linear_factor(t: Tensor) -> Tensor:
    """Factor [B,1,1,1] of x = (1 - t) image + t noise in the best linear prediction of noise - image."""
    factor = (t - (1 - t) * PIXEL_STD**2) / ((1 - t) ** 2 * PIXEL_STD**2 + t**2)
    return factor.reshape(-1, 1, 1, 1)


def is_style_weight(key: str) -> bool:
    """Whether a key of `Denoiser`'s state belongs to the style embedding or projection, specific to a space."""
    return key.startswith("class_embedding.") or ".time_emb_proj.style." in key


def level_of(image_resolution: int, boundaries: tuple[int, int] = (8, 32)) -> str:
    """Style level of features at an image resolution in pixels."""
    coarse, medium = boundaries
    return "coarse" if image_resolution <= coarse else "medium" if image_resolution <= medium else "fine"


def boundaries_of(split: tuple[int, int]) -> tuple[int, int]:
    """`boundaries` of a generator's level split: half the resolution at which the next level begins."""
    coarse, medium = (2 ** ((layers + 3) // 2) for layers in split)
    return coarse, medium


def zeroed(layer: Layer) -> Layer:
    """Zero all parameters of a layer; return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
