"""Each operation against its definition written as plain loops, never against itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import BOTH, CALLS, double
from torch import Tensor
from torch.nn import functional as F

from kernels import dispatch
from kernels.bias_act import GAIN, bias_act
from kernels.box_resample import box_resample, box_weights
from kernels.modulated_epilogue import modulated_epilogue
from kernels.upfirdn2d import binomial_kernel, upfirdn2d

# ---------------------------------------------------------------- which implementation runs


def test_every_operation_has_a_call_here_and_a_line_in_the_description() -> None:
    assert set(CALLS) == set(dispatch.OPERATIONS) == set(dispatch.describe())
    for chosen, why in dispatch.describe().values():
        assert chosen in dispatch.IMPLEMENTATIONS and chosen != "auto" and (chosen != "ref" or why)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("impl", [impl for impl in dispatch.IMPLEMENTATIONS if impl != "ref"])
def test_a_named_implementation_runs_or_raises_with_the_reason(name: str, impl: str) -> None:
    operation, tensors, options = CALLS[name]
    expected = operation(*tensors, **options, impl="ref")
    reason = "" if impl == "auto" else dispatch.unavailable(name, impl)
    if reason:
        with pytest.raises(dispatch.KernelUnavailable) as refusal:
            operation(*tensors, **options, impl=impl)
        assert str(refusal.value) == reason
    else:
        device = "cuda" if impl == "cuda" else "cpu"
        found = operation(*(tensor.to(device) for tensor in tensors), **options, impl=impl)
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_implementation_is_refused_by_name(name: str) -> None:
    operation, tensors, options = CALLS[name]
    with pytest.raises(ValueError, match="unknown implementation 'cdua': one of auto, ref, cpp, cuda"):
        operation(*tensors, **options, impl="cdua")


@pytest.mark.parametrize("name", [name for name, (_, tensors, _) in CALLS.items() if len(tensors) > 1])
@pytest.mark.parametrize("impl", dispatch.IMPLEMENTATIONS)
def test_tensors_on_two_devices_are_refused_by_every_implementation(name: str, impl: str) -> None:
    operation, (first, *others), options = CALLS[name]
    with pytest.raises(ValueError, match="several devices: cpu, meta"):
        operation(first, *(other.to("meta") for other in others), **options, impl=impl)


# ---------------------------------------------------------------- bias_act


def naive_bias_act(x: np.ndarray, bias: np.ndarray, axis: int, slope: float, gain: float) -> np.ndarray:
    result = np.empty_like(x)
    for index in itertools.product(*map(range, x.shape)):
        value = x[index] + bias[index[axis]]
        result[index] = gain * (value if value > 0 else slope * value)
    return result


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 5), 1), ((2, 3, 5), 2), ((5, 3, 5), 2), ((2, 5, 3, 7), 1), ((3, 5, 5, 5), 1), ((1, 5, 1, 1), 1)],
)
@pytest.mark.parametrize(("slope", "gain"), [(0.2, GAIN), (0.0, 1.0), (0.05, 0.7)])
@BOTH
def test_bias_act_equals_its_formula_with_channels_on_the_right_axis(impl, shape, axis, slope, gain) -> None:
    x, bias = double(*shape, grad=False), double(5, grad=False)
    expected = naive_bias_act(x.numpy(), bias.numpy(), axis, slope, gain)
    np.testing.assert_allclose(bias_act(x, bias, slope, gain, impl=impl).numpy(), expected, rtol=1e-12)


def test_the_default_gain_keeps_the_size_of_a_unit_normal_input() -> None:
    assert pytest.approx(math.sqrt(2)) == GAIN
    x = torch.randn(400, 100)
    assert bias_act(x, torch.zeros(100), slope=0.0).square().mean().item() == pytest.approx(1, abs=0.03)


def test_bias_act_is_independent_of_the_memory_layout() -> None:
    x, bias = torch.randn(2, 5, 3, 7), torch.randn(5)
    assert torch.equal(bias_act(x.contiguous(memory_format=torch.channels_last), bias), bias_act(x, bias))
    assert torch.equal(bias_act(x[:, :, ::2, ::3], bias), bias_act(x, bias)[:, :, ::2, ::3])


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 3, 4, 5), (5, 4), (5, 5, 4)])
def test_a_bias_of_other_channels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bias of 5 channels for an input of"):
        bias_act(torch.randn(*shape), torch.randn(5))


def test_gradients_of_bias_act_are_those_of_finite_differences() -> None:
    x, bias = double(2, 3, 3, 2), double(3)
    assert torch.autograd.gradcheck(bias_act, (x, bias))
    assert torch.autograd.gradgradcheck(bias_act, (x, bias))


# ---------------------------------------------------------------- upfirdn2d


def naive_upfirdn2d(x: np.ndarray, kernel: np.ndarray, up: int, down: int, pad: tuple[int, int]) -> np.ndarray:
    before, after = pad
    batch, channels, height, width = x.shape
    stuffed = np.zeros((batch, channels, height * up + before + after, width * up + before + after))
    for i, j in itertools.product(range(height), range(width)):
        stuffed[:, :, before + i * up, before + j * up] = x[:, :, i, j]
    rows, columns = (n - k + 1 for n, k in zip(stuffed.shape[2:], kernel.shape))
    result = np.zeros((batch, channels, -(-rows // down), -(-columns // down)))
    for i, j in itertools.product(range(result.shape[2]), range(result.shape[3])):
        for a, b in itertools.product(*map(range, kernel.shape)):  # a convolution: the kernel runs backwards
            tap = kernel[kernel.shape[0] - 1 - a, kernel.shape[1] - 1 - b]
            result[:, :, i, j] += tap * stuffed[:, :, i * down + a, j * down + b]
    return result


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    taps=st.integers(1, 4),
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 99),
)
def test_upfirdn2d_equals_a_loop_over_samples_and_taps(height, width, taps, up, down, pad, seed) -> None:
    if min(height, width) * up + sum(pad) < taps:
        return
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(2, 3, height, width)), rng.normal(size=(taps, taps))
    expected = naive_upfirdn2d(x, kernel, up, down, pad)
    for impl in ("ref", "auto"):
        found = upfirdn2d(torch.from_numpy(x), torch.from_numpy(kernel), up, down, pad, impl=impl)
        assert found.shape[2:] == tuple((n * up + sum(pad) - taps) // down + 1 for n in (height, width))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_the_blur_behind_a_transposed_convolution_gives_twice_the_size() -> None:
    assert upfirdn2d(torch.randn(1, 1, 17, 17), binomial_kernel(2), pad=(1, 1)).shape[2:] == (16, 16)
    assert upfirdn2d(torch.randn(1, 3, 8, 8), binomial_kernel(2), up=2, pad=(2, 1)).shape[2:] == (16, 16)


def test_upsampling_a_constant_image_keeps_it_constant_away_from_the_border() -> None:
    doubled = upfirdn2d(torch.full((1, 1, 8, 8), 0.7), binomial_kernel(2), up=2, pad=(2, 1))
    torch.testing.assert_close(doubled[:, :, 2:-2, 2:-2], torch.full((1, 1, 12, 12), 0.7))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_binomial_kernel_is_the_outer_product_of_1_3_3_1(factor: int) -> None:
    kernel = binomial_kernel(factor)
    expected = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 * factor**2
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-6)
    assert kernel.sum().item() == pytest.approx(factor**2)


def test_upfirdn2d_refuses_inputs_of_a_wrong_rank() -> None:
    for x, kernel in ((torch.randn(3, 4, 4), torch.randn(2, 2)), (torch.randn(1, 3, 4, 4), torch.randn(2))):
        with pytest.raises(ValueError, match="expected x"):
            upfirdn2d(x, kernel)


def test_gradients_of_upfirdn2d_are_those_of_finite_differences() -> None:
    x, kernel = double(1, 2, 4, 3), double(3, 3, grad=False)
    for up, down, pad in ((1, 1, (1, 1)), (2, 1, (2, 1)), (1, 2, (2, 2))):
        assert torch.autograd.gradcheck(lambda v, u=up, d=down, p=pad: upfirdn2d(v, kernel, u, d, p), (x,))
    assert torch.autograd.gradgradcheck(lambda v: upfirdn2d(v, kernel, 2, 1, (2, 1)), (x,))


# ---------------------------------------------------------------- box_resample


def published_resize(x: Tensor, size: int) -> Tensor:
    """Nearest x7, then an average of size/32 x size/32: what the released code feeds CLIP (224 pixels a side)."""
    bands = x.split(128, dim=2)  # the intermediate of 1024 pixels is 7168 x 7168
    return torch.cat([F.avg_pool2d(F.interpolate(band, scale_factor=7), size // 32) for band in bands], dim=2)


@pytest.mark.parametrize(("size", "channels"), [(256, 3), (512, 3), (1024, 1)])
@BOTH
def test_box_resample_equals_the_published_resize(impl: str, size: int, channels: int) -> None:
    x = torch.rand(1, channels, size, size, dtype=torch.float64) * 2 - 1
    found = box_resample(x, 224, impl=impl)
    assert (found - published_resize(x, size)).abs().max() < 1e-6
    assert (found - F.adaptive_avg_pool2d(x, 224)).abs().max() > 0.05  # that one rounds areas to whole pixels


def naive_box(line: np.ndarray, size: int) -> np.ndarray:
    """The mean of a staircase function over `size` equal intervals."""
    width, result = len(line) / size, np.zeros(size)
    for i in range(size):
        for j, value in enumerate(line):
            shared = min((i + 1) * width, j + 1) - max(i * width, j)
            result[i] += value * max(0.0, shared) / width
    return result


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 24), width=st.integers(1, 24), size=st.integers(1, 24), seed=st.integers(0, 99))
def test_box_resample_is_the_mean_of_the_area_below_for_any_sizes_up_and_down(height, width, size, seed) -> None:
    x = np.random.default_rng(seed).normal(size=(2, 1, height, width))
    rows = np.apply_along_axis(naive_box, 2, x, size)
    expected = np.apply_along_axis(naive_box, 3, rows, size)
    for impl in ("ref", "auto"):
        found = box_resample(torch.from_numpy(x), size, impl=impl)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
        assert found.mean().item() == pytest.approx(x.mean(), abs=1e-6)
        normal = box_resample(torch.from_numpy(x), size, (0.3,), (1.7,), impl=impl)
        np.testing.assert_allclose(normal.numpy(), (expected - 0.3) / 1.7, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(64, 96), (1023, 224), (7, 7), (5, 3), (1, 4)])
def test_the_weights_of_an_output_pixel_sum_to_one(source: int, target: int) -> None:
    weights = box_weights(source, target)
    assert weights.shape == (target, source) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(target))


def test_an_integer_factor_is_average_pooling_and_the_same_size_changes_nothing() -> None:
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(box_resample(x, 4), F.avg_pool2d(x, 3))
    assert torch.equal(box_resample(x, 12), x)


@pytest.mark.parametrize(("shape", "size"), [((3, 8, 8), 4), ((1, 3, 8, 8), 0)])
def test_box_resample_refuses_a_wrong_rank_or_size(shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(ValueError, match="a size >= 1"):
        box_resample(torch.randn(*shape), size)


def test_gradients_of_box_resample_are_those_of_finite_differences() -> None:
    for size in (3, 7):
        assert torch.autograd.gradcheck(lambda v, s=size: box_resample(v, s), (double(1, 2, 5, 4),))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), None), (None, (0.5,)), ((0.1,), (0.5,)), ((0.1,) * 3, (1.0,) * 2)])
def test_normalising_needs_a_mean_and_a_deviation_for_every_channel(mean, std) -> None:
    with pytest.raises(ValueError, match="a mean and a std for each of 3 channels"):
        box_resample(torch.randn(1, 3, 4, 4), 2, mean, std)


# ---------------------------------------------------------------- modulated_epilogue


@pytest.mark.parametrize("styled", [False, True])
@pytest.mark.parametrize("noises", [1, 3])
@BOTH
def test_the_epilogue_equals_its_formula(impl: str, noises: int, styled: bool) -> None:
    rng = np.random.default_rng(3)
    x, demod, noise, weight, bias, style = (
        rng.normal(size=shape) for shape in ((3, 2, 4, 5), (3, 2), (noises, 1, 4, 5), (1,), (2,), (3, 2))
    )
    expected = np.empty_like(x)
    for b, c, i, j in itertools.product(*map(range, x.shape)):
        z = x[b, c, i, j] * demod[b, c] + weight[0] * noise[b % noises, 0, i, j] + bias[c]
        expected[b, c, i, j] = 0.7 * (z if z > 0 else 0.1 * z) * (style[b, c] if styled else 1)
    sides = map(torch.from_numpy, (x, demod, noise, weight, bias, *([style] if styled else [])))
    found = modulated_epilogue(*sides, slope=0.1, gain=0.7, impl=impl)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["demod", "noise", "weight", "bias", "style"])
def test_the_epilogue_refuses_shapes_that_do_not_fit(name: str) -> None:
    shapes = {"x": (2, 3, 5, 4), "demod": (2, 3), "noise": (1, 1, 5, 4), "weight": (1,), "bias": (3,), "style": (2, 3)}
    for wrong in ((3, 2), (2, 1, 4, 5), (2,)):
        tensors = {key: torch.randn(wrong if key == name else shape) for key, shape in shapes.items()}
        with pytest.raises(ValueError, match="do not fit activations"):
            modulated_epilogue(**tensors)
