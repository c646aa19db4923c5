"""The epilogue of a convolution for a difference: how far an activation moves when its input does, in one pass."""

from __future__ import annotations

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
    *,
    overwrite: bool = False,
) -> Tensor:
    """x [B,C,H,W], base [N,C,H,W] -> style * gain * (leaky_relu(base + demod * x) - leaky_relu(base)), like x.

    base: what the activation reads in each of N pictures; x: N groups of B / N changes of it, one group after another;
    both in units of that input, x before its demodulation. demod, style [N,C]: factors per map as in
    `modulated_epilogue`, 1 when None. What is computed stays in float32 until the difference is rounded to x's dtype.
    overwrite: nobody needs x again, so that native code may write into it, which moves half as much memory. Raises
    ValueError when shapes do not fit, and where native code, which has no gradient, is asked for one by name.
    """
    maps, sides = base.shape[:2], [side for side in (demod, style) if side is not None]
    fits = x.ndim == 4 and x.shape[1:] == base.shape[1:] and len(x) == len(base) * (len(x) // max(1, len(base)))
    if not fits or any(side.shape != maps for side in sides):
        shapes = [tuple(side.shape) for side in (base, *sides)]
        raise ValueError(f"base, demod and style of {shapes} do not fit changes {tuple(x.shape)}")
    chosen = build.choose("epilogue_difference", impl, x, base, *sides)
    graded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, base, *sides))
    if graded and impl not in ("auto", "ref"):
        raise ValueError("native code of epilogue_difference has no gradient: use impl='ref'")
    if graded or chosen == "ref":
        return _reference(x, base.to(x.dtype), demod, style, slope, gain)
    return _native(x, base.to(x.dtype), demod, style, slope, gain, overwrite)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _reference(
    x: Tensor, base: Tensor, demod: Tensor | None, style: Tensor | None, slope: float, gain: float
) -> Tensor:
    z = base.to(_wide(x))[:, None]
    change = x.to(_wide(x)).unflatten(0, (len(base), len(x) // max(1, len(base))))  # [N,B/N,C,H,W]
    if demod is not None:
        change = change * demod[:, None, :, None, None]
    y = (F.leaky_relu(z + change, slope) - F.leaky_relu(z, slope)) * gain
    if style is not None:
        y = y * style[:, None, :, None, None]
    return y.flatten(0, 1).to(x.dtype)


def _native(
    x: Tensor,
    base: Tensor,
    demod: Tensor | None,
    style: Tensor | None,
    slope: float,
    gain: float,
    overwrite: bool,
) -> Tensor:
    x = build.dense(x)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    sides = [None if side is None else side.to(_wide(x)).contiguous() for side in (demod, style)]
    inputs = (x, base.contiguous(memory_format=layout), *sides, slope, gain)
    if not overwrite:
        return torch.ops.deltaspace.epilogue_difference(*inputs)
    torch.ops.deltaspace.epilogue_difference_(*inputs)
    return x


_SIDES = "Tensor base, Tensor? demod, Tensor? style, float slope, float gain"
build.register(f"epilogue_difference(Tensor x, {_SIDES}) -> Tensor", lambda x, *sides: torch.empty_like(x))
build.register(f"epilogue_difference_(Tensor(a!) x, {_SIDES}) -> ()", lambda x, *sides: None)
