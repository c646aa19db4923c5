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
from kernels.perturb import EPS, channel_perturb
from kernels.upfirdn2d import upfirdn2d
from pipeline import differences

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
    offset, block = probe.generator.layout.offsets[layer], probe.generator.styled[layer]
    conv, ends = block.conv, torch.stack([probe.low, probe.high], dim=1)[offset:]  # from this layer's first channel on
    weight = (conv.weight[0] * conv.scale).transpose(0, 1)  # [I,O,k,k]
    share = weight.square().sum(dim=(2, 3))  # [I,O]
    mean = torch.zeros(len(channels), probe.clip.dim, device=ends.device)
    size = micro_batch(probe.generator, ends.device)
    for first in range(0, len(probe.s), min(CHUNK, size // 2)):
        s, w_plus = (tensor[first : first + min(CHUNK, size // 2)] for tensor in (probe.s, probe.w_plus))
        if probe.params.emulate_published:  # what came before is still at its mean
            s = torch.cat([probe.mean[:offset].expand(len(s), -1), s[:, offset:]], dim=1)
        x, image = _before(probe, layer, s, w_plus)
        rest = differences.rest(probe.generator, probe.clip, layer, x, image, s, w_plus, probe.dtype)
        codes = s[:, offset : offset + len(weight)]
        raw, norm = conv(x, codes), codes.square() @ share
        whole = raw * torch.rsqrt(norm + EPS)[..., None, None]
        half, raw = x.to(probe.dtype), raw.to(probe.dtype)
        group = 1 if probe.params.emulate_published else max(1, size // (2 * len(s)))
        for start in range(channels.start, channels.stop, group):
            chosen = slice(start, min(start + group, channels.stop))
            parts = _alone(conv, half[:, chosen], weight[chosen].to(probe.dtype))
            if probe.params.emulate_published:  # `rest` is about the pictures as they were
                codes = torch.cat([probe.mean[offset : offset + start].expand(len(s), -1), codes[:, start:]], dim=1)
                raw, norm = conv(x, codes), codes.square() @ share
            change = channel_perturb(raw, parts, codes[:, chosen], ends[chosen], norm, share[chosen])
            if probe.params.emulate_published:
                change = change + (raw * torch.rsqrt(norm + EPS)[..., None, None] - whole)[:, None, None]
            found = rest.embed(change.flatten(0, 2)).unflatten(0, change.shape[:3])
            at = slice(start - channels.start, chosen.stop - channels.start)
            mean[at] = relevance_accumulate(mean[at], found[:, :, 0], found[:, :, 1], first)
    return F.normalize(mean, dim=1, eps=1e-8)


def _before(probe: Probe, layer: int, s: Tensor, w_plus: Tensor) -> tuple[Tensor, Tensor | None]:
    """Activations [N,I,H,W] that layer `layer` reads, and the image so far."""
    x = probe.generator.input.input.expand(len(s), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    return probe.generator.layers(range(layer), x, None, s, w_plus)


def _alone(conv: ModulatedConv, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of each of K channels of x alone, with its own weight [K,O,k,k] -> [N,K,O,H,W]."""
    if conv.up:
        y = upfirdn2d(F.conv_transpose2d(x, weight, stride=2, groups=len(weight)), conv.blur.kernel, pad=(1, 1))
    else:
        y = F.conv2d(x, weight.flatten(0, 1)[:, None], padding=weight.shape[-1] // 2, groups=len(weight))
    return y.unflatten(1, (len(weight), -1))
