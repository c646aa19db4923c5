"""The relevance matrix by finite differences, layer by layer: exact, at a part of the cost of whole pictures.

For the channels of layer l, all before l is computed once per picture, layer l itself costs one input channel
(`kernels.perturb`), and only what follows runs for every channel and both of its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.accumulate import relevance_accumulate
from kernels.bias_act import bias_act
from kernels.perturb import channel_perturb
from kernels.upfirdn2d import upfirdn2d

if TYPE_CHECKING:
    from pipeline.generator import Generator, ModulatedConv
    from pipeline.relevance import Probe

CHUNK = 8  # pictures whose activations are held
MOST = {"cpu": 32, "cuda": 512}  # pictures per pass; more are no faster (on a CPU they leave the cache)
BUFFERS = 8  # copies of the largest activation that a pass holds at once


def micro_batch(generator: Generator, device: torch.device) -> int:
    """Pictures per pass that take at most 1 GiB, or a quarter of the GPU's memory; even, at least 2."""
    sizes = [n.shape[-1] ** 2 * layer.conv.weight.shape[1] for n, layer in zip(generator.noises, generator.styled)]
    whole = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**32
    fitting = whole // 4 // (4 * BUFFERS * max(sizes))
    return max(2, min(MOST.get(device.type, 32), fitting) // 2 * 2)


@torch.no_grad()
def rows(probe: Probe, channels: range) -> Tensor:
    """Rows `channels` of the matrix [len(channels), E]: each a mean of unit differences, of unit length itself."""
    layout, parts = probe.generator.layout, []
    for layer, (offset, width) in enumerate(zip(layout.offsets, layout.dims)):
        first, last = max(channels.start, offset), min(channels.stop, offset + width)
        if first < last:
            parts.append(_layer_rows(probe, layer, range(first - offset, last - offset)))
    return torch.cat(parts)


def _layer_rows(probe: Probe, layer: int, channels: range) -> Tensor:
    """Rows of some channels of one layer [K,E]."""
    offset, conv = probe.generator.layout.offsets[layer], probe.generator.styled[layer].conv
    ends = torch.stack([probe.low, probe.high], dim=1)[offset:]  # from this layer's first channel on
    weight = (conv.weight[0] * conv.scale).transpose(0, 1)  # [I,O,k,k]
    share = weight.square().sum(dim=(2, 3))  # [I,O]
    mean = torch.zeros(len(channels), probe.clip.dim, device=ends.device)
    size = micro_batch(probe.generator, ends.device)
    for first in range(0, len(probe.s), min(CHUNK, size // 2)):
        s, w_plus = (tensor[first : first + min(CHUNK, size // 2)] for tensor in (probe.s, probe.w_plus))
        if probe.params.emulate_published:  # what came before is still at its mean
            s = torch.cat([probe.mean[:offset].expand(len(s), -1), s[:, offset:]], dim=1)
        x, image = _before(probe, layer, s, w_plus)
        codes = s[:, offset : offset + len(weight)]
        raw = _convolve(conv, x * codes.to(x.dtype)[..., None, None], weight)
        group = 1 if probe.params.emulate_published else max(1, size // (2 * len(s)))
        for start in range(channels.start, channels.stop, group):
            chosen = slice(start, min(start + group, channels.stop))
            if probe.params.emulate_published:
                codes = torch.cat([probe.mean[offset : offset + start].expand(len(s), -1), codes[:, start:]], dim=1)
                raw = _convolve(conv, x * codes.to(x.dtype)[..., None, None], weight)
            changed = _convolve(conv, x[:, chosen], weight[chosen], groups=chosen.stop - start)
            changed = changed.unflatten(1, (chosen.stop - start, -1))  # [N,K,O,H,W]
            norm = codes.square() @ share
            y = channel_perturb(raw, changed, codes[:, chosen], ends[chosen], norm, share[chosen])
            found = _after(probe, layer, y, image, s, w_plus)
            at = slice(start - channels.start, chosen.stop - channels.start)
            mean[at] = relevance_accumulate(mean[at], found[:, :, 0], found[:, :, 1], first)
    return F.normalize(mean, dim=1, eps=1e-8)


def _before(probe: Probe, layer: int, s: Tensor, w_plus: Tensor) -> tuple[Tensor, Tensor | None]:
    """Activations [N,I,H,W] that layer `layer` reads, and the image so far."""
    x = probe.generator.input.input.to(probe.dtype).expand(len(s), -1, -1, -1)
    x = x.contiguous(memory_format=torch.channels_last)
    return probe.generator.layers(range(layer), x, None, s, w_plus)


def _convolve(conv: ModulatedConv, x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """The convolution with weight [I,O,k,k] and nothing else; with as many groups as channels, each one alone."""
    weight = weight.to(x.dtype)
    if conv.up:
        x = F.conv_transpose2d(x, weight, stride=2, groups=groups)
        return upfirdn2d(x, conv.blur.kernel, pad=(1, 1))
    weight = weight.flatten(0, 1)[:, None] if groups > 1 else weight.transpose(0, 1)
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)


def _after(probe: Probe, layer: int, y: Tensor, image: Tensor | None, s: Tensor, w_plus: Tensor) -> Tensor:
    """Outputs y [N,K,V,O,H,W] of layer `layer` -> embeddings [N,K,V,E] of the pictures they lead to."""
    generator, block = probe.generator, probe.generator.styled[layer]
    x = y.flatten(0, 2).contiguous(memory_format=torch.channels_last)
    noise = block.noise.weight * list(generator.noises)[layer]
    x = bias_act(x + noise.to(x.dtype), block.activate.bias.to(x.dtype))
    times = len(x) // len(s)
    s, w_plus = s.repeat_interleave(times, dim=0), w_plus.repeat_interleave(times, dim=0)
    image = None if image is None else image.repeat_interleave(times, dim=0)
    image = generator.shown(layer, x, image, w_plus)
    _, image = generator.layers(range(layer + 1, len(generator.layout.dims)), x, image, s, w_plus)
    assert image is not None
    return probe.embed(image).unflatten(0, y.shape[:3])
