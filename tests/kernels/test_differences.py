"""The operations of the finite differences against their definitions, written as plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from kernel_calls import BOTH, CALLS, double
from torch.nn import functional as F

import kernels.epilogue_difference as difference_module
from kernels import dispatch
from kernels.channel_perturb import channel_perturb
from kernels.epilogue_difference import epilogue_difference

# ---------------------------------------------------------------- epilogue_difference


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sides", ["", "demod", "style", "demod style"])
@BOTH
def test_epilogue_difference_equals_its_formula(impl: str, sides: str, layout) -> None:
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
def test_epilogue_difference_can_overwrite_its_input(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(6, 16, 5, 4).to(dtype, memory_format=layout)
    sides = torch.randn(2, 16, 5, 4), torch.randn(2, 16), torch.randn(2, 16)
    expected, given = epilogue_difference(x, *sides), x.clone()
    found = epilogue_difference(given, *sides, overwrite=True)
    assert torch.equal(found, expected)
    if dispatch.choose("epilogue_difference", "auto", x) != "ref":
        assert found.data_ptr() == given.data_ptr()


def test_epilogue_difference_in_bfloat16_keeps_changes_below_the_rounding_of_its_base() -> None:
    x, base = torch.full((1, 1, 2, 2), 2.0**-12).bfloat16(), torch.ones(1, 1, 2, 2).bfloat16()
    for impl in ("ref", "auto"):
        assert torch.equal(epilogue_difference(x, base, gain=1.0, impl=impl), x)  # 1 + x is 1 in bfloat16


def test_epilogue_difference_has_a_gradient_in_the_reference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = double(4, 2, 3, 3), double(2, 2, 3, 3), double(2, 2), double(2, 2)
    with torch.no_grad():
        torch.testing.assert_close(epilogue_difference(*sides), epilogue_difference(*sides, impl="ref"))
    monkeypatch.setattr(difference_module, "_native", lambda *_: pytest.fail("native code was run"))
    assert torch.autograd.gradcheck(epilogue_difference, sides)
    if not dispatch.unavailable("epilogue_difference", "cpp"):
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
def test_epilogue_difference_refuses_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="do not fit changes"):
        epilogue_difference(*map(torch.zeros, shapes))


# ---------------------------------------------------------------- channel_perturb


@BOTH
@pytest.mark.parametrize(
    ("n", "k", "v", "outputs", "h", "w"), [(2, 4, 3, 5, 6, 7), (1, 1, 1, 3, 1, 2), (3, 5, 2, 1, 4, 4)]
)
def test_channel_perturb_equals_the_modulated_convolution_of_the_changed_style(
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
    weight_norm = weight.square().sum(dim=(2, 3)).T
    found = channel_perturb(raw, parts, s[:, 2:], values, s.square() @ weight_norm, weight_norm[2:], impl)
    assert found.shape == (n, k, v, outputs, h, w)
    before = raw / (s.square() @ weight_norm + 1e-8).sqrt()[..., None, None]
    for picture, channel, value in itertools.product(range(n), range(k), range(v)):
        style = s[picture].clone()
        style[2 + channel] = values[channel, value]
        kernel = weight * style[None, :, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = F.conv2d(x[picture : picture + 1], kernel, padding=1)[0] - before[picture]
        torch.testing.assert_close(found[picture, channel, value], expected, atol=1e-9, rtol=1e-9)


def test_channel_perturb_refuses_shapes_that_do_not_fit() -> None:
    _, tensors, _ = CALLS["channel_perturb"]
    for index in range(1, len(tensors)):
        wrong = [tensor[:, :-1] if i == index and i != 3 else tensor for i, tensor in enumerate(tensors)]
        wrong = [tensor[:-1] if i == index == 3 else tensor for i, tensor in enumerate(wrong)]
        with pytest.raises(ValueError, match="do not fit"):
            channel_perturb(*wrong)
