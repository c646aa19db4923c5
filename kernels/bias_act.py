"""Bias, leaky ReLU and gain in one pass: StyleGAN2's activation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch

GAIN = 2**0.5  # keeps the variance of a unit-normal input


def bias_act(x: Tensor, bias: Tensor, slope: float = 0.2, gain: float = GAIN, impl: str = "auto") -> Tensor:
    """Compute gain * leaky_relu(x + bias, slope).

    x: images [B,C,H,W], or [B,C] and [B,L,C] (the mapper's) with channels last. bias [C]. slope: of negative values.
    impl: one of `dispatch.IMPLEMENTATIONS`. Returns x's shape in the wider of both dtypes. Raises ValueError when the
    channels do not match.
    """
    axis = 1 if x.ndim == 4 else -1
    if x.shape[axis] != bias.numel():
        raise ValueError(f"bias of {bias.numel()} channels for an input of {x.shape[axis]}")
    chosen = dispatch.choose("bias_act", impl, x, bias)
    return _reference(x, bias, slope, gain) if chosen == "ref" else _native(x, bias, slope, gain)


def _reference(x: Tensor, bias: Tensor, slope: float, gain: float) -> Tensor:
    return F.leaky_relu(x + (bias[:, None, None] if x.ndim == 4 else bias), slope) * gain


def _native(x: Tensor, bias: Tensor, slope: float, gain: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, bias.dtype)
    return torch.ops.deltaspace.bias_act(dispatch.dense(x.to(dtype)), bias.to(dtype).contiguous(), slope, gain)


def _fake(x: Tensor, bias: Tensor, slope: float, gain: float) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.slope, ctx.gain = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    (output,) = ctx.saved_tensors
    grad = torch.ops.aten.leaky_relu_backward(grad * ctx.gain, output, ctx.slope, True)
    axes = (0, 2, 3) if grad.ndim == 4 else tuple(range(grad.ndim - 1))
    return grad, grad.sum(axes) if axes else grad, None, None


dispatch.register("bias_act(Tensor x, Tensor bias, float slope, float gain) -> Tensor", _fake, _backward, _setup)
