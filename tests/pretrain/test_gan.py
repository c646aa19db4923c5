"""The generator's training: a network grown from one of half the size, and the discriminator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_trainings import GAN, D, R
from torch import Tensor
from torch.nn import functional as F

from kernels.upfirdn2d import binomial_kernel, upfirdn2d
from pipeline.models import stylegan2
from pretrain import generator as gan
from pretrain.discriminator import Discriminator, EqualConv

# ---------------------------------------------------------------- the generator's two sizes


def test_halving_leaves_out_the_largest_resolution_of_both_networks() -> None:
    half = gan.halved({**GAN, "widths": {"4": 8, "8": 7, "16": 6}})
    assert half == {**GAN, "size": 8, "widths": {4: 8, 8: 7}, "discriminator": {8: 6, 4: 9}}
    assert stylegan2.build(half).size == 8


def grown() -> tuple[Any, Any, stylegan2.Generator, Discriminator]:
    """Networks of half the size with random weights, and those grown from them."""
    torch.manual_seed(3)
    half = gan.halved(GAN)
    small, small_d = stylegan2.build(half), Discriminator(8, half["discriminator"])
    with torch.no_grad():
        for parameter in (*small.parameters(), *small_d.parameters()):
            parameter.add_(0.2 * torch.randn_like(parameter))
    whole, whole_d = stylegan2.build(GAN), Discriminator(R, GAN["discriminator"])
    gan.grow({"ema": small.state_dict(), "d": small_d.state_dict()}, whole, whole_d)
    return small, small_d, whole, whole_d


def test_a_grown_generator_starts_with_the_smaller_images_enlarged() -> None:
    small, _, whole, _ = grown()
    z = torch.randn(4, D)
    with torch.no_grad():
        w = whole.mapping(z)
        torch.testing.assert_close(w, small.mapping(z))
        enlarged = upfirdn2d(small(small.repeat(w)), binomial_kernel(2), up=2, pad=(2, 1))
        torch.testing.assert_close(whole(whole.repeat(w)), enlarged, atol=1e-5, rtol=1e-5)


def test_the_new_to_rgb_layer_of_a_grown_generator_gets_gradients() -> None:
    _, _, whole, _ = grown()
    (whole(whole.repeat(whole.mapping(torch.randn(2, D)))) * torch.randn(2, 3, R, R)).sum().backward()
    assert whole.to_rgbs[-1].conv.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]


def test_a_grown_discriminator_keeps_its_weights_for_half_the_size() -> None:
    _, small_d, _, whole_d = grown()
    x = torch.randn(4, 6, 8, 8)
    with torch.no_grad():
        for old, new in zip(small_d.blocks, whole_d.blocks[1:], strict=True):
            torch.testing.assert_close(new(x), old(x))
    for name in ("conv.weight", "linear.weight", "out.bias"):
        assert torch.equal(whole_d.state_dict()[name], small_d.state_dict()[name])
    assert whole_d.from_rgb.weight.shape[0] == 4


def test_mean_w_is_the_average_of_many_mapped_codes() -> None:
    torch.manual_seed(0)
    generator = stylegan2.build(GAN)
    with torch.no_grad():
        expected = generator.mapping(torch.randn(50_000, D)).mean(dim=0)
    torch.testing.assert_close(gan.mean_w(generator), expected, atol=0.06, rtol=0)
    assert torch.equal(gan.mean_w(generator), gan.mean_w(generator))


# ---------------------------------------------------------------- the discriminator


def test_the_discriminator_has_the_standard_deviation_of_a_group_as_a_channel() -> None:
    torch.manual_seed(0)
    net = Discriminator(R, GAN["discriminator"])
    seen: dict[str, Tensor] = {}
    net.conv.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    images = torch.randn(8, 3, R, R)
    assert net(images).shape == (8,)
    features = net.blocks(net.from_rgb(images))
    for i in range(8):  # 4 to a group: images i, i + 2, i + 4, i + 6
        group = features[[(i + 2 * k) % 8 for k in range(4)]]
        deviation = (group.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(seen["x"][i, -1], deviation.expand(4, 4))
    net(images[:1].expand(8, -1, -1, -1))
    assert seen["x"][:, -1].max() < 1e-3  # equal images


@pytest.mark.parametrize("taps", [1, 3])
def test_a_downsampling_convolution_is_a_blur_and_a_stride_of_two(taps: int) -> None:
    torch.manual_seed(0)
    conv = EqualConv(5, 6, taps, down=True, activate=False).double()
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    line = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    blur = torch.outer(line, line).expand(5, 1, 4, 4)
    pad = 1 if taps == 1 else 2
    blurred = F.conv2d(F.pad(x, (pad,) * 4), blur, groups=5)
    expected = F.conv2d(blurred, conv.weight / math.sqrt(5 * taps**2))[:, :, ::2, ::2]
    assert conv(x).shape == (2, 6, 4, 4)
    torch.testing.assert_close(conv(x), expected, atol=1e-6, rtol=1e-6)


def test_the_gradient_penalty_can_be_differentiated_again() -> None:
    net = Discriminator(R, GAN["discriminator"])
    images = torch.randn(4, 3, R, R, requires_grad=True)
    (slope,) = torch.autograd.grad(net(images).sum(), images, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for n, p in net.named_parameters() if "weight" in n)
