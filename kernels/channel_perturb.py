"""Channel perturbation: how a modulated convolution changes with one style channel, from the convolution before it.

Changing channel c of the style by d changes the convolution by d times the convolution of that channel alone, and the
sum under the demodulation's root by the channel's share of it. So the changed layer costs one input channel, not all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import build

EPS = 1e-8  # of the demodulation (StyleGAN2, eq. 3)


def channel_perturb(
    raw: Tensor, parts: Tensor, s: Tensor, values: Tensor, norm: Tensor, share: Tensor, impl: str = "auto"
) -> Tensor:
    """Change of a layer's demodulated output for K channels of N pictures set to V values each -> [N,K,V,O,H,W].

    raw [N,O,H,W]: convolution of s * x, not demodulated. parts [N,K,O,H,W]: convolution of each channel of x alone, not
    modulated. s [N,K]: what these channels are now; values [K,V]: what they become. norm [N,O]: sum over all channels
    of s^2 |W|^2; share [K,O]: |W|^2 of these channels. s, values, norm and share are float32 (or float64).
    out = (raw + (v - s) parts) / sqrt(norm + (v^2 - s^2) share + 1e-8) - raw / sqrt(norm + 1e-8),
    in raw's dtype and made of factors of raw and of parts, so that it is not rounded as the outputs are.
    Raises ValueError when the shapes do not fit, and where native code, which has no gradient, is asked for one.
    """
    (n, outputs), k = raw.shape[:2], len(values)
    expected = [(n, k, *raw.shape[1:]), (n, k), (n, outputs), (k, outputs)]
    if [tuple(tensor.shape) for tensor in (parts, s, norm, share)] != expected:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (raw, parts, s, values, norm, share))
        raise ValueError(f"raw, parts, s, values, norm and share do not fit: {shapes}")
    sides = raw, parts, s, values, norm, share
    graded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in sides)
    if graded and impl not in ("auto", "ref"):
        raise ValueError("native code of channel_perturb has no gradient: use impl='ref'")
    chosen = build.choose("channel_perturb", "ref" if graded else impl, *sides)
    squares = (values.square() - s[..., None].square())[..., None] * share[:, None]  # [N,K,V,O]
    norm = norm[:, None, None]
    scale = torch.rsqrt((norm + squares).clamp(min=0) + EPS)
    of_raw, of_parts = scale - torch.rsqrt(norm + EPS), (values - s[..., None])[..., None] * scale
    return (_reference if chosen == "ref" else _native)(raw, parts, of_raw, of_parts)


def _reference(raw: Tensor, parts: Tensor, of_raw: Tensor, of_parts: Tensor) -> Tensor:
    of_raw, of_parts = (factor.to(raw.dtype)[..., None, None] for factor in (of_raw, of_parts))
    return torch.addcmul(raw[:, None, None] * of_raw, parts[:, :, None], of_parts)


def _native(raw: Tensor, parts: Tensor, of_raw: Tensor, of_parts: Tensor) -> Tensor:
    last = torch.channels_last
    raw, parts = raw.contiguous(memory_format=last), parts.flatten(1, 2).contiguous(memory_format=last)
    wide = torch.float64 if raw.dtype == torch.float64 else torch.float32
    factors = (factor.to(wide).contiguous() for factor in (of_raw, of_parts))
    return torch.ops.deltaspace.channel_perturb(raw, parts, *factors).unflatten(0, of_raw.shape[:3])


def _fake(raw: Tensor, parts: Tensor, of_raw: Tensor, of_parts: Tensor) -> Tensor:
    shape = (of_raw.shape[:3].numel(), *raw.shape[1:])
    return torch.empty(shape, dtype=raw.dtype, device=raw.device, memory_format=torch.channels_last)


build.register("channel_perturb(Tensor raw, Tensor parts, Tensor of_raw, Tensor of_parts) -> Tensor", _fake)
