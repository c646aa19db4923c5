"""Bias, leaky ReLU and gain in one step: gain * lrelu(x + b), StyleGAN2's activation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels import build

GAIN = 2**0.5  # keeps the variance of a unit-normal input


def bias_act(x: Tensor, bias: Tensor, slope: float = 0.2, gain: float = GAIN, impl: str = "auto") -> Tensor:
    """x [B,C,...] or [...,C] when it has no spatial axes, bias [C] -> gain * leaky_relu(x + bias, slope), same shape.

    A 4-D input has its channels on axis 1; 2-D and 3-D inputs have them last (the mapper feeds [B,L,C]).
    Raises ValueError when the channels do not match.
    """
    axis = 1 if x.ndim == 4 else -1
    if x.shape[axis] != bias.numel():
        raise ValueError(f"bias of {bias.numel()} channels for an input of {x.shape[axis]}")
    build.choose(impl, x, bias)
    return _reference(x, bias, axis, slope, gain)


def _reference(x: Tensor, bias: Tensor, axis: int, slope: float, gain: float) -> Tensor:
    shape = [1] * x.ndim
    shape[axis] = -1
    return F.leaky_relu(x + bias.view(shape), slope) * gain
