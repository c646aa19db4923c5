"""The e4e encoder: maps that rows read, stages of training, the average code."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.e4e import Encoder, StyleBlock

R, D, ROWS, SPLIT = 32, 12, 6, (2, 4)
WIDTHS = (6, 8, 10, 14)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(R, WIDTHS, ROWS, D, SPLIT).eval().requires_grad_(False)
    made.latent_avg.normal_()
    return made


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, R, R, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_image_gives_one_row_per_style_layer(encoder: Encoder, images: torch.Tensor) -> None:
    w_plus = encoder(images)
    assert w_plus.shape == (3, ROWS, D) and w_plus.dtype == torch.float32
    assert not torch.allclose(w_plus[0], w_plus[1])


def test_the_average_code_is_added_row_by_row(encoder: Encoder, images: torch.Tensor) -> None:
    w_plus, average = encoder(images), encoder.latent_avg.clone()
    encoder.latent_avg.zero_()
    torch.testing.assert_close(encoder(images) + average, w_plus)
    encoder.latent_avg.copy_(average)
    assert torch.equal(encoder.state_dict()["latent_avg"], average)  # it travels with the weights


@pytest.mark.parametrize("stage", [0, 1, 3, ROWS - 1, 99])
def test_rows_beyond_the_stage_are_the_first_row(encoder: Encoder, images: torch.Tensor, stage: int) -> None:
    differences = encoder(images, stage) - encoder.latent_avg
    whole = encoder(images) - encoder.latent_avg
    for row in range(ROWS):
        if row <= stage:
            torch.testing.assert_close(differences[:, row], whole[:, row])
        else:
            torch.testing.assert_close(differences[:, row], differences[:, 0])
    assert not torch.allclose(whole[:, -1], whole[:, 0])


def test_coarse_rows_read_the_smallest_map_and_fine_rows_the_largest(encoder: Encoder, images: torch.Tensor) -> None:
    seen: dict[int, int] = {}
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs, row=row: seen.update({row: inputs[0].shape[-1]}))
        for row, block in enumerate(encoder.styles)
    ]
    encoder(images)
    for hook in hooks:
        hook.remove()
    assert seen == {0: R // 16, 1: R // 16, 2: R // 8, 3: R // 8, 4: R // 4, 5: R // 4}


def test_an_own_offset_comes_from_its_own_style_block(encoder: Encoder, images: torch.Tensor) -> None:
    before = encoder(images)
    bias = encoder.styles[3].linear.bias  # type: ignore[union-attr]
    bias.add_(1)  # type: ignore[operator, union-attr]
    changed = [row for row in range(ROWS) if not torch.equal(encoder(images)[:, row], before[:, row])]
    bias.sub_(1)  # type: ignore[operator, union-attr]
    assert changed == [3]


def test_results_are_independent_of_the_batch(encoder: Encoder, images: torch.Tensor) -> None:
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(alone, encoder(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_a_style_block_reduces_a_map_of_any_size_to_one_row(size: int) -> None:
    block = StyleBlock(5, D, size)
    assert block(torch.randn(2, 5, size, size)).shape == (2, D)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in block.convs) == size.bit_length() - 1


def test_every_parameter_has_a_gradient(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    fresh = Encoder(R, WIDTHS, ROWS, D, SPLIT)
    (fresh(images) * torch.randn(3, ROWS, D)).sum().backward()
    idle = [name for name, p in fresh.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_features_are_unit_vectors_per_pixel_at_three_scales() -> None:
    network = Encoder(R, WIDTHS, ROWS, D, SPLIT).eval()
    with torch.no_grad():
        maps = network.features(torch.rand(2, 3, R, R))
    assert [tuple(m.shape[2:]) for m in maps] == [(R // 2, R // 2), (R // 4, R // 4), (R // 8, R // 8)]
    for found in maps:
        length = found.norm(dim=1)
        assert torch.allclose(length[length > 0], torch.ones(()), atol=1e-5)


def test_neighbouring_widths_may_be_equal() -> None:
    same = Encoder(R, (8, 8, 8, 8), ROWS, D, SPLIT).eval()
    with torch.no_grad():
        assert same(torch.zeros(2, 3, R, R)).shape == (2, ROWS, D)
