"""Each operation against its definition written as plain loops, never against itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernels import build, difference
from kernels.accumulate import relevance_accumulate
from kernels.bias_act import GAIN, bias_act
from kernels.difference import epilogue_difference
from kernels.epilogue import modulated_epilogue
from kernels.perturb import channel_perturb
from kernels.relevance import relevance_mask
from kernels.resample import box_resample, box_weights
from kernels.upfirdn2d import binomial_kernel, upfirdn2d

CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], dict]] = {
    "bias_act": (bias_act, (torch.randn(2, 3, 5, 4), torch.randn(3)), {}),
    "upfirdn2d": (upfirdn2d, (torch.randn(1, 2, 5, 7), torch.randn(3, 3)), {}),
    "box_resample": (box_resample, (torch.randn(1, 2, 9, 7),), {"size": 4}),
    "relevance_mask": (relevance_mask, (torch.randn(2, 5), torch.randn(5, 3), torch.randn(3)), {"threshold": 0.1}),
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
    "relevance_accumulate": (
        relevance_accumulate,
        (torch.randn(3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4)),
        {"count": 5},
    ),
}
BOTH = pytest.mark.parametrize("impl", ["ref", "auto"])


def double(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


# ---------------------------------------------------------------- which implementation runs


def test_every_operation_has_a_call_here_and_a_line_in_the_doctors_table() -> None:
    assert set(CALLS) == set(build.OPERATIONS) == set(build.describe())
    for chosen, why in build.describe().values():
        assert chosen in build.IMPLEMENTATIONS and chosen != "auto" and (chosen != "ref" or why)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("impl", [impl for impl in build.IMPLEMENTATIONS if impl != "ref"])
def test_an_implementation_asked_for_by_name_runs_or_says_why_not(name: str, impl: str) -> None:
    operation, tensors, options = CALLS[name]
    expected = operation(*tensors, **options, impl="ref")
    reason = "" if impl == "auto" else build.unavailable(name, impl)
    if reason:
        with pytest.raises(build.KernelUnavailable) as refusal:
            operation(*tensors, **options, impl=impl)
        assert str(refusal.value) == reason
    else:
        torch.testing.assert_close(operation(*tensors, **options, impl=impl), expected)


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_implementation_is_refused_by_name(name: str) -> None:
    operation, tensors, options = CALLS[name]
    with pytest.raises(ValueError, match="unknown implementation 'cdua': one of auto, ref, cpp, cuda"):
        operation(*tensors, **options, impl="cdua")


@pytest.mark.parametrize("name", [name for name, (_, tensors, _) in CALLS.items() if len(tensors) > 1])
@pytest.mark.parametrize("impl", build.IMPLEMENTATIONS)
def test_tensors_on_two_devices_are_refused_whatever_is_asked_for(name: str, impl: str) -> None:
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
def test_bias_act_is_its_formula_with_channels_on_the_right_axis(impl, shape, axis, slope, gain) -> None:
    x, bias = double(*shape, grad=False), double(5, grad=False)
    expected = naive_bias_act(x.numpy(), bias.numpy(), axis, slope, gain)
    np.testing.assert_allclose(bias_act(x, bias, slope, gain, impl=impl).numpy(), expected, rtol=1e-12)


def test_the_default_gain_keeps_the_size_of_a_unit_normal_input() -> None:
    assert pytest.approx(math.sqrt(2)) == GAIN
    x = torch.randn(400, 100)
    assert bias_act(x, torch.zeros(100), slope=0.0).square().mean().item() == pytest.approx(1, abs=0.03)


def test_bias_act_of_another_memory_layout_is_the_same() -> None:
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
def test_upfirdn2d_is_the_loop_over_samples_and_taps(height, width, taps, up, down, pad, seed) -> None:
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


def test_doubling_a_flat_picture_keeps_it_flat_away_from_the_border() -> None:
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
def test_box_resample_is_the_published_resize_without_its_intermediate(impl: str, size: int, channels: int) -> None:
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
def test_the_shares_of_an_output_pixel_sum_to_one(source: int, target: int) -> None:
    weights = box_weights(source, target)
    assert weights.shape == (target, source) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(target))


def test_a_whole_factor_is_plain_average_pooling_and_the_same_size_changes_nothing() -> None:
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
def test_the_epilogue_is_its_formula_value_by_value(impl: str, noises: int, styled: bool) -> None:
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
def test_the_epilogue_refuses_side_inputs_that_do_not_fit(name: str) -> None:
    shapes = {"x": (2, 3, 5, 4), "demod": (2, 3), "noise": (1, 1, 5, 4), "weight": (1,), "bias": (3,), "style": (2, 3)}
    for wrong in ((3, 2), (2, 1, 4, 5), (2,)):
        tensors = {key: torch.randn(wrong if key == name else shape) for key, shape in shapes.items()}
        with pytest.raises(ValueError, match="do not fit activations"):
            modulated_epilogue(**tensors)


# ---------------------------------------------------------------- relevance_mask


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    dim=st.integers(1, 7),
    threshold=st.floats(0, 2),
    strength=st.floats(-3, 3),
    seed=st.integers(0, 99),
)
def test_relevance_mask_is_the_loop_over_channels(batch, channels, dim, threshold, strength, seed) -> None:
    rng = np.random.default_rng(seed)
    delta_s, relevance, delta_t = (rng.normal(size=shape) for shape in ((batch, channels), (channels, dim), (dim,)))
    expected = np.zeros_like(delta_s)
    for c in range(channels):
        if abs(sum(a * b for a, b in zip(relevance[c], delta_t))) >= threshold:
            expected[:, c] = strength * delta_s[:, c]
    found = relevance_mask(*map(torch.from_numpy, (delta_s, relevance, delta_t)), threshold, strength)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_a_channel_exactly_at_the_threshold_stays_in_and_one_just_below_goes() -> None:
    below = math.nextafter(0.5, 0)
    relevance = torch.tensor([[0.5, 9], [-0.5, 9], [below, 9], [-below, 9]], dtype=torch.float64)
    kept = relevance_mask(torch.ones(1, 4, dtype=torch.float64), relevance, torch.tensor([1.0, 0.0]).double(), 0.5)
    assert kept.tolist() == [[1, 1, 0, 0]]


def test_the_text_direction_is_not_normalised_so_no_difference_moves_nothing() -> None:
    delta_s, relevance, delta_t = torch.randn(3, 6), F.normalize(torch.randn(6, 4), dim=1), torch.randn(4)
    assert not relevance_mask(delta_s, relevance, torch.zeros(4), 1e-9).any()
    assert not relevance_mask(delta_s, relevance, 1e-6 * delta_t, 0.01).any()
    assert relevance_mask(delta_s, relevance, 1e6 * delta_t, 0.01).all()


def test_a_masked_channel_is_zero_even_where_its_change_is_not_finite() -> None:
    delta_s = torch.tensor([[math.inf, math.nan, 1.0]])
    masked = relevance_mask(delta_s, torch.tensor([[0.0], [0.0], [1.0]]), torch.ones(1), 0.5)
    assert masked.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(("matrix", "text"), [((5, 3), 4), ((4, 4), 4), ((4, 5), 4)])
def test_swapped_or_foreign_shapes_are_refused(matrix: tuple[int, int], text: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        relevance_mask(torch.randn(2, 5), torch.randn(*matrix), torch.randn(text), 0.1)


@pytest.mark.parametrize("top", [0, 1, 3, 6])
def test_the_top_channels_are_those_with_the_largest_products_of_either_sign(top: int) -> None:
    relevance, delta_t = torch.tensor([[1.0], [-6], [2], [-4], [5], [3]]), torch.tensor([2.0])
    kept = relevance_mask(torch.ones(2, 6), relevance, delta_t, strength=3.0, top=top)
    order = [1, 4, 3, 5, 2, 0][:top]
    assert kept.tolist() == [[3.0 if c in order else 0.0 for c in range(6)]] * 2


@pytest.mark.parametrize(("threshold", "top"), [(None, None), (0.5, 2), (None, -1), (None, 7)])
def test_the_mask_needs_either_a_threshold_or_a_possible_number_of_channels(threshold, top) -> None:
    with pytest.raises(ValueError, match="a threshold or a top of 0 to 6"):
        relevance_mask(torch.ones(2, 6), torch.ones(6, 1), torch.ones(1), threshold, top=top)


def test_gradients_of_the_mask_reach_the_kept_channels_only() -> None:
    relevance, delta_t = double(6, 3, grad=False), double(3, grad=False)
    delta_s = double(2, 6)
    assert torch.autograd.gradcheck(lambda v: relevance_mask(v, relevance, delta_t, 0.5, 1.7), (delta_s,))
    relevance_mask(delta_s, relevance, delta_t, 0.5, 1.7).sum().backward()
    kept = (relevance @ delta_t).abs() >= 0.5
    assert delta_s.grad is not None and torch.equal(delta_s.grad[0], 1.7 * kept.double())


# ---------------------------------------------------------------- epilogue_difference


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sides", ["", "demod", "style", "demod style"])
@BOTH
def test_the_difference_of_an_epilogue_is_its_formula_value_by_value(impl: str, sides: str, layout) -> None:
    rng = np.random.default_rng(4)
    x, base = rng.normal(size=(6, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    given = {name: rng.normal(size=(2, 3)) for name in sides.split()}
    demod, style = (given.get(name, np.ones((2, 3))) for name in ("demod", "style"))
    expected = np.empty_like(x)
    for b, c, i, j in itertools.product(*map(range, x.shape)):
        n, z = b // 3, base[b // 3, c, i, j]
        moved = z + demod[n, c] * x[b, c, i, j]
        before, after = (value if value > 0 else 0.1 * value for value in (z, moved))
        expected[b, c, i, j] = style[n, c] * 0.7 * (after - before)
    tensors = (torch.from_numpy(array).contiguous(memory_format=layout) for array in (x, base))
    factors = {name: torch.from_numpy(array) for name, array in given.items()}
    found = epilogue_difference(*tensors, **factors, slope=0.1, gain=0.7, impl=impl)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_difference_may_be_written_over_its_input(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(6, 16, 5, 4).to(dtype, memory_format=layout)
    sides = torch.randn(2, 16, 5, 4), torch.randn(2, 16), torch.randn(2, 16)
    expected, given = epilogue_difference(x, *sides), x.clone()
    found = epilogue_difference(given, *sides, overwrite=True)
    assert torch.equal(found, expected)
    if build.choose("epilogue_difference", "auto", x) != "ref":
        assert found.data_ptr() == given.data_ptr()


def test_a_difference_in_bfloat16_is_rounded_as_such_and_not_as_what_it_is_added_to() -> None:
    x, base = torch.full((1, 1, 2, 2), 2.0**-12).bfloat16(), torch.ones(1, 1, 2, 2).bfloat16()
    for impl in ("ref", "auto"):
        assert torch.equal(epilogue_difference(x, base, gain=1.0, impl=impl), x)  # 1 + x is 1 in bfloat16


def test_the_difference_of_an_epilogue_has_a_gradient_in_the_reference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = double(4, 2, 3, 3), double(2, 2, 3, 3), double(2, 2), double(2, 2)
    with torch.no_grad():
        torch.testing.assert_close(epilogue_difference(*sides), epilogue_difference(*sides, impl="ref"))
    monkeypatch.setattr(difference, "_native", lambda *_: pytest.fail("native code was run"))
    assert torch.autograd.gradcheck(epilogue_difference, sides)
    if not build.unavailable("epilogue_difference", "cpp"):
        with pytest.raises(ValueError, match="has no gradient: use impl='ref'"):
            epilogue_difference(*sides, impl="cpp")


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 2, 3, 3), (2, 2, 3, 3)),
        ((4, 3, 3, 3), (2, 2, 3, 3)),
        ((4, 2, 3), (2, 2, 3)),
        ((4, 2, 3, 3), (0, 2, 3, 3)),
        ((4, 2, 3, 3), (2, 2, 3, 3), (4, 2)),
        ((4, 2, 3, 3), (2, 2, 3, 3), (2, 2), (2,)),
    ],
)
def test_the_difference_of_an_epilogue_refuses_what_does_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="do not fit changes"):
        epilogue_difference(*map(torch.zeros, shapes))


# ---------------------------------------------------------------- channel_perturb


@BOTH
@pytest.mark.parametrize(
    ("n", "k", "v", "outputs", "h", "w"), [(2, 4, 3, 5, 6, 7), (1, 1, 1, 3, 1, 2), (3, 5, 2, 1, 4, 4)]
)
def test_channel_perturb_is_the_modulated_convolution_of_the_changed_style(
    n: int, k: int, v: int, outputs: int, h: int, w: int, impl: str
) -> None:
    """One channel at a time, the whole convolution with per-sample demodulated weights (StyleGAN2, eq. 1 to 3)."""
    rng = torch.Generator().manual_seed(3)
    channels = k + 2  # the first two are not changed
    x = torch.randn(n, channels, h, w, generator=rng, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, generator=rng, dtype=torch.float64)
    s = torch.randn(n, channels, generator=rng, dtype=torch.float64)
    values = torch.randn(k, v, generator=rng, dtype=torch.float64)
    raw = F.conv2d(x * s[..., None, None], weight, padding=1)
    parts = torch.stack([F.conv2d(x[:, c : c + 1], weight[:, c : c + 1], padding=1) for c in range(2, channels)], dim=1)
    share = weight.square().sum(dim=(2, 3)).T
    found = channel_perturb(raw, parts, s[:, 2:], values, s.square() @ share, share[2:], impl)
    assert found.shape == (n, k, v, outputs, h, w)
    before = raw / (s.square() @ share + 1e-8).sqrt()[..., None, None]
    for picture, channel, value in itertools.product(range(n), range(k), range(v)):
        style = s[picture].clone()
        style[2 + channel] = values[channel, value]
        kernel = weight * style[None, :, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = F.conv2d(x[picture : picture + 1], kernel, padding=1)[0] - before[picture]
        torch.testing.assert_close(found[picture, channel, value], expected, atol=1e-9, rtol=1e-9)


def test_channel_perturb_refuses_what_does_not_fit() -> None:
    _, tensors, _ = CALLS["channel_perturb"]
    for index in range(1, len(tensors)):
        wrong = [tensor[:, :-1] if i == index and i != 3 else tensor for i, tensor in enumerate(tensors)]
        wrong = [tensor[:-1] if i == index == 3 else tensor for i, tensor in enumerate(wrong)]
        with pytest.raises(ValueError, match="do not fit"):
            channel_perturb(*wrong)


# ---------------------------------------------------------------- relevance_accumulate


def test_relevance_accumulate_is_the_mean_over_pictures_however_they_come() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 7, 3, 4))
    after[2, 1] = before[2, 1] * 2  # the same direction: nothing changed
    expected = np.zeros((3, 4))
    for picture in range(7):
        for row in range(3):
            a, b = before[picture, row], after[picture, row]
            step = b / math.hypot(*b) - a / math.hypot(*a)
            expected[row] += 0 if (picture, row) == (2, 1) else step / math.hypot(*step) / 7
    mean, done = torch.zeros(3, 4, dtype=torch.float64), 0
    for size in (3, 1, 0, 3):
        block = slice(done, done + size)
        mean = relevance_accumulate(mean, torch.from_numpy(before[block]), torch.from_numpy(after[block]), done)
        done += size
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("rows", "width", "count"), [(3, 5, 0), (2, 4, 0), (3, 4, -1)])
def test_relevance_accumulate_refuses_what_does_not_fit(rows: int, width: int, count: int) -> None:
    before, after = torch.randn(2, 3, 4), torch.randn(2, 3, width)
    with pytest.raises(ValueError, match="do not fit"):
        relevance_accumulate(torch.randn(rows, 4), before, after, count)
