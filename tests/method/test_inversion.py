"""Inversion: the encoder's codes, and descent that lowers the error, stays near and treats every row independently."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline import inversion
from pipeline.models.stylegan2 import Generator

STEPS = 30


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(16, 12, {4: 16, 8: 12, 16: 10}, n_mlp=2, split=(2, 4)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def known(generator: Generator) -> tuple[Tensor, Tensor]:
    """Codes [5,L,D] and their images [5,3,16,16]."""
    w_plus = torch.randn(5, generator.num_ws, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return w_plus, generator(w_plus).clamp(-0.9, 0.9)


class StubEncoder:
    """Encoder that returns `code` of its images; its features are the pixels."""

    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        self.code = code

    def __call__(self, images: Tensor) -> Tensor:
        return self.code(images)

    def features(self, images: Tensor) -> list[Tensor]:
        return [torch.nn.functional.normalize(images.float(), dim=1)]


PIXELS = StubEncoder(lambda images: images)


def halfway(generator: Generator, w_plus: Tensor) -> Tensor:
    """Codes with 0.7 of the distance from the mean."""
    return generator.w_mean + 0.7 * (w_plus - generator.w_mean)


def test_the_inversion_error_is_the_mean_squared_error_on_0_to_1(generator: Generator, known) -> None:
    w_plus = known[0][:1]
    photos = known[1][:1].repeat(3, 1, 1, 1)
    found, error = inversion.invert(StubEncoder(lambda x: w_plus.expand(len(x), -1, -1)), generator, photos, 8)
    expected = ((generator(w_plus).clamp(-1, 1) - photos[:1]) / 2).square().mean()
    assert found.shape == (3, generator.num_ws, 12)
    assert torch.allclose(error, expected.expand(3), atol=1e-6)


def test_without_steps_the_encoders_codes_are_returned(generator: Generator, known) -> None:
    first = halfway(generator, known[0])
    assert inversion.refine(PIXELS, generator, known[1], first, 0) is first


def test_refinement_lowers_the_error_and_never_raises_it(generator: Generator, known) -> None:
    first = halfway(generator, known[0])
    before = inversion.errors(generator, known[1], first)
    for steps, gain in ((1, 1.0), (STEPS, 0.7)):
        after = inversion.errors(generator, known[1], inversion.refine(PIXELS, generator, known[1], first, steps))
        assert (after <= before).all() and after.mean() < gain * before.mean()


def test_refinement_stays_near_the_encoders_codes(generator: Generator, known) -> None:
    first = halfway(generator, known[0])
    unit = (first - generator.w_mean).square().mean(dim=(1, 2)).sqrt()
    for steps in (1, STEPS):
        moved = (inversion.refine(PIXELS, generator, known[1], first, steps) - first).square().mean(
            dim=(1, 2)
        ).sqrt() / unit
        assert (moved > 0).any() and (moved <= inversion.LEARNING_RATE * steps).all()


def test_refinement_of_a_row_does_not_depend_on_the_others(generator: Generator, known) -> None:
    def encode(images: Tensor) -> Tensor:
        return generator.w_mean + images.mean(dim=(2, 3)).repeat(1, 4)[:, None].expand(-1, generator.num_ws, -1)

    together, _ = inversion.invert(StubEncoder(encode), generator, known[1], 8, STEPS)
    others = known[1].clone()
    others[[0, 1, 3, 4]] = others[[1, 0, 4, 3]].flip(-1)
    apart, _ = inversion.invert(StubEncoder(encode), generator, others, 8, STEPS)
    assert torch.equal(together[2], apart[2]) and not torch.equal(together[0], apart[0])


def test_refinement_does_not_change_the_generator(generator: Generator, known) -> None:
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    inversion.refine(PIXELS, generator, known[1], halfway(generator, known[0]), 2)
    assert all(torch.equal(before[key], value) for key, value in generator.state_dict().items())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 steps"):
        inversion.InvertParams(8, -1, 0)
    with pytest.raises(ValueError, match="multiple of 8"):
        inversion.InvertParams(12, 0, 0)
    for size in (-8, 2, 12):
        with pytest.raises(ValueError, match=f"detail of {size} pixels"):
            inversion.InvertParams(8, 2, size)
