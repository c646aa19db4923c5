"""The relevance matrix by finite differences, layer by layer: exact, at a part of the cost of whole pictures.

One pass over a picture is kept (`pipeline.differences`). For the channels of layer l nothing before l is computed
again, layer l itself costs one input channel (`kernels.channel_perturb`), and what follows runs for both values of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.channel_perturb import EPS, channel_perturb
from kernels.upfirdn2d import upfirdn2d
from pipeline import differences
from pipeline.relevance_accumulate import relevance_accumulate

if TYPE_CHECKING:
    from pipeline.models.stylegan2 import Generator, ModulatedConv
    from pipeline.relevance import Probe

CHUNK = 8  # pictures whose activations are held
MOST = {"cpu": 64, "cuda": 512}  # pictures per pass; more are no faster
BUFFERS = 8  # copies of the largest activation that a pass holds at once


def micro_batch(generator: Generator, device: torch.device) -> int:
    """Pictures per pass that take at most 1 GiB, or a quarter of the GPU's memory; even, at least 2."""
    sizes = [n.shape[-1] ** 2 * layer.conv.weight.shape[1] for n, layer in zip(generator.noises, generator.styled)]
    whole = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**32
    fitting = whole // 4 // (4 * BUFFERS * max(sizes))
    return max(2, min(MOST.get(device.type, 32), fitting) // 2 * 2)


@torch.no_grad()
def rows(probe: Probe, pictures: range, channels: range) -> Tensor:
    """The sum over `pictures` of the unit differences of `channels`: [len(channels),E]."""
    layout, parts = probe.generator.layout, []
    for layer, (offset, width) in enumerate(zip(layout.offsets, layout.dims)):
        first, last = max(channels.start, offset), min(channels.stop, offset + width)
        if first < last:
            parts.append(_layer_rows(probe, pictures, layer, range(first - offset, last - offset)))
    return torch.cat(parts)


def _layer_rows(probe: Probe, pictures: range, layer: int, channels: range) -> Tensor:
    """The same for some channels of one layer [K,E]."""
    offset, conv = probe.generator.layout.offsets[layer], probe.generator.styled[layer].conv
    ends = torch.stack([probe.low, probe.high], dim=1)[offset:]  # from this layer's first channel on
    weight = (conv.weight[0] * conv.scale).transpose(0, 1)  # [I,O,k,k]
    share = weight.square().sum(dim=(2, 3))  # [I,O]
    mean = torch.zeros(len(channels), probe.clip.dim, device=ends.device)
    size = micro_batch(probe.generator, ends.device)
    for held in pieces(pictures, min(CHUNK, size // 2)):
        base = _base(probe, held, layer)
        here = base.layers[layer]
        codes, raw, norm = here.style, here.raw, here.style.square() @ share
        whole = raw * torch.rsqrt(norm + EPS)[..., None, None]
        group = 1 if probe.params.emulate_published else max(1, size // (2 * len(held)))
        for some in pieces(channels, group):
            chosen = slice(some.start, some.stop)
            parts = _alone(conv, here.x[:, chosen], weight[chosen].to(probe.dtype))
            if probe.params.emulate_published:  # `base` is about the pictures as they were
                before = probe.mean[offset : offset + some.start].expand(len(held), -1)
                codes = torch.cat([before, codes[:, some.start :]], dim=1)
                raw, norm = conv(here.x, codes), codes.square() @ share
            change = channel_perturb(raw, parts, codes[:, chosen], ends[chosen], norm, share[chosen])
            if probe.params.emulate_published:
                change = change + (raw * torch.rsqrt(norm + EPS)[..., None, None] - whole)[:, None, None]
            found = base.embed(layer, change.flatten(0, 2)).unflatten(0, change.shape[:3])
            at = slice(some.start - channels.start, some.stop - channels.start)
            mean[at] = relevance_accumulate(mean[at], found[:, :, 0], found[:, :, 1], held.start - pictures.start)
    return mean * len(pictures)


def pieces(whole: range, size: int) -> list[range]:
    """`whole` in ranges of `size`, and what is left over."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _base(probe: Probe, pictures: range, layer: int) -> differences.Base:
    """One pass over the pictures, kept until other ones are asked for; as they are when layer `layer` is tried."""
    chosen = slice(pictures.start, pictures.stop)
    s, w_plus = probe.s[chosen], probe.w_plus[chosen]
    if probe.params.emulate_published:  # what came before is still at its mean
        offset = probe.generator.layout.offsets[layer]
        s = torch.cat([probe.mean[:offset].expand(len(s), -1), s[:, offset:]], dim=1)
        return differences.base(probe.generator, probe.clip, s, w_plus, probe.dtype)
    if pictures not in probe.held:
        probe.held.clear()
        probe.held[pictures] = differences.base(probe.generator, probe.clip, s, w_plus, probe.dtype)
    return probe.held[pictures]


def _alone(conv: ModulatedConv, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of each of K channels of x alone, with its own weight [K,O,k,k] -> [N,K,O,H,W]."""
    if conv.up:
        y = upfirdn2d(F.conv_transpose2d(x, weight, stride=2, groups=len(weight)), conv.blur.kernel, pad=(1, 1))
    else:
        y = F.conv2d(x, weight.flatten(0, 1)[:, None], padding=weight.shape[-1] // 2, groups=len(weight))
    return y.unflatten(1, (len(weight), -1))
