"""Native implementations in every dtype, layout and size, forwards and backwards, against the references in float64.

The rule: an error of at most twice that of plain PyTorch in the same dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import dispatch
from kernels.bias_act import GAIN, bias_act
from kernels.box_resample import box_resample
from kernels.channel_perturb import channel_perturb
from kernels.epilogue_difference import epilogue_difference
from kernels.modulated_epilogue import modulated_epilogue
from kernels.upfirdn2d import binomial_kernel, upfirdn2d

IMPLEMENTATIONS = ["cpp", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}
SIZES = [(1, 1, 1, 1), (1, 3, 5, 7), (3, 5, 1, 9), (2, 17, 13, 11), (37, 19, 4, 3), (2, 3, 65, 33)]
WIDE = "demod noise weight bias style s values norm weight_norm".split()  # stay float32 beside a half-precision input


@dataclass(frozen=True)
class Case:
    run: Callable[..., Tensor]  # of the tensors by name and impl
    tensors: Callable[[tuple[int, int, int, int]], dict[str, Tensor]]
    constant: tuple[str, ...] = ()  # tensors without a gradient
    gradient: bool = True  # in native code
    native: tuple[str, ...] = ("cpp", "cuda")


def epilogue_inputs(shape: tuple[int, int, int, int], noises: int | None, style: bool) -> dict[str, Tensor]:
    b, c, h, w = shape
    sides = {"demod": (b, c), "noise": (noises or b, 1, h, w), "weight": (1,), "bias": (c,)}
    shapes = {"x": shape, **sides, **({"style": (b, c)} if style else {})}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def difference_inputs(shape: tuple[int, int, int, int], times: int, sides: str) -> dict[str, Tensor]:
    b, *rest = shape
    shapes = {"x": (b * times, *rest), "base": shape, **dict.fromkeys(sides.split(), shape[:2])}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def perturbed(shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
    n, c, h, w = shape
    shapes = {
        "raw": shape,
        "parts": (n, 3, c, h, w),
        "s": (n, 3),
        "values": (3, 2),
        "norm": (n, c),
        "weight_norm": (3, c),
    }
    found = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return {**found, "norm": 40 + found["norm"].square(), "weight_norm": found["weight_norm"].square()}


def just_x(shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
    return {"x": torch.randn(shape, dtype=torch.float64)}


def filtered(**options: Any) -> Case:
    def inputs(shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
        return {**just_x(shape), "kernel": binomial_kernel(2).double()}

    return Case(lambda impl, **tensors: upfirdn2d(**tensors, **options, impl=impl), inputs, ("kernel",))


def boxed(size: int, statistics: bool = False) -> Case:
    def run(x: Tensor, impl: str) -> Tensor:
        mean = tuple(0.1 * c for c in range(x.shape[1])) if statistics else None
        std = tuple(0.5 + 0.1 * c for c in range(x.shape[1])) if statistics else None
        return box_resample(x, size, mean, std, impl=impl)

    return Case(run, just_x)


CASES = {
    "bias_act": Case(bias_act, lambda shape: {**just_x(shape), "bias": torch.randn(shape[1], dtype=torch.float64)}),
    "bias_act last axis": Case(
        bias_act,
        lambda shape: {
            "x": torch.randn(shape[:3], dtype=torch.float64),
            "bias": torch.randn(shape[2], dtype=torch.float64),
        },
    ),
    "epilogue": Case(modulated_epilogue, lambda shape: epilogue_inputs(shape, 1, style=False), ("noise",)),
    "epilogue styled": Case(modulated_epilogue, lambda shape: epilogue_inputs(shape, None, style=True), ("noise",)),
    "epilogue, every gradient": Case(modulated_epilogue, lambda shape: epilogue_inputs(shape, 1, style=True)),
    "blur": filtered(pad=(2, 1)),
    "enlarge": filtered(up=2, pad=(2, 1)),
    "shrink": filtered(down=2, pad=(3, 3)),
    "box up": boxed(14),
    "box down, normalised": boxed(3, statistics=True),
    "channel_perturb": Case(channel_perturb, perturbed, gradient=False, native=("cpp",)),
    "epilogue_difference": Case(
        epilogue_difference,
        lambda shape: difference_inputs(shape, 3, "demod style"),
        gradient=False,
        native=("cpp",),
    ),
    "epilogue_difference of one": Case(
        lambda impl, **tensors: epilogue_difference(**tensors, slope=0.0, gain=1.0, impl=impl),
        lambda shape: difference_inputs(shape, 1, ""),
        gradient=False,
        native=("cpp",),
    ),
}


def results(case: Case, tensors: dict[str, Tensor], cotangent: Tensor, impl: str) -> list[Tensor]:
    """The result and the gradients of all inputs that have one, in float64 on the CPU."""
    graded = set(tensors) - set(case.constant) if case.gradient else set()
    leaves = {name: x.detach().requires_grad_(name in graded) for name, x in tensors.items()}
    y = case.run(**leaves, impl=impl)
    wanted = [x for x in leaves.values() if x.requires_grad]
    gradients = torch.autograd.grad(y, wanted, cotangent.to(y)) if wanted else ()
    return [x.double().cpu() for x in (y, *gradients)]


def device_of(impl: str, case: Case) -> str:
    if impl == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if impl not in case.native:
        pytest.skip(dispatch.NO_SOURCE.format(impl=impl))
    if reason := dispatch.unavailable("bias_act", impl):
        pytest.skip(reason)
    return "cuda" if impl == "cuda" else "cpu"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_errors_are_at_most_twice_those_of_plain_pytorch(impl: str, name: str, dtype: torch.dtype, layout: str) -> None:
    case = CASES[name]
    device = device_of(impl, case)
    torch.manual_seed(0)
    for shape in SIZES:
        exact = case.tensors(shape)
        given = {
            key: x.to(device, torch.float32 if key in WIDE and "bias_act" not in name else dtype)
            for key, x in exact.items()
        }
        main = next(iter(given))
        if given[main].ndim == 4:
            given[main] = given[main].contiguous(memory_format=LAYOUTS[layout])
        exact = {key: x.double().cpu() for key, x in given.items()}
        cotangent = torch.randn_like(case.run(**exact, impl="ref")).to(dtype)
        truth = results(case, exact, cotangent, "ref")
        plain = results(case, given, cotangent.to(device), "ref")
        native = results(case, given, cotangent.to(device), impl)
        for number, (true, ours, theirs) in enumerate(zip(truth, native, plain)):
            size, ulp = true.abs().max().item(), torch.finfo(dtype).eps
            if number >= 2:  # a sum of so many terms that cancel each other
                size, ulp = max(size, math.sqrt(cotangent.numel() / true.numel())), 4 * torch.finfo(torch.float32).eps
            allowed = 2 * max((theirs - true).abs().max().item(), size * ulp)
            assert (ours - true).abs().max() <= allowed, f"{shape}, result {number}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_native_code_in_float64_agrees_with_the_reference_to_rounding(impl: str, name: str) -> None:
    case = CASES[name]
    device = device_of(impl, case)
    torch.manual_seed(1)
    for shape, layout in itertools.product(SIZES, LAYOUTS.values()):
        exact = {key: x.to(device) for key, x in case.tensors(shape).items()}
        main = next(iter(exact))
        if exact[main].ndim == 4:
            exact[main] = exact[main].contiguous(memory_format=layout)
        cotangent = torch.randn_like(case.run(**exact, impl="ref"))
        for ours, theirs in zip(results(case, exact, cotangent, impl), results(case, exact, cotangent, "ref")):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # the box filter's matrix is float32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_results_keep_dtype_and_layout_and_an_empty_batch_stays_empty(impl: str, name: str, layout: str) -> None:
    case = CASES[name]
    device = device_of(impl, case)
    for batch in (0, 2):
        tensors = {key: x.to(device, torch.float32) for key, x in case.tensors((batch, 5, 8, 6)).items()}
        main = next(iter(tensors))
        if tensors[main].ndim == 4:
            tensors[main] = tensors[main].contiguous(memory_format=LAYOUTS[layout])
        y = case.run(**tensors, impl=impl)
        assert y.dtype == torch.float32 and y.shape == case.run(**tensors, impl="ref").shape
        assert len(y) == len(tensors[main])
        if y.ndim == 4 and batch:
            assert y.is_contiguous(memory_format=LAYOUTS[layout])
        found = results(case, tensors, torch.ones_like(y), impl)
        assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_views_and_other_strides_are_read_correctly(impl: str, name: str) -> None:
    case = CASES[name]
    device = device_of(impl, case)
    tensors = {key: x.to(device, torch.float32) for key, x in case.tensors((4, 6, 10, 8)).items()}
    main = next(iter(tensors))
    if tensors[main].ndim != 4 or set(WIDE) & set(tensors) or "base" in tensors:
        tensors[main] = tensors[main].transpose(0, -1).contiguous().transpose(0, -1)
    else:
        tensors[main] = tensors[main][1:, ::2, 1:, ::2]
    torch.testing.assert_close(case.run(**tensors, impl=impl), case.run(**tensors, impl="ref"))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_large_batch_and_large_maps_are_summed_in_parts_without_losing_digits(impl: str) -> None:
    device = device_of(impl, CASES["epilogue"])
    torch.manual_seed(2)
    for shape, layout in itertools.product([(600, 8, 4, 4), (1, 8, 150, 140)], LAYOUTS.values()):
        given = {key: x.to(device, torch.float32) for key, x in epilogue_inputs(shape, 1, style=True).items()}
        given["x"] = given["x"].contiguous(memory_format=layout)
        cotangent = torch.randn_like(given["x"])
        case = CASES["epilogue styled"]
        truth = results(case, {key: x.double().cpu() for key, x in given.items()}, cotangent.cpu(), "ref")
        for true, ours in zip(truth, results(case, given, cotangent, impl)):
            assert (true - ours).abs().max() < 2e-6 * true.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.gradient])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_batch_of_cotangents_gives_each_gradient(impl: str, name: str, layout: str) -> None:
    case = CASES[name]
    device = device_of(impl, case)
    torch.manual_seed(3)
    tensors = {key: x.to(device).float() for key, x in case.tensors((2, 3, 5, 7)).items()}
    main = next(iter(tensors))
    if tensors[main].ndim == 4:
        tensors[main] = tensors[main].contiguous(memory_format=LAYOUTS[layout])
    leaves = {key: x.requires_grad_(key not in case.constant) for key, x in tensors.items()}
    y = case.run(**leaves, impl=impl)
    wanted = [x for x in leaves.values() if x.requires_grad]
    cotangents = torch.randn(4, *y.shape, device=device)
    together = torch.autograd.grad(y, wanted, cotangents, retain_graph=True, is_grads_batched=True)
    for index, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(y, wanted, cotangent, retain_graph=True)
        for one, many in zip(alone, together):
            torch.testing.assert_close(many[index], one)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_second_derivatives_are_those_of_finite_differences(impl: str) -> None:
    device = device_of(impl, CASES["epilogue"])
    torch.manual_seed(4)
    for name, case in CASES.items():
        if impl not in case.native or not case.gradient:
            continue
        tensors = {key: x.to(device) for key, x in case.tensors((2, 3, 4, 3)).items()}
        leaves = [x.requires_grad_(key not in case.constant) for key, x in tensors.items()]

        def run(*values: Tensor, case: Case = case, names: tuple[str, ...] = tuple(tensors)) -> Tensor:
            return case.run(**dict(zip(names, values)), impl=impl)

        assert torch.autograd.gradcheck(run, leaves), name
        assert torch.autograd.gradgradcheck(run, leaves), name


# ---------------------------------------------------------------- as operations of torch


def arguments(operation: str, device: str, layout: torch.memory_format) -> list[tuple[str, tuple[Any, ...]]]:
    """What a registered operation is called with: (its name, its arguments)."""
    x = torch.randn(2, 3, 5, 4, device=device).contiguous(memory_format=layout).requires_grad_()
    sides = {key: value.float().to(device) for key, value in epilogue_inputs((2, 3, 5, 4), 1, style=True).items()}
    del sides["x"]
    fused = tuple(side.requires_grad_(key != "noise") for key, side in sides.items())
    detached = tuple(side.detach() for side in fused)
    changes = torch.randn(6, 3, 5, 4, device=device).contiguous(memory_format=layout)
    last = x.detach().contiguous(memory_format=torch.channels_last)
    parts, factors = last.repeat(1, 4, 1, 1).contiguous(memory_format=torch.channels_last), torch.rand(2, 4, 2, 3)
    ones = torch.ones(3, device=device)
    kernel = binomial_kernel(2).to(device)
    return {
        "bias_act": [("bias_act", (x, ones.clone().requires_grad_(), 0.2, GAIN))],
        "modulated_epilogue": [
            ("modulated_epilogue", (x, *fused, 0.2, GAIN)),
            ("modulated_epilogue", (x, *fused[:-1], None, 0.2, GAIN)),
            ("modulated_epilogue_backward", (x.detach(), x.detach(), *detached, 0.2, GAIN)),
        ],
        "upfirdn2d": [("upfirdn2d", (x, kernel, 2, 1, 2, 1, 2, 1, True))],
        "box_resample": [("box_resample", (x, 3, 7, None, None)), ("box_resample", (x, 7, 3, ones, ones))],
        "channel_perturb": [("channel_perturb", (last, parts, factors, factors))],
        "epilogue_difference": [
            ("epilogue_difference", (changes, x.detach(), detached[0], detached[-1], 0.2, GAIN)),
            ("epilogue_difference", (changes, x.detach(), None, None, 0.0, 1.0)),
            ("epilogue_difference_", (changes, x.detach(), detached[0], detached[-1], 0.2, GAIN)),
        ],
    }[operation]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", dispatch.OPERATIONS)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_opcheck_of_torch_passes(impl: str, operation: str, layout: str) -> None:
    device = device_of(impl, CASES.get(operation, CASES["bias_act"]))
    assert dispatch.unavailable(operation, impl) == ""
    for name, values in arguments(operation, device, LAYOUTS[layout]):
        torch.library.opcheck(getattr(torch.ops.deltaspace, name).default, values)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_torch_compile_takes_all_operations_in_one_graph(impl: str) -> None:
    device = device_of(impl, CASES["bias_act"])
    x = torch.randn(2, 3, 5, 4, device=device, requires_grad=True)
    sides = [side.float().to(device) for side in epilogue_inputs((2, 3, 5, 4), 1, style=True).values()][1:]
    kernel = binomial_kernel(2).to(device)

    def chain(x: Tensor) -> Tensor:
        y = modulated_epilogue(x, *sides)
        return box_resample(upfirdn2d(bias_act(y, sides[3]), kernel, up=2, pad=(2, 1)), 4, (0.1,) * 3, (0.5,) * 3)

    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), chain(x))
    cotangent = torch.randn(2, 3, 4, 4, device=device)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x), x, cotangent), torch.autograd.grad(chain(x), x, cotangent)
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_torch_compile_takes_epilogue_difference_with_and_without_a_gradient(impl: str) -> None:
    device_of(impl, CASES["epilogue_difference"])
    given = {key: x.float() for key, x in difference_inputs((2, 3, 5, 4), 3, "demod style").items()}
    compiled = torch.compile(epilogue_difference, fullgraph=True, backend="aot_eager")
    for graded in (False, True):
        given["x"].requires_grad_(graded)
        torch.testing.assert_close(compiled(**given), epilogue_difference(**given, impl="ref"))


def test_nan_and_inf_are_kept_in_bfloat16() -> None:
    device_of("cpp", CASES["bias_act"])
    x = torch.tensor([[math.nan, math.inf, -math.inf, 3e38, 1.0]]).bfloat16()
    found = bias_act(x, torch.zeros(5).bfloat16(), gain=2.0, impl="cpp")
    assert found[0, 0].isnan() and found[0, 1:4].tolist() == [math.inf, -math.inf, math.inf] and found[0, 4] == 2
    change = torch.zeros(1, 40, 1, 1).bfloat16()
    change[0, [3, 35]], change[0, [4, 36]] = math.nan, math.inf
    moved = epilogue_difference(change, torch.zeros(1, 40, 1, 1).bfloat16(), impl="cpp").flatten()
    assert moved[[3, 35]].isnan().all() and moved[[4, 36]].isinf().all() and moved.isfinite().sum() == 36
