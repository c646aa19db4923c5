"""Change of a modulated convolution with one style channel, from the unchanged convolution.

Changing channel c of the style by d adds d times the convolution of that channel alone, and changes the sum under the
demodulation's root by that channel's term. So the changed layer costs one input channel instead of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch

EPS = 1e-8  # of the demodulation (StyleGAN2, eq. 3)


def channel_perturb(
    raw: Tensor, parts: Tensor, s: Tensor, values: Tensor, norm: Tensor, weight_norm: Tensor, impl: str = "auto"
) -> Tensor:
    """Change of a layer's demodulated output when K style channels of N images take V values each [N,K,V,O,H,W].

    raw: convolution of s * x, not demodulated [N,O,H,W].
    parts: convolution of each of the K channels of x alone, not modulated [N,K,O,H,W].
    s: present values of these channels [N,K]. values: their new values [K,V].
    norm: sum over all channels of s^2 |W|^2 [N,O]. weight_norm: |W|^2 of these channels [K,O].
    s, values, norm and weight_norm are float32 or float64. The result, in raw's dtype, is
        (raw + (v - s) parts) / sqrt(norm + (v^2 - s^2) weight_norm + 1e-8) - raw / sqrt(norm + 1e-8),
    computed as a weighted sum of raw and parts, since the difference of both terms would be lost to their rounding.
    Raises ValueError when the shapes do not fit, and when a gradient of native code, which has none, is required.
    """
    (n, outputs), k = raw.shape[:2], len(values)
    expected = [(n, k, *raw.shape[1:]), (n, k), (n, outputs), (k, outputs)]
    if [tuple(tensor.shape) for tensor in (parts, s, norm, weight_norm)] != expected:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (raw, parts, s, values, norm, weight_norm))
        raise ValueError(f"raw, parts, s, values, norm and weight_norm do not fit: {shapes}")
    tensors = raw, parts, s, values, norm, weight_norm
    graded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if graded and impl not in ("auto", "ref"):
        raise ValueError("native code of channel_perturb has no gradient: use impl='ref'")
    chosen = dispatch.choose("channel_perturb", "ref" if graded else impl, *tensors)
    squares = (values.square() - s[..., None].square())[..., None] * weight_norm[:, None]  # [N,K,V,O]
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


dispatch.register("channel_perturb(Tensor raw, Tensor parts, Tensor of_raw, Tensor of_parts) -> Tensor", _fake)
