"""Demodulation, noise, bias and activation after a convolution of StyleGAN2, in one pass over its output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch
from kernels.bias_act import GAIN

_SIDES = "Tensor demod, Tensor noise, Tensor weight, Tensor bias, Tensor? style, float slope, float gain"


def modulated_epilogue(
    x: Tensor,
    demod: Tensor,
    noise: Tensor,
    weight: Tensor,
    bias: Tensor,
    style: Tensor | None = None,
    slope: float = 0.2,
    gain: float = GAIN,
    impl: str = "auto",
) -> Tensor:
    """Compute style * gain * leaky_relu(x * demod + weight * noise + bias, slope), in x's shape and dtype.

    x: output of the convolution [B,C,H,W]. demod: factors that give the modulated weights unit norm [B,C] (StyleGAN2,
    eq. 3). noise [1 or B,1,H,W] and its weight [1]. bias [C]. style: of the next convolution [B,C], where no other
    layer reads this result. Factors per map stay float32 for any dtype of x. Raises ValueError when shapes do not fit.
    """
    maps, pixels = tuple(x.shape[:2]), tuple(x.shape[2:])
    fits = x.ndim == 4 and tuple(demod.shape) == maps and tuple(bias.shape) == maps[1:] and weight.numel() == 1
    fits = fits and tuple(noise.shape) in ((1, 1, *pixels), (maps[0], 1, *pixels))
    if not fits or (style is not None and tuple(style.shape) != maps):
        shapes = [tuple(side.shape) for side in (demod, noise, weight, bias, style) if side is not None]
        raise ValueError(f"demod, noise, weight, bias and style of {shapes} do not fit activations {tuple(x.shape)}")
    sides = (demod, noise, weight, bias) if style is None else (demod, noise, weight, bias, style)
    chosen = dispatch.choose("modulated_epilogue", impl, x, *sides)
    run = _reference if chosen == "ref" else _native
    return run(x, demod, noise, weight, bias, style, slope, gain)


def _reference(
    x: Tensor,
    demod: Tensor,
    noise: Tensor,
    weight: Tensor,
    bias: Tensor,
    style: Tensor | None,
    slope: float,
    gain: float,
) -> Tensor:
    z = x * demod.to(x.dtype)[:, :, None, None] + (weight * noise).to(x.dtype) + bias.to(x.dtype)[:, None, None]
    y = F.leaky_relu(z, slope) * gain
    return y if style is None else y * style.to(x.dtype)[:, :, None, None]


def _native(x: Tensor, demod: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, style: Tensor | None, *rest: float):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sides = [None if side is None else side.to(wide).contiguous() for side in (demod, noise, weight, bias, style)]
    return torch.ops.deltaspace.modulated_epilogue(dispatch.dense(x), *sides, *rest)


def _fake(x: Tensor, *sides: Any) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.numbers = inputs[6:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, demod, noise, weight, bias, style = ctx.saved_tensors
    sides = (demod, noise, weight, bias, style, *ctx.numbers)
    wanted = ctx.needs_input_grad
    if torch.is_grad_enabled() or wanted[2]:  # second derivatives and gradients of the noise use plain operations
        return _plain_backward(grad, x, *sides)
    gx, sums = torch.ops.deltaspace.modulated_epilogue_backward(grad, x, *sides)
    to_demod, to_style, to_bias, to_weight = sums.unbind(1)
    return (
        gx,
        to_demod.contiguous(),
        None,
        to_weight.sum().reshape(weight.shape),
        to_bias.sum(0),
        None if style is None else to_style.contiguous(),
        None,
        None,
    )


def _plain_backward(grad: Tensor, x: Tensor, *sides: Any) -> tuple[Tensor | None, ...]:
    demod, noise, weight, bias, style, slope, gain = sides
    wide, per_map, pixels = demod.dtype, demod[:, :, None, None], (2, 3)
    value, grad = x.to(wide), grad.to(wide)
    z = value * per_map + weight * noise + bias[:, None, None]
    steep = torch.where(z > 0, torch.ones_like(z), slope) * gain
    to_style = None if style is None else (grad * z * steep).sum(pixels)
    gz = grad * steep if style is None else grad * steep * style[:, :, None, None]
    to_noise = weight * gz.sum(1, keepdim=True)
    return (
        (gz * per_map).to(x.dtype),
        (gz * value).sum(pixels),
        to_noise if len(noise) == len(x) else to_noise.sum(0, keepdim=True),
        (gz * noise).sum().reshape(weight.shape),
        gz.sum((0, *pixels)),
        to_style,
        None,
        None,
    )


def _fake_backward(grad: Tensor, x: Tensor, demod: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), demod.new_empty(x.shape[0], 4, x.shape[1])


dispatch.register(f"modulated_epilogue(Tensor x, {_SIDES}) -> Tensor", _fake, _backward, _setup)
dispatch.register(
    f"modulated_epilogue_backward(Tensor grad, Tensor x, {_SIDES}) -> (Tensor, Tensor)",
    _fake_backward,  # not differentiable: `_plain_backward` runs where second derivatives are needed
)
