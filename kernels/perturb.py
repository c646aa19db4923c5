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
    Raises ValueError when the shapes do not fit.
    """
    (n, outputs), k = raw.shape[:2], len(values)
    expected = [(n, k, *raw.shape[1:]), (n, k), (n, outputs), (k, outputs)]
    if [tuple(tensor.shape) for tensor in (parts, s, norm, share)] != expected:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (raw, parts, s, values, norm, share))
        raise ValueError(f"raw, parts, s, values, norm and share do not fit: {shapes}")
    build.choose("channel_perturb", impl, raw, parts, s, values, norm, share)
    return _reference(raw, parts, s, values, norm, share)


def _reference(raw: Tensor, parts: Tensor, s: Tensor, values: Tensor, norm: Tensor, share: Tensor) -> Tensor:
    squares = (values.square() - s[..., None].square())[..., None] * share[:, None]  # [N,K,V,O]
    norm = norm[:, None, None]
    scale = torch.rsqrt((norm + squares).clamp(min=0) + EPS)
    of_raw, of_parts = scale - torch.rsqrt(norm + EPS), (values - s[..., None])[..., None] * scale
    of_raw, of_parts = (factor.to(raw.dtype)[..., None, None] for factor in (of_raw, of_parts))
    return torch.addcmul(raw[:, None, None] * of_raw, parts[:, :, None], of_parts)
