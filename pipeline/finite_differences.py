"""Rows of the relevance matrix by finite differences, without whole syntheses (StyleCLIP global directions, section 6).

For the channels of one layer, nothing before that layer is computed again, the layer itself costs one input channel
(`kernels.channel_perturb`), and the layers after it pass on changes: a change goes through a convolution by itself,
which is linear, and at an activation it is added to the input from one stored forward pass over the images. In
bfloat16 the rounding is then that of the change, which finite differences see, and not that of the image, which would
drown the weaker channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bias_act import bias_act
from kernels.channel_perturb import EPS, channel_perturb
from kernels.epilogue_difference import epilogue_difference
from kernels.upfirdn2d import upfirdn2d
from pipeline.relevance import IMAGES, chunks

if TYPE_CHECKING:
    from pipeline.models.clip import Clip
    from pipeline.models.stylegan2 import Generator, ModulatedConv
    from pipeline.relevance import Probe

Convolve = Callable[[Tensor, nn.Conv2d, nn.BatchNorm2d], Tensor]
Activate = Callable[[Tensor], Tensor]

MOST = {"cpu": 64, "cuda": 512}  # images per pass; more are no faster
BUFFERS = 8  # copies of the largest activation that one pass needs
SHORTEST = 1e-6  # a shorter difference of unit vectors is rounding


class FiniteDifferences:
    """Unit differences of the embedding for single style channels; keeps the forward pass over the last images."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.passes: dict[range, ForwardPass] = {}  # one at most

    @torch.no_grad()
    def rows(self, images: range, channels: range) -> Tensor:
        """Sum over `images` of the unit differences of `channels`, which may span layers: [len(channels),E]."""
        layout, parts = self.probe.generator.layout, []
        for layer, (offset, width) in enumerate(zip(layout.offsets, layout.dims)):
            first, last = max(channels.start, offset), min(channels.stop, offset + width)
            if first < last:
                parts.append(self._layer_rows(images, layer, range(first - offset, last - offset)))
        return torch.cat(parts)

    def _layer_rows(self, images: range, layer: int, channels: range) -> Tensor:
        """The same for channels of one layer, counted from its first [K,E]."""
        probe, emulate = self.probe, self.probe.params.emulate_published
        offset, conv = probe.generator.layout.offsets[layer], probe.generator.convolutions[layer].conv
        ends = torch.stack([probe.low, probe.high], dim=1)[offset:]  # from this layer's first channel on
        weight = (conv.weight[0] * conv.scale).transpose(0, 1)  # [I,O,k,k]
        energy = weight.square().sum(dim=(2, 3))  # [I,O], of one input channel in the demodulation
        mean = torch.zeros(len(channels), probe.clip.dim, device=ends.device)
        size = micro_batch(probe.generator, ends.device)
        for chunk in chunks(images, min(IMAGES["finite"], size // 2)):
            forward = self._forward(chunk, layer)
            layer_pass = forward.layers[layer]
            style, raw, norm = layer_pass.style, layer_pass.raw, layer_pass.style.square() @ energy
            unchanged = raw * torch.rsqrt(norm + EPS)[..., None, None]
            for group in chunks(channels, 1 if emulate else max(1, size // (2 * len(chunk)))):
                chosen = slice(group.start, group.stop)
                parts = _channel_convolutions(conv, layer_pass.x[:, chosen], weight[chosen].to(probe.dtype))
                if emulate:  # channels before this one are at their mean; `forward` has them as they were
                    before = probe.mean[offset : offset + group.start].expand(len(chunk), -1)
                    style = torch.cat([before, style[:, group.start :]], dim=1)
                    raw, norm = conv(layer_pass.x, style), style.square() @ energy
                change = channel_perturb(raw, parts, style[:, chosen], ends[chosen], norm, energy[chosen])
                if emulate:
                    change = change + (raw * torch.rsqrt(norm + EPS)[..., None, None] - unchanged)[:, None, None]
                embeddings = forward.embed(layer, change.flatten(0, 2)).unflatten(0, change.shape[:3])  # [N,K,2,E]
                rows = slice(group.start - channels.start, group.stop - channels.start)
                count = chunk.start - images.start
                mean[rows] = accumulate(mean[rows], embeddings[:, :, 0], embeddings[:, :, 1], count)
        return mean * len(images)

    def _forward(self, images: range, layer: int) -> ForwardPass:
        """Forward pass over `images`, of the codes as they are at `layer`; cached until other images are passed."""
        probe, chosen = self.probe, slice(images.start, images.stop)
        s, w_plus = probe.s[chosen], probe.w_plus[chosen]
        if probe.params.emulate_published:  # channels of the layers before stay at their mean
            offset = probe.generator.layout.offsets[layer]
            s = torch.cat([probe.mean[:offset].expand(len(s), -1), s[:, offset:]], dim=1)
            return forward_pass(probe.generator, probe.clip, s, w_plus, probe.dtype)
        if images not in self.passes:
            self.passes.clear()
            self.passes[images] = forward_pass(probe.generator, probe.clip, s, w_plus, probe.dtype)
        return self.passes[images]


def accumulate(mean: Tensor, before: Tensor, after: Tensor, count: int) -> Tensor:
    """Mean [K,E] of unit(unit(after) - unit(before)) over the images so far.

    mean: [K,E] over `count` images. before, after: embeddings [N,K,E] of N more images. A difference of unit vectors
    shorter than 1e-6 counts as zero.
    """
    step = F.normalize(after, dim=-1) - F.normalize(before, dim=-1)
    step = step * (step.norm(dim=-1, keepdim=True) >= SHORTEST)
    return (mean * count + F.normalize(step, dim=-1).sum(dim=0)) / max(1, count + len(step))


def micro_batch(generator: Generator, device: torch.device) -> int:
    """Images per pass that take at most 1 GiB, or a quarter of the GPU's memory; even, at least 2."""
    sizes = [
        n.shape[-1] ** 2 * layer.conv.weight.shape[1] for n, layer in zip(generator.noises, generator.convolutions)
    ]
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**32
    fitting = memory // 4 // (4 * BUFFERS * max(sizes))
    return max(2, min(MOST.get(device.type, 32), fitting) // 2 * 2)


def _channel_convolutions(conv: ModulatedConv, x: Tensor, weight: Tensor) -> Tensor:
    """Convolution of each of K input channels of x by itself, with its own weight [K,O,k,k] -> [N,K,O,H,W]."""
    if conv.up:
        y = upfirdn2d(F.conv_transpose2d(x, weight, stride=2, groups=len(weight)), conv.blur.kernel, pad=(1, 1))
    else:
        y = F.conv2d(x, weight.flatten(0, 1)[:, None], padding=weight.shape[-1] // 2, groups=len(weight))
    return y.unflatten(1, (len(weight), -1))


# ---------------------------------------------------------------- a forward pass, and changes to it


@dataclass(frozen=True)
class LayerPass:
    """One convolution of the synthesis in a forward pass over N images."""

    conv: ModulatedConv
    kernel: Tensor  # [O,I,k,k]
    style: Tensor  # [N,I]
    demod: Tensor  # [N,O]
    x: Tensor  # [N,I,h,w], input
    raw: Tensor  # [N,O,H,W], output, not demodulated
    before: Tensor  # [N,O,H,W], input of the activation


@dataclass(frozen=True)
class TowerPass:
    """CLIP's residual image tower in a forward pass over N images."""

    network: Any  # open_clip's ModifiedResNet
    kernels: list[Tensor]  # of its convolutions in their order, normalisation folded in
    before: list[Tensor]  # [N,C,H,W], inputs of its activations in their order
    features: Tensor  # [N,C,H,W], input of the pooling


@dataclass(frozen=True)
class ForwardPass:
    """Synthesis of N images, then CLIP."""

    generator: Generator
    clip: Clip
    layers: list[LayerPass]
    image: Tensor  # [N,3,R,R]
    w_plus: Tensor  # [N,L,D]
    tower: TowerPass | None  # None for a transformer, which embeds whole images in float32
    dtype: torch.dtype  # of changes

    def embed(self, first: int, change: Tensor) -> Tensor:
        """Embeddings [B,E] of the changed images.

        change: [B,O,H,W], added to the input of the activation of layer `first`; may be overwritten. B / N changes of
        the first image come first, then those of the second, and so on.
        """
        image = self._image_change(first, change.to(self.dtype))
        if self.tower is None:
            return self.clip.embed_images(_repeat(self.image, image) + image)
        kernels, before = iter(self.tower.kernels), iter(self.tower.before)

        def convolve(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
            return F.conv2d(x, next(kernels), None, conv.stride, conv.padding)  # type: ignore[arg-type]

        def activate(x: Tensor) -> Tensor:
            return epilogue_difference(x, next(before), slope=0.0, gain=1.0, overwrite=True)

        x = _channels_last(self.clip.clip_input_change(image), self.dtype)
        x = _features(self.tower.network, x, convolve, activate).float()
        return _pooled(self.tower.network.attnpool, _repeat(self.tower.features, x) + x)

    def _image_change(self, first: int, x: Tensor) -> Tensor:
        """Change of the images [B,3,R,R], float32."""
        image, scaled = None, False
        for number, layer in enumerate(self.layers[first:], start=first):
            if number > first:
                x = x if scaled else x * _repeat(layer.style, x).to(x.dtype)[..., None, None]
                x = layer.conv.convolve(x, layer.kernel)
            scaled = number % 2 == 1  # only the next convolution reads it
            following = self.layers[number + 1].style if scaled else None
            demod = layer.demod if number > first else None
            x = epilogue_difference(x, layer.before, demod, following, overwrite=True)
            image = image if scaled else self._to_rgb_change(number, x, image)
        assert image is not None
        return image

    def _to_rgb_change(self, number: int, x: Tensor, image: Tensor | None) -> Tensor:
        """Change of the image so far after layer `number`: one toRGB per image, shared by all its changes."""
        to_rgb, w = self.generator.to_rgb(number), self.w_plus[:, number + 1]
        weight = to_rgb.conv.kernel(torch.float32).flatten(1) * to_rgb.conv.modulation(w)[:, None]  # [N,3,C]
        pixels = x.permute(0, 2, 3, 1).reshape(len(w), -1, x.shape[1])  # of all changes of an image
        colours = (pixels @ weight.transpose(1, 2).to(x.dtype)).float()
        rgb = colours.view(len(x), *x.shape[2:], 3).permute(0, 3, 1, 2).contiguous()
        return rgb if image is None else rgb + upfirdn2d(image, to_rgb.upsample.kernel, up=2, pad=(2, 1))


def forward_pass(generator: Generator, clip: Clip, s: Tensor, w_plus: Tensor, dtype: torch.dtype) -> ForwardPass:
    """Forward pass in float32 over the images of s [N,S] and w_plus [N,L,D]. dtype: of the changes propagated later."""
    x = generator.input.input.expand(len(s), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    image, layers = None, []
    for number, (noise, style) in enumerate(zip(generator.noises, s.split(generator.layout.dims, dim=1), strict=True)):
        block = generator.convolutions[number]
        raw, demod, bias = block.conv(x, style), block.conv.demodulation(style), block.activate.bias
        z = raw * demod[..., None, None] + block.noise.weight * noise
        inputs = (_channels_last(tensor, dtype) for tensor in (x, raw, z + bias[:, None, None]))
        layers.append(LayerPass(block.conv, block.conv.kernel(dtype), style, demod, *inputs))
        x = bias_act(z, bias)
        image = generator.add_to_image(number, x, image, w_plus)
    assert image is not None
    return ForwardPass(generator, clip, layers, image, w_plus, _tower_pass(clip, image, dtype), dtype)


def _tower_pass(clip: Clip, images: Tensor, dtype: torch.dtype) -> TowerPass | None:
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
        before.append(_channels_last(x, dtype))
        return F.relu(x)

    features = _features(network, _channels_last(clip.clip_input(images), torch.float32), convolve, activate)
    return TowerPass(network, kernels, before, features)


def _features(network: Any, x: Tensor, convolve: Convolve, activate: Activate) -> Tensor:
    """open_clip's ModifiedResNet up to its pooling, with given (normalised) convolutions and activations."""
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
    """Attention pooling [B,C,H,W] -> [B,E]. The mean is the only query, so no key or value has to be computed."""
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding  # [B,1+HW,C]
    keys, values = (
        side.weight.unflatten(0, (pool.num_heads, -1)) for side in (pool.k_proj, pool.v_proj)
    )  # [heads,d,C]
    query = pool.q_proj(x[:, 0]).unflatten(1, keys.shape[:2]) / keys.shape[1] ** 0.5
    scores = torch.einsum("bhd,hdc->bhc", query, keys) @ x.transpose(1, 2)  # without the bias of keys: it cancels
    mixed = torch.softmax(scores, dim=2) @ x
    return pool.c_proj(torch.einsum("bhc,hdc->bhd", mixed, values).flatten(1) + pool.v_proj.bias)


def _repeat(of_images: Tensor, changes: Tensor) -> Tensor:
    """[N,...] -> [B,...], the entry of every image for each of its changes."""
    return of_images.repeat_interleave(len(changes) // len(of_images), dim=0)


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)  # both in one call take twice as long
