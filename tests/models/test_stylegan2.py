"""StyleGAN2 against published tables and against its formulas, restated in their grouped form."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.stylegan2 import Generator, ModulatedConv, build, pixel_norm

R, D = 32, 12
WIDTHS = {4: 10, 8: 9, 16: 8, 32: 7}
PUBLISHED = {  # size: keys, parameters, floats in noise and kernel buffers, S, channels of the toRGB layers
    1024: (171, 30_370_060, 2_796_432, 6048, 3040),
    512: (153, 30_276_583, 699_248, 5952, 3008),
    256: (135, 30_034_338, 174_928, 5760, 2944),
}
WIDTHS_1024 = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


@functools.cache
def published(size: int) -> Generator:
    return Generator(size, 512, {r: width for r, width in WIDTHS_1024.items() if r <= size})


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    made = Generator(R, D, WIDTHS, n_mlp=3).double().eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith(("noise.weight", "bias")):
            parameter.normal_(std=0.3).add_(1.0 if "modulation" in name else 0.0)
    made.w_mean.normal_()
    return made


def codes(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, 8, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the published files


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_published_numbers_of_keys_and_parameters(size: int) -> None:
    keys, parameters, buffers, s, rgb = PUBLISHED[size]
    generator = published(size)
    state, named = generator.state_dict(), dict(generator.named_parameters())
    assert len(state) == keys
    assert sum(tensor.numel() for tensor in named.values()) == parameters
    assert sum(state[name].numel() for name in set(state) - set(named)) == buffers
    assert generator.layout.size == s
    assert sum(state[name].shape[0] for name in state if "rgb" in name and name.endswith("modulation.bias")) == rgb
    assert generator.num_ws == 2 * math.log2(size) - 2


def key_table(size: int) -> dict[str, tuple[int, ...]]:
    """Every key of a published checkpoint and its shape."""
    table: dict[str, tuple[int, ...]] = {"input.input": (1, 512, 4, 4)}
    for i in range(1, 9):
        table |= {f"style.{i}.weight": (512, 512), f"style.{i}.bias": (512,)}

    def convolution(name: str, inputs: int, outputs: int, taps: int) -> None:
        table[f"{name}.conv.weight"] = (1, outputs, inputs, taps, taps)
        table[f"{name}.conv.modulation.weight"] = (inputs, 512)
        table[f"{name}.conv.modulation.bias"] = (inputs,)
        if taps == 1:
            table[f"{name}.bias"] = (1, 3, 1, 1)
        else:
            table[f"{name}.noise.weight"] = (1,)
            table[f"{name}.activate.bias"] = (outputs,)

    convolution("conv1", 512, 512, 3)
    convolution("to_rgb1", 512, 3, 1)
    table["noises.noise_0"] = (1, 1, 4, 4)
    for k in range(int(math.log2(size)) - 2):
        below, resolution = 2 ** (k + 2), 2 ** (k + 3)
        convolution(f"convs.{2 * k}", WIDTHS_1024[below], WIDTHS_1024[resolution], 3)
        convolution(f"convs.{2 * k + 1}", WIDTHS_1024[resolution], WIDTHS_1024[resolution], 3)
        convolution(f"to_rgbs.{k}", WIDTHS_1024[resolution], 3, 1)
        table[f"convs.{2 * k}.conv.blur.kernel"] = table[f"to_rgbs.{k}.upsample.kernel"] = (4, 4)
        for i in (2 * k + 1, 2 * k + 2):
            table[f"noises.noise_{i}"] = (1, 1, resolution, resolution)
    return table


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_checkpoints_load_strictly_by_key_and_shape(size: int) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in published(size).state_dict().items()} == key_table(size)


def test_the_mean_w_is_not_among_the_keys() -> None:
    assert "w_mean" not in published(256).state_dict()
    assert "w_mean" in dict(published(256).named_buffers())


# ---------------------------------------------------------------- the formulas


def linear(state: dict[str, Tensor], name: str, x: Tensor, lr_mul: float = 1.0) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return x @ (weight * lr_mul / math.sqrt(weight.shape[1])).T + bias * lr_mul


def lrelu(x: Tensor) -> Tensor:
    return math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)


def blurred(x: Tensor) -> Tensor:
    """[B,C,H,W], filtered by (1,3,3,1) in both directions, four times as strong as a mean."""
    line = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 4
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, groups=x.shape[1])


def grouped(weight: Tensor, x: Tensor, s: Tensor, up: bool = False, demodulate: bool = True) -> Tensor:
    """Modulated convolution as the paper has it: every sample's own weights W' = scale * W * s, demodulated."""
    _, outputs, inputs, taps, _ = weight.shape
    own = weight / math.sqrt(inputs * taps**2) * s[:, None, :, None, None]
    if demodulate:
        own = own / (own.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    batch, joined = len(x), x.reshape(1, -1, *x.shape[2:])
    if up:
        flat = own.transpose(1, 2).reshape(batch * inputs, outputs, taps, taps)
        y = F.conv_transpose2d(joined, flat, stride=2, groups=batch)
        return blurred(F.pad(y.view(batch, outputs, *y.shape[2:]), (1, 1, 1, 1)))
    y = F.conv2d(joined, own.reshape(batch * outputs, inputs, taps, taps), padding=taps // 2, groups=batch)
    return y.view(batch, outputs, *y.shape[2:])


def enlarged(image: Tensor) -> Tensor:
    """Twice the size: zeros between the pixels, then the blur."""
    batch, channels, height, width = image.shape
    wide = torch.zeros(batch, channels, 2 * height, 2 * width, dtype=image.dtype)
    wide[:, :, ::2, ::2] = image
    return blurred(F.pad(wide, (2, 1, 2, 1)))


def picture(state: dict[str, Tensor], w_plus: Tensor) -> Tensor:
    """The whole synthesis from the key table alone: conv1 <- row 0, convs.k <- k+1, to_rgb1 <- 1, to_rgbs.k <- 2k+3."""

    def convolved(name: str, x: Tensor, row: int, noise: int, up: bool = False) -> Tensor:
        s = linear(state, f"{name}.conv.modulation", w_plus[:, row])
        y = grouped(state[f"{name}.conv.weight"], x, s, up)
        y = y + state[f"{name}.noise.weight"] * state[f"noises.noise_{noise}"]
        return lrelu(y + state[f"{name}.activate.bias"][:, None, None])

    def coloured(name: str, x: Tensor, row: int) -> Tensor:
        s = linear(state, f"{name}.conv.modulation", w_plus[:, row])
        return grouped(state[f"{name}.conv.weight"], x, s, demodulate=False) + state[f"{name}.bias"]

    x = convolved("conv1", state["input.input"].expand(len(w_plus), -1, -1, -1), 0, 0)
    image = coloured("to_rgb1", x, 1)
    for k in range(int(math.log2(R)) - 2):
        x = convolved(f"convs.{2 * k}", x, 2 * k + 1, 2 * k + 1, up=True)
        x = convolved(f"convs.{2 * k + 1}", x, 2 * k + 2, 2 * k + 2)
        image = enlarged(image) + coloured(f"to_rgbs.{k}", x, 2 * k + 3)
    return image


def test_an_image_equals_the_papers_computation_with_grouped_weights(generator: Generator) -> None:
    w_plus = codes()
    found = generator.synthesis(generator.styles(w_plus), w_plus)
    assert found.shape == (3, 3, R, R)
    torch.testing.assert_close(found, picture(generator.state_dict(), w_plus), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("taps", "up", "demodulate"), [(3, False, True), (3, True, True), (1, False, False)])
def test_scaling_activations_equals_scaling_weights(taps: int, up: bool, demodulate: bool) -> None:
    torch.manual_seed(2)
    conv = ModulatedConv(5, 6, taps, 4, up=up).double()
    x, s = torch.randn(3, 5, 7, 7, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    found = conv(x, s) * conv.demodulation(s)[:, :, None, None] if demodulate else conv(x, s)
    torch.testing.assert_close(found, grouped(conv.weight, x, s, up, demodulate))


def test_mapping_is_pixel_norm_and_activated_linear_layers_of_a_hundredth_of_the_rate(generator: Generator) -> None:
    z = torch.randn(5, D, dtype=torch.float64)
    x = z / (z.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    for i in (1, 2, 3):
        x = lrelu(linear(generator.state_dict(), f"style.{i}", x, lr_mul=0.01))
    torch.testing.assert_close(generator.mapping(z), x)
    torch.testing.assert_close(generator.mapping(7 * z), x)


def test_pixel_norm_runs_over_axis_1() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(pixel_norm(x).square().mean(dim=1), torch.ones(2, 5).double(), rtol=0, atol=1e-5)


def test_a_new_network_has_unit_styles_and_outputs_of_unit_size() -> None:
    torch.manual_seed(0)
    fresh = Generator(R, 64, dict.fromkeys((4, 8, 16, 32), 64), n_mlp=8)
    w = fresh.mapping(torch.randn(256, 64))
    assert 0.5 < w.std().item() < 1.5
    assert fresh.styles(fresh.repeat(torch.zeros(1, 64))).eq(1).all()


# ---------------------------------------------------------------- what reads what


def test_layer_k_of_s_reads_row_k_of_w_plus_alone(generator: Generator) -> None:
    w_plus = codes(1)
    s = generator.styles(w_plus)
    assert s.shape == (1, generator.layout.size) == (1, 10 + 10 + 9 + 9 + 8 + 8 + 7)
    for row in range(generator.num_ws):
        moved = w_plus.clone()
        moved[:, row] += 1
        changed = (generator.styles(moved) != s)[0].nonzero()[:, 0]
        expected = range(s.shape[1])[generator.layout.layer(row)] if row < len(generator.layout.dims) else []
        assert changed.tolist() == list(expected)


def test_to_rgb_layers_read_the_odd_rows_of_w_plus_and_never_s(generator: Generator) -> None:
    w_plus = codes(1)
    s = generator.styles(w_plus)
    image = generator.synthesis(s, w_plus)
    for row in range(generator.num_ws):
        moved = w_plus.clone()
        moved[:, row] += 1
        same = torch.equal(generator.synthesis(s, moved), image)
        assert same == (row % 2 == 0)
    edited = generator.synthesis(s + 0.5, w_plus)
    assert not torch.equal(edited, image)
    assert not torch.equal(edited, generator.synthesis(s + 0.5, w_plus + 0.5))


def test_every_channel_of_s_changes_the_image(generator: Generator) -> None:
    w_plus = codes(1)
    s = generator.styles(w_plus)
    image = generator.synthesis(s, w_plus)
    moved = generator.synthesis(s + torch.eye(s.shape[1], dtype=s.dtype), w_plus.expand(s.shape[1], -1, -1))
    assert ((moved - image).abs().amax(dim=(1, 2, 3)) > 1e-6).all()


def test_forward_is_synthesis_of_the_styles_with_the_fixed_noise(generator: Generator) -> None:
    w_plus = codes()
    first = generator(w_plus)
    assert torch.equal(first, generator.synthesis(generator.styles(w_plus), w_plus))
    assert torch.equal(first, generator(w_plus))
    assert torch.equal(first, generator(w_plus, list(generator.noises)))


def test_layers_run_one_by_one_give_the_image_of_fused_layers(generator: Generator) -> None:
    w_plus, layers = codes(16), len(generator.layout.dims)
    s = generator.styles(w_plus)

    def pictures(dtype: torch.dtype, *parts: range) -> Tensor:
        x, image = generator.input.input.to(dtype).expand(len(s), -1, -1, -1), None
        for part in parts:
            x, image = generator.run_layers(part, x, image, s, w_plus)
        assert image is not None
        return image.double()

    one_by_one, exact = [range(layer, layer + 1) for layer in range(layers)], generator.synthesis(s, w_plus)
    torch.testing.assert_close(pictures(torch.float64, *one_by_one), exact, atol=1e-6, rtol=0)  # toRGB's are float32
    rough, fused = ((pictures(torch.bfloat16, *parts) - exact).norm() for parts in (one_by_one, [range(layers)]))
    assert fused < 1.05 * rough


def test_random_noise_is_one_map_per_sample_and_layer(generator: Generator) -> None:
    noises = [noise.double() for noise in generator.random_noises(3)]
    assert [tuple(noise.shape) for noise in noises] == [(3, 1, r, r) for r in (4, 8, 8, 16, 16, 32, 32)]
    w_plus = codes(1).expand(3, -1, -1)
    images = generator(w_plus, noises)
    assert not torch.allclose(images[0], images[1])


def test_images_are_independent_of_the_batch(generator: Generator) -> None:
    w_plus = codes(4)
    together = generator(w_plus)
    alone = torch.cat([generator(w_plus[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_truncation_interpolates_towards_the_mean(generator: Generator) -> None:
    w = codes()[:, 0]
    torch.testing.assert_close(generator.truncate(w, 1.0), w)
    torch.testing.assert_close(generator.truncate(w, 0.0), generator.w_mean.expand_as(w))
    torch.testing.assert_close(generator.truncate(w, 0.7), 0.3 * generator.w_mean + 0.7 * w)
    assert generator.truncate(codes(), 0.5).shape == (3, 8, D)


def test_repeat_gives_the_same_w_in_every_row(generator: Generator) -> None:
    w = codes()[:, 0]
    repeated = generator.repeat(w)
    assert repeated.shape == (3, generator.num_ws, D)
    assert all(torch.equal(repeated[:, row], w) for row in range(generator.num_ws))


# ---------------------------------------------------------------- from plain numbers


def test_build_restores_the_network_and_its_level_split() -> None:
    numbers = {"size": R, "style_dim": D, "widths": {str(k): v for k, v in WIDTHS.items()}, "n_mlp": 2, "split": [1, 2]}
    made = build(numbers)
    assert made.layout.levels == {"coarse": slice(0, 10), "medium": slice(10, 20), "fine": slice(20, 61)}
    assert build({key: numbers[key] for key in ("size", "style_dim", "widths")}).layout.split == (3, 7)
    assert len([name for name in made.state_dict() if name.startswith("style.") and name.endswith("weight")]) == 2


@pytest.mark.parametrize("size", [4, 24, 100])
def test_a_size_that_is_not_a_power_of_two_of_at_least_8_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"resolution {size} is not a power of two"):
        Generator(size, D, dict.fromkeys((4, 8, 16, 32, 64), 8))
