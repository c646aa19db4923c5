"""The operations that measure and apply relevance, against their definitions written as plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import BOTH, CALLS, double
from torch.nn import functional as F

import kernels.epilogue_difference as difference_module
from kernels import build
from kernels.channel_perturb import channel_perturb
from kernels.epilogue_difference import epilogue_difference
from kernels.relevance import relevance_mask
from pipeline.relevance_accumulate import relevance_accumulate

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
    monkeypatch.setattr(difference_module, "_native", lambda *_: pytest.fail("native code was run"))
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
