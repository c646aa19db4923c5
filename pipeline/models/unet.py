"""The denoiser of DeltaEdit-D: a U-Net over noisy pixels, conditioned on the image's style code by hierarchical AdaGN.

It is `diffusers.UNet2DModel` in the shape of DiffAE's U-Net (resampling inside ResBlocks, one attention head, last
convolutions that start at zero). Three of its parts are replaced, and its forward is not:

* every ResBlock's time projection becomes a `StyledProjection`: after its second GroupNorm the block computes
  (1 + z_s) * ((1 + t_s) * GroupNorm(h) + t_b), time scale and shift first, then a style scale, as DiffAE does;
* the time embedding is widened, and the class embedding becomes a `StyleEmbedding`: their sum, which UNet2DModel hands
  to all blocks, is [time | coarse | medium | fine].

A block reads the style level of the *image* resolution its features stand for: behind a pixel-unshuffle of `patch`,
features of n x n stand for an image of n*patch pixels. With the generator's own boundaries, image resolutions up to 8
are coarse, 16 and 32 medium, from 64 on fine; the middle block is always coarse. So a 64 px network with patch 2 and
four levels (network 32, 16, 8, 4) reads fine, medium, medium, coarse. A resampling ResBlock modulates after it has
resampled, and counts as the resolution it produces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.ode_solvers import Objective
from pipeline.models.stylespace import LEVELS, Space
from pipeline.runtime.errors import InputError
from pipeline.storage import weights

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
OBJECTIVES, SPACES = get_args(Objective), get_args(Space)
SPREAD = 0.5  # standard deviation of pixels in [-1,1]


class StyledProjection(nn.Linear):
    """Embedding -> scale and shift of one ResBlock: DiffAE's AdaGN, time inside and style outside, as one affine map.

    The inherited weight and bias are the time projection, so an unconditional `UNet2DModel` has the same keys. The
    style head starts at zero: a new network is the unconditional one.
    """

    def __init__(self, time_dim: int, channels: int, style_slice: slice):
        super().__init__(time_dim, 2 * channels)
        self.style_slice = style_slice
        self.style = zeroed(nn.Linear(style_slice.stop - style_slice.start, channels))

    def forward(self, embedding: Tensor) -> Tensor:
        """SiLU(embedding) [B, time + levels] -> [scale | shift] [B, 2C], to be used as h * (1 + scale) + shift."""
        scale, shift = super().forward(embedding[:, : self.in_features]).chunk(2, dim=1)  # t_s, t_b
        z = self.style(embedding[:, self.style_slice])
        return torch.cat([scale + z * (1 + scale), shift + z * shift], dim=1)  # (1+z)(1+t_s) - 1, (1+z) t_b


class TimePart(TimestepEmbedding):
    """The time embedding, followed by room for the style."""

    def __init__(self, in_channels: int, time_dim: int, style_width: int):
        super().__init__(in_channels, time_dim)
        self.style_width = style_width

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return F.pad(super().forward(sample, condition), (0, self.style_width))


class StyleEmbedding(nn.Module):
    """Standardised s [B,S] -> [B, time + levels]: zeros for the time, then each level's own two-layer embedding."""

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
    """eps(x_t, t, s).

    resolution      R of the images
    style_sizes     channels of s that are coarse, medium, fine; a level of 0 channels vanishes
    channels, mult  width of level i is channels * mult[i]; level i stands for images of resolution / 2**i pixels
    blocks          ResBlocks per level on the way down (one more on the way up)
    patch           pixel-unshuffle before, pixel-shuffle after the network
    attention       image resolutions with self-attention (the middle block always has it)
    time_dim, style_dim   widths of the time embedding and of each level's style embedding
    boundaries      largest image resolution that is coarse, largest that is medium
    space           of the style codes: "s" (the paper), or "w_plus", flattened (its figure 19)
    objective       what it says, of which mixture of picture and noise: "eps" (the paper) of DDPM's the noise; "v"
                    (Salimans & Ho 2022) sqrt(abar) noise - sqrt(1 - abar) picture; "flow" (Liu et al. 2023), of
                    (1 - t/1000) picture + t/1000 noise, noise - picture

    128 channels, mult (1, 1, 2, 2, 4, 4), 2 blocks, time and style 512, dropout 0.1 at 256 px and style_sizes
    (1536, 2048, 2464) is DiffAE's FFHQ-256 network without its semantic encoder: the reading of DeltaEdit's section 4.2
    that fits all its numbers. 32 channels and mult (2, 2, 3, 3) with patch 2 suit 64 px on a CPU (4M parameters).
    Raises ValueError for sizes that do not fit together, and for a style level that no block would read.
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
        resolutions = [resolution >> i for i in range(len(mult))]
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
        self.time_embedding = TimePart(widths[0], time_dim, style_dim * len(sizes))
        self.class_embedding = StyleEmbedding(sizes, time_dim, style_dim)
        start = {level: time_dim + i * style_dim for i, level in enumerate(sizes)}
        self.block_levels: dict[str, str] = {}
        for name, block, at in self._blocks(resolutions):
            level = "coarse" if at is None else level_of(at, boundaries)
            if level in sizes:
                where = slice(start[level], start[level] + style_dim)
                block.time_emb_proj = StyledProjection(time_dim, block.out_channels, where)
                self.block_levels[name] = level
            else:
                block.time_emb_proj = TimeOnlyProjection(time_dim, 2 * block.out_channels)
        if unread := sorted(set(sizes) - set(self.block_levels.values())):
            raise ValueError(f"no block reads the {' and '.join(unread)} style: image resolutions are {resolutions}")
        self._zero_residuals()

    def _blocks(self, resolutions: list[int]) -> Iterator[tuple[str, Any, int | None]]:
        """Every ResBlock: its name, itself, and the image resolution at which it modulates (None: the middle)."""
        down: Any
        for i, down in enumerate(self.down_blocks):
            for j, block in enumerate(down.resnets):
                yield f"down_blocks.{i}.resnets.{j}", block, resolutions[i]
            for j, block in enumerate(down.downsamplers or ()):
                yield f"down_blocks.{i}.downsamplers.{j}", block, resolutions[i] // 2
        middle: Any = self.mid_block
        for j, block in enumerate(middle.resnets):
            yield f"mid_block.resnets.{j}", block, None
        up: Any
        for i, up in enumerate(self.up_blocks):
            at = resolutions[-1 - i]
            for j, block in enumerate(up.resnets):
                yield f"up_blocks.{i}.resnets.{j}", block, at
            for j, block in enumerate(up.upsamplers or ()):
                yield f"up_blocks.{i}.upsamplers.{j}", block, at * 2

    def _zero_residuals(self) -> None:
        """Each residual branch and the output start at zero, as in guided diffusion."""
        module: Any
        for module in self.modules():
            if hasattr(module, "time_emb_proj"):
                zeroed(module.conv2)
            elif hasattr(module, "to_out"):
                zeroed(module.to_out[0])
        zeroed(self.conv_out)

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x [B,3,R,R] noisy, t [B] or scalar in 0..1000, s [B,S] (or w_plus, by `space`) standardised by the caller ->
        [B,3,R,R].

        t is a whole number up to 999 but for the objective "flow". Its network only says what x does not: the part of
        the answer that is best guessed by a factor of x (pictures as independent pixels of `SPREAD`) is added to it.
        """
        h = F.pixel_unshuffle(x, self.patch)
        said = F.pixel_shuffle(super().forward(h, t, class_labels=s, return_dict=False)[0], self.patch)
        return said + _guess(t / 1000) * x if self.objective == "flow" else said


class TimeOnlyProjection(nn.Linear):
    """The time projection of a block whose style level has no channels."""

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding[:, : self.in_features])


def _guess(t: Tensor) -> Tensor:
    """The factor of x = (1 - t) picture + t noise that comes nearest to noise - picture: [B,1,1,1]."""
    factor = (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)
    return factor.reshape(-1, 1, 1, 1)


def reads_codes(key: str) -> bool:
    """Whether a weight of a `Denoiser`, by its name, reads style codes: it fits those of one space alone."""
    return key.startswith("class_embedding.") or ".time_emb_proj.style." in key


def level_of(image_resolution: int, boundaries: tuple[int, int] = (8, 32)) -> str:
    """The style level that drives features standing for images of this many pixels."""
    coarse, medium = boundaries
    return "coarse" if image_resolution <= coarse else "medium" if image_resolution <= medium else "fine"


def boundaries_of(split: tuple[int, int]) -> tuple[int, int]:
    """The boundaries that a generator's level split means: half the resolution at which the next level begins."""
    coarse, medium = (2 ** ((layers + 3) // 2) for layers in split)
    return coarse, medium


def zeroed(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def save(path: Path, denoiser: Denoiser, **meta: Any) -> None:
    """Writes the weights, as float16, and the numbers that rebuild the network, besides JSON-able `meta`."""
    weights.save(path, denoiser.state_dict(), {"model": denoiser.spec, **meta})


def load(path: Path, device: str = "cpu", hint: str | None = None) -> Denoiser:
    """The denoiser in a file that `save` wrote, frozen and in evaluation mode.

    InputError if the file is missing, cut short or holds something else; `hint` says what makes it.
    """
    tensors, meta = weights.load(path, hint=hint)
    try:
        denoiser = Denoiser(**meta["model"])
        denoiser.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} does not hold a denoiser ({reason}): {hint or 'make it again'}") from error
    return denoiser.eval().requires_grad_(False).to(device)  # type: ignore[arg-type]
