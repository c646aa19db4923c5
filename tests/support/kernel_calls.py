"""A call of each operation, and what the tests of all of them share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.bias_act import bias_act
from kernels.box_resample import box_resample
from kernels.channel_perturb import channel_perturb
from kernels.epilogue_difference import epilogue_difference
from kernels.modulated_epilogue import modulated_epilogue
from kernels.upfirdn2d import upfirdn2d

CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], dict]] = {
    "bias_act": (bias_act, (torch.randn(2, 3, 5, 4), torch.randn(3)), {}),
    "upfirdn2d": (upfirdn2d, (torch.randn(1, 2, 5, 7), torch.randn(3, 3)), {}),
    "box_resample": (box_resample, (torch.randn(1, 2, 9, 7),), {"size": 4}),
    "modulated_epilogue": (
        modulated_epilogue,
        (torch.randn(2, 3, 5, 4), torch.randn(2, 3), torch.randn(1, 1, 5, 4), torch.randn(1), torch.randn(3)),
        {},
    ),
    "epilogue_difference": (
        epilogue_difference,
        (torch.randn(4, 3, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3), torch.randn(2, 3)),
        {},
    ),
    "channel_perturb": (
        channel_perturb,
        (
            torch.randn(2, 3, 5, 4),
            torch.randn(2, 6, 3, 5, 4),
            torch.randn(2, 6),
            torch.randn(6, 7),
            40 + torch.rand(2, 3),
            torch.rand(6, 3),
        ),
        {},
    ),
}
BOTH = pytest.mark.parametrize("impl", ["ref", "auto"])


def double(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)
