"""Calls that `benchmarks.kernels` measures: every operation with CUDA code, in the sizes it is used in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu
from kernels.bias_act import bias_act
from kernels.box_resample import box_resample
from kernels.modulated_epilogue import modulated_epilogue
from kernels.upfirdn2d import binomial_kernel, upfirdn2d

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}
MEAN, STD = (0.1, -0.2, 0.3), (0.5, 0.6, 0.7)  # of colours


@dataclass(frozen=True)
class Case:
    """An operation on named tensors.

    run: takes the tensors by name, and impl
    graded: inputs whose gradients are computed
    saved: tensors that the backward pass reads besides the cotangent; "y" is the result
    narrow: inputs in the measured dtype; the others are float32
    fixed: inputs that are not random
    """

    operation: str
    shapes: dict[str, tuple[int, ...]]
    run: Callable[..., Tensor]
    graded: tuple[str, ...]
    saved: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ("x",)
    fixed: dict[str, Tensor] | None = None

    def inputs(self, dtype: torch.dtype, layout: torch.memory_format, device: str) -> dict[str, Tensor]:
        """Standard normal inputs, by name."""
        tensors = {}
        for name, shape in self.shapes.items():
            x = torch.randn(shape, device=device).to(dtype if name in self.narrow else torch.float32)
            tensors[name] = x.contiguous(memory_format=layout) if x.ndim == 4 and name == "x" else x
        return tensors | {name: tensor.to(device) for name, tensor in (self.fixed or {}).items()}


def _biased(*shape: int) -> Case:
    channels = shape[1] if len(shape) == 4 else shape[-1]
    return Case("bias_act", {"x": shape, "bias": (channels,)}, bias_act, ("x", "bias"), ("y",), ("x", "bias"))


def _filtered(shape: tuple[int, int, int, int], **options: Any) -> Case:
    return Case("upfirdn2d", {"x": shape}, partial(upfirdn2d, **options), ("x",), fixed={"kernel": binomial_kernel(2)})


def _boxed(shape: tuple[int, int, int, int], size: int, normalised: bool = False) -> Case:
    constants: tuple[Any, ...] = (MEAN, STD) if normalised else (None, None)
    return Case("box_resample", {"x": shape}, partial(_box, size, constants), ("x",))


def _box(size: int, constants: tuple[Any, ...], x: Tensor, impl: str) -> Tensor:
    return box_resample(x, size, *constants, impl=impl)


def _epilogue(shape: tuple[int, int, int, int], with_style: bool) -> Case:
    b, c, h, w = shape
    sides = {"demod": (b, c), "noise": (1, 1, h, w), "weight": (1,), "bias": (c,)} | (
        {"style": (b, c)} if with_style else {}
    )
    graded = ("x", *(name for name in sides if name != "noise"))
    return Case("modulated_epilogue", {"x": shape, **sides}, modulated_epilogue, graded, ("x", *sides))


def cases(batch: int = 4, size: int = 1024, small: int = 64) -> dict[str, Case]:
    """Cases by name. batch: of images with `size` pixels a side; small: of `portraits`, 64 and 32 pixels."""
    channels = {size: 32, size // 4: 128, size // 16: 512}  # of StyleGAN2 config f at 1024, 256 and 64 px
    maps = [(batch, c, n, n) for n, c in channels.items()]
    little = [(small, 32, 64, 64), (small, 64, 32, 32)] if small > 1 else [(2, 3, 8, 8)]
    cases_by_name: dict[str, Case] = {"bias_act mapping": _biased(64, 512), "bias_act mapper fine": _biased(64, 2464)}
    for shape in (maps[0], little[0]):
        cases_by_name[f"bias_act {shape[2]} px"] = _biased(*shape)
    for b, c, n, _ in (*maps, little[0]):
        cases_by_name[f"upfirdn2d blur to {n} px"] = _filtered((b, c, n + 1, n + 1), pad=(1, 1))
    cases_by_name[f"upfirdn2d image to {size} px"] = _filtered((batch, 3, size // 2, size // 2), up=2, pad=(2, 1))
    cases_by_name[f"upfirdn2d halved from {size // 4} px"] = _filtered(maps[1], down=2, pad=(1, 1))
    cases_by_name[f"box_resample {size} to {size * 7 // 32} px"] = _boxed((batch, 3, size, size), size * 7 // 32)
    cases_by_name["box_resample 64 to 96 px, normalised"] = _boxed((small, 3, 64, 64), 96, normalised=True)
    for number, shape in enumerate((*maps, *little)):
        with_style = bool(number % 2)
        cases_by_name[f"modulated_epilogue {shape[2]} px{', styled' * with_style}"] = _epilogue(shape, with_style)
    return cases_by_name


def results(case: Case, tensors: dict[str, Tensor], cotangent: Tensor | None, impl: str) -> dict[str, Tensor]:
    """The result "y" of a case by implementation `impl` and, where there is a cotangent of y, the gradients by name."""
    leaves = {
        name: x.detach().requires_grad_(cotangent is not None and name in case.graded) for name, x in tensors.items()
    }
    y = case.run(**leaves, impl=impl)
    if cotangent is None:
        return {"y": y}
    gradients = torch.autograd.grad(y, [leaves[name] for name in case.graded], cotangent.to(y.dtype))
    return {"y": y.detach(), **dict(zip(case.graded, gradients, strict=True))}


def small_calls(device: str, impl: str) -> int:
    """Run every operation forwards and backwards on small tensors of odd sizes, in all dtypes; returns the count."""
    small = [
        _biased(3, 33),
        _biased(2, 5, 7, 9),
        _filtered((2, 5, 9, 7), pad=(1, 1)),
        _filtered((2, 3, 5, 7), up=2, pad=(2, 1)),
        _filtered((2, 3, 9, 7), down=2, pad=(1, 1)),
        _boxed((2, 3, 13, 17), 5, normalised=True),
        _boxed((2, 3, 4, 6), 7),
        _epilogue((2, 35, 7, 5), with_style=True),
        _epilogue((1, 3, 41, 37), with_style=False),
    ]
    calls = 0
    for case in small:
        for dtype in (*DTYPES.values(), torch.float64):
            for layout in LAYOUTS.values():
                tensors = case.inputs(dtype, layout, device)
                if dtype == torch.float64:
                    tensors = {name: x.double() for name, x in tensors.items()}
                results(case, tensors, torch.randn_like(case.run(**tensors, impl=impl)), impl)
                calls += 1
    gpu.synchronize(device)
    return calls
