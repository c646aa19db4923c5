"""Change of a convolution's epilogue for a change of its input, in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch
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
    """Compute style * gain * (leaky_relu(base + demod * x) - leaky_relu(base)), in x's shape and dtype.

    base: input of the activation for N images [N,C,H,W].
    x: changes of that input, before demodulation [B,C,H,W]: B / N changes of the first image, then of the second, ...
    demod, style: factors per map as in `modulated_epilogue` [N,C]; None: 1.
    overwrite: let native code write the result into x, which halves the memory traffic.
    Computed in float32 until the difference is rounded. Raises ValueError when shapes do not fit, and when a gradient
    of native code, which has none, is required by name.
    """
    maps, sides = base.shape[:2], [side for side in (demod, style) if side is not None]
    fits = x.ndim == 4 and x.shape[1:] == base.shape[1:] and len(x) == len(base) * (len(x) // max(1, len(base)))
    if not fits or any(side.shape != maps for side in sides):
        shapes = [tuple(side.shape) for side in (base, *sides)]
        raise ValueError(f"base, demod and style of {shapes} do not fit changes {tuple(x.shape)}")
    chosen = dispatch.choose("epilogue_difference", impl, x, base, *sides)
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
    x = dispatch.dense(x)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    sides = [None if side is None else side.to(_wide(x)).contiguous() for side in (demod, style)]
    inputs = (x, base.contiguous(memory_format=layout), *sides, slope, gain)
    if not overwrite:
        return torch.ops.deltaspace.epilogue_difference(*inputs)
    torch.ops.deltaspace.epilogue_difference_(*inputs)
    return x


_SIDES = "Tensor base, Tensor? demod, Tensor? style, float slope, float gain"
dispatch.register(f"epilogue_difference(Tensor x, {_SIDES}) -> Tensor", lambda x, *sides: torch.empty_like(x))
dispatch.register(f"epilogue_difference_(Tensor(a!) x, {_SIDES}) -> ()", lambda x, *sides: None)
