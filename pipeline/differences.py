"""Synthesis and CLIP around given pictures: what changes of one layer do to the embedding, passed on as changes.

Convolutions are linear, so a change passes through them alone; at an activation it meets what the picture itself has
there, kept from one pass over the picture. In bfloat16 the rounding is then that of the change, which is all that
finite differences see, and not that of the picture, which would drown the weaker channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bias_act import bias_act
from kernels.epilogue_difference import epilogue_difference
from kernels.upfirdn2d import upfirdn2d

if TYPE_CHECKING:
    from pipeline.models.clip import Clip
    from pipeline.models.stylegan2 import Generator, ModulatedConv

Convolve = Callable[[Tensor, nn.Conv2d, nn.BatchNorm2d], Tensor]
Activate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """A convolution of the synthesis around N pictures."""

    conv: ModulatedConv
    kernel: Tensor  # [O,I,k,k]
    style: Tensor  # [N,I]
    demod: Tensor  # [N,O]
    x: Tensor  # [N,I,h,w]: what it reads
    raw: Tensor  # [N,O,H,W]: what it gives, not demodulated
    before: Tensor  # [N,O,H,W]: what its activation reads


@dataclass(frozen=True)
class Tower:
    """CLIP's image tower around N pictures."""

    network: Any  # open_clip's ModifiedResNet
    kernels: list[Tensor]  # of its convolutions in their order, times what normalises their results
    before: list[Tensor]  # [N,C,H,W]: what its activations read, in their order
    features: Tensor  # [N,C,H,W]: what it pools


@dataclass(frozen=True)
class Base:
    """The synthesis, and CLIP after it, around N pictures."""

    generator: Generator
    clip: Clip
    layers: list[Layer]
    image: Tensor  # [N,3,R,R]
    w_plus: Tensor  # [N,L,D]
    tower: Tower | None  # None where it is of another kind, and embeds whole pictures in float32
    dtype: torch.dtype  # of changes

    def embed(self, first: int, change: Tensor) -> Tensor:
        """change [B,O,H,W] of what the activation of layer `first` reads -> embeddings [B,E] of the changed pictures.

        `change` may be written over. B / N changes of the first picture, then of the second, and so on.
        """
        image = self._image(first, change.to(self.dtype))
        if self.tower is None:
            return self.clip.embed_images(_each(self.image, image) + image)
        kernels, before = iter(self.tower.kernels), iter(self.tower.before)

        def convolve(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
            return F.conv2d(x, next(kernels), None, conv.stride, conv.padding)  # type: ignore[arg-type]

        def activate(x: Tensor) -> Tensor:
            return epilogue_difference(x, next(before), slope=0.0, gain=1.0, overwrite=True)

        x = _last(self.clip.clip_input_change(image), self.dtype)
        x = _features(self.tower.network, x, convolve, activate).float()
        return _pooled(self.tower.network.attnpool, _each(self.tower.features, x) + x)

    def _image(self, first: int, x: Tensor) -> Tensor:
        """The change of the picture [B,3,R,R], float32."""
        image, scaled = None, False
        for number, layer in enumerate(self.layers[first:], start=first):
            if number > first:
                x = x if scaled else x * _each(layer.style, x).to(x.dtype)[..., None, None]
                x = layer.conv.convolve(x, layer.kernel)
            scaled = number % 2 == 1  # only the next convolution reads it
            following = self.layers[number + 1].style if scaled else None
            demod = layer.demod if number > first else None
            x = epilogue_difference(x, layer.before, demod, following, overwrite=True)
            image = image if scaled else self._shown(number, x, image)
        assert image is not None
        return image

    def _shown(self, number: int, x: Tensor, image: Tensor | None) -> Tensor:
        """The change of the image so far after layer `number`: one toRGB per picture, shared by all its changes."""
        to_rgb, w = self.generator.to_rgb(number), self.w_plus[:, number + 1]
        weight = to_rgb.conv.kernel(torch.float32).flatten(1) * to_rgb.conv.modulation(w)[:, None]  # [N,3,C]
        rows = x.permute(0, 2, 3, 1).reshape(len(w), -1, x.shape[1])  # all pixels of a picture's changes
        colours = (rows @ weight.transpose(1, 2).to(x.dtype)).float()
        shown = colours.view(len(x), *x.shape[2:], 3).permute(0, 3, 1, 2).contiguous()
        return shown if image is None else shown + upfirdn2d(image, to_rgb.upsample.kernel, up=2, pad=(2, 1))


def base(generator: Generator, clip: Clip, s: Tensor, w_plus: Tensor, dtype: torch.dtype) -> Base:
    """One pass over the pictures of s [N,S] and w_plus [N,L,D], in float32; changes will pass in `dtype`."""
    x = generator.input.input.expand(len(s), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    image, layers = None, []
    for number, (noise, style) in enumerate(zip(generator.noises, s.split(generator.layout.dims, dim=1), strict=True)):
        block = generator.styled[number]
        raw, demod, bias = block.conv(x, style), block.conv.demodulation(style), block.activate.bias
        z = raw * demod[..., None, None] + block.noise.weight * noise
        kept = (_last(tensor, dtype) for tensor in (x, raw, z + bias[:, None, None]))
        layers.append(Layer(block.conv, block.conv.kernel(dtype), style, demod, *kept))
        x = bias_act(z, bias)
        image = generator.shown(number, x, image, w_plus)
    assert image is not None
    return Base(generator, clip, layers, image, w_plus, _tower(clip, image, dtype), dtype)


def _tower(clip: Clip, images: Tensor, dtype: torch.dtype) -> Tower | None:
    network = clip.model.visual if isinstance(getattr(clip, "model", None), nn.Module) else None
    if not hasattr(network, "attnpool"):
        return None
    kernels: list[Tensor] = []
    before: list[Tensor] = []

    def convolve(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        kernels.append((conv.weight * scale[:, None, None, None]).to(dtype))
        return norm(conv(x))

    def activate(x: Tensor) -> Tensor:
        before.append(_last(x, dtype))
        return F.relu(x)

    features = _features(network, _last(clip.clip_input(images), torch.float32), convolve, activate)
    return Tower(network, kernels, before, features)


def _features(network: Any, x: Tensor, convolve: Convolve, activate: Activate) -> Tensor:
    """open_clip's ModifiedResNet up to its pooling, with given convolutions (normalised) and activations."""
    for number in (1, 2, 3):
        x = activate(convolve(x, getattr(network, f"conv{number}"), getattr(network, f"bn{number}")))
    x = upfirdn2d(x, torch.full((2, 2), 0.25, device=x.device), down=2)  # its avgpool, in half of the time
    for block in (*network.layer1, *network.layer2, *network.layer3, *network.layer4):
        y = activate(convolve(x, block.conv1, block.bn1))
        y = activate(convolve(y, block.conv2, block.bn2))
        y = convolve(block.avgpool(y), block.conv3, block.bn3)
        if block.downsample is not None:
            pool, conv, norm = block.downsample
            x = convolve(pool(x), conv, norm)
        x = activate(x + y)
    return x


def _pooled(pool: Any, x: Tensor) -> Tensor:
    """Its attention pooling [B,C,H,W] -> [B,E]. With the mean as the only query, no key or value has to be made."""
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding  # [B,1+HW,C]
    keys, values = (
        side.weight.unflatten(0, (pool.num_heads, -1)) for side in (pool.k_proj, pool.v_proj)
    )  # [heads,d,C]
    query = pool.q_proj(x[:, 0]).unflatten(1, keys.shape[:2]) / keys.shape[1] ** 0.5
    asked = torch.einsum("bhd,hdc->bhc", query, keys)
    found = torch.softmax(asked @ x.transpose(1, 2), dim=2) @ x  # the bias of keys is the same for all: it cancels
    return pool.c_proj(torch.einsum("bhc,hdc->bhd", found, values).flatten(1) + pool.v_proj.bias)


def _each(of_pictures: Tensor, changes: Tensor) -> Tensor:
    """[N,...] -> [B,...], every picture's for each of its changes."""
    return of_pictures.repeat_interleave(len(changes) // len(of_pictures), dim=0)


def _last(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)  # at once takes twice as long
