"""The epilogue of a convolution for a difference: how far an activation moves when its input does, in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import build
from kernels.bias_act import GAIN


def epilogue_difference(
    x: Tensor,
    base: Tensor,
    demod: Tensor | None = None,
    style: Tensor | None = None,
    slope: float = 0.2,
    gain: float = GAIN,
    impl: str = "auto",
) -> Tensor:
    """x [B,C,H,W], base [N,C,H,W] -> style * gain * (lrelu(base + demod * x) - lrelu(base)), of x's shape and dtype.

    base: what the activation reads in each of N pictures; x: N groups of B / N changes of it, one group after another.
    demod, style [N,C], both 1 when None. In bfloat16 a difference is rounded as such, not as what it is added to.
    Raises ValueError when shapes do not fit, and where native code is asked by name for a gradient.
    """
    maps, pixels = tuple(base.shape[:2]), tuple(base.shape[2:])
    fits = x.ndim == 4 and tuple(x.shape[1:]) == (*maps[1:], *pixels) and maps[0] > 0 and len(x) % maps[0] == 0
    sides = [side for side in (demod, style) if side is not None]
    if not fits or any(tuple(side.shape) != maps for side in sides):
        shapes = [tuple(side.shape) for side in (base, *sides)]
        raise ValueError(f"base, demod and style of {shapes} do not fit changes {tuple(x.shape)}")
    graded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, base, *sides))
    if graded and impl not in ("auto", "ref"):
        raise ValueError("native code of epilogue_difference has no gradient: use impl='ref'")
    chosen = build.choose("epilogue_difference", "ref" if graded else impl, x, base, *sides)
    return (_reference if chosen == "ref" else _native)(x, base, demod, style, slope, gain)


def _reference(
    x: Tensor, base: Tensor, demod: Tensor | None, style: Tensor | None, slope: float, gain: float
) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    z = base.to(wide)[:, None]
    change = x.to(wide).unflatten(0, (len(base), -1))
    if demod is not None:
        change = change * demod[:, None, :, None, None]
    y = (F.leaky_relu(z + change, slope) - F.leaky_relu(z, slope)) * gain
    if style is not None:
        y = y * style[:, None, :, None, None]
    return y.flatten(0, 1).to(x.dtype)


def _native(x: Tensor, base: Tensor, demod: Tensor | None, style: Tensor | None, *rest: float) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sides = [None if side is None else side.to(wide).contiguous() for side in (demod, style)]
    x, base = (tensor.to(x.dtype).contiguous(memory_format=torch.channels_last) for tensor in (x, base))
    return torch.ops.deltaspace.epilogue_difference(x, base, *sides, *rest)


def _fake(x: Tensor, *sides: Any) -> Tensor:
    return torch.empty_like(x)


build.register(
    "epilogue_difference(Tensor x, Tensor base, Tensor? demod, Tensor? style, float slope, float gain) -> Tensor", _fake
)
