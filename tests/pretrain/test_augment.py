"""Adaptive augmentation: nothing at p = 0, the same kind of pictures above it, and p follows the discriminator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import augment as augmentation
from pretrain.augment import EVERY, MAX_P, RANGE, AdaptiveAugment, change_colour, change_geometry, mirrored


def pictures(count: int = 64, size: int = 16) -> Tensor:
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return F.avg_pool2d(F.pad(noise, (2, 2, 2, 2), mode="reflect"), 5, 1) * 2 - 1


def augment(p: float) -> AdaptiveAugment:
    found = AdaptiveAugment()
    found.p = p
    return found


def test_at_no_chance_nothing_is_done_and_nothing_drawn() -> None:
    images, before = pictures(), torch.get_rng_state()
    assert augment(0.0)(images) is images
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_keep_number_and_size_and_the_draw_is_the_seeds() -> None:
    images, before = pictures(), pictures()
    torch.manual_seed(3)
    changed = augment(0.8)(images)
    assert changed.shape == images.shape and changed.dtype == torch.float32 and torch.isfinite(changed).all()
    assert torch.equal(images, before)
    torch.manual_seed(3)
    assert torch.equal(augment(0.8)(images), changed)
    torch.manual_seed(4)
    assert not torch.equal(augment(0.8)(images), changed)


@pytest.mark.parametrize("change", [change_geometry, change_colour])
def test_as_many_pictures_change_as_the_chance_says_and_the_others_stay(change) -> None:
    images, untouched = pictures(400, 8), []
    for p in (0.02, 0.1, 0.5):
        torch.manual_seed(0)
        same = (change(images, p) - images).abs().amax(dim=(1, 2, 3)) < 1e-4
        untouched.append(same.float().mean().item())
    kinds = 6 if change is change_geometry else 4
    assert untouched[0] > (1 - 0.02) ** kinds - 0.05
    assert untouched[0] > untouched[1] > untouched[2]
    assert untouched[2] < 0.25


def test_moving_draws_nothing_from_outside_the_picture() -> None:
    torch.manual_seed(0)
    flat = torch.linspace(-1, 1, 200)[:, None, None, None].expand(-1, 3, 16, 16)
    torch.testing.assert_close(
        change_geometry(flat, 0.8), flat
    )  # what comes in at the border is a reflection, not black
    images = pictures()
    changed = change_geometry(images, 0.8)
    assert changed.max() <= images.max() + 1e-5 and changed.min() >= images.min() - 1e-5


def test_flips_quarter_turns_and_shifts_are_those_of_whole_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "SCALE", 0.0)
    monkeypatch.setattr(math, "sqrt", lambda _: 1.0)  # turns by any angle have no chance
    torch.manual_seed(0)
    values = pictures(1, 8).expand(200, -1, -1, -1)
    changed = change_geometry(values, 0.9)
    own = values[0].flatten()
    nearest = (changed.flatten()[:, None] - own).abs().amin(dim=1)
    assert nearest.max() < 1e-5  # every pixel is one of the picture: nothing was mixed
    ways = [torch.rot90(way, turn, (1, 2)) for way in (values[0], values[0].flip(-1)) for turn in range(4)]
    for way in ways:  # all eight ways to lay it down occur
        assert ((changed - way).abs().amax(dim=(1, 2, 3)) < 1e-5).any()


def test_what_is_changed_can_be_learnt_through() -> None:
    images = pictures(8).requires_grad_(True)
    torch.manual_seed(0)
    (augment(0.8)(images) * torch.randn(8, 3, 16, 16)).sum().backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_half_precision_around_it_moves_no_pixel() -> None:
    images = pictures(8)
    torch.manual_seed(0)
    expected = augment(0.5)(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(0.5)(images), expected)


def test_a_mirrored_picture_is_itself_or_its_mirror_image() -> None:
    torch.manual_seed(0)
    images = pictures(100)
    found = mirrored(images)
    kept, turned = (torch.tensor([torch.equal(a, b) for a, b in zip(found, way)]) for way in (images, images.flip(-1)))
    assert (kept ^ turned).all() and 30 < turned.sum() < 70


SURE, UNSURE = torch.full((10,), 2.0), torch.tensor([-1.0, 1.0] * 5)


def test_a_discriminator_too_sure_of_its_pictures_raises_the_chance_and_an_unsure_one_lowers_it() -> None:
    found = AdaptiveAugment()
    for _ in range(3 * EVERY):
        found.watch(SURE, 100)
    assert found.p == pytest.approx(3 * EVERY * 100 / RANGE)
    for _ in range(EVERY):
        found.watch(UNSURE, 100)
    assert found.p == pytest.approx(2 * EVERY * 100 / RANGE)


def test_the_chance_moves_only_every_few_batches() -> None:
    found = AdaptiveAugment()
    for _ in range(EVERY - 1):
        found.watch(SURE, 100)
    assert found.p == 0
    found.watch(SURE, 100)
    assert found.p > 0


def test_what_is_too_sure_begins_at_eight_of_ten_pictures() -> None:
    for right, expected in ((7, 0.0), (9, EVERY * 10 / RANGE)):  # mean signs .4 and .8 of ten
        found = AdaptiveAugment()
        for _ in range(EVERY):
            found.watch(torch.tensor([1.0] * right + [-1.0] * (10 - right)), 10)
        assert found.p == pytest.approx(expected)


def test_the_chance_stays_between_none_and_the_most_that_does_not_leak() -> None:
    found = AdaptiveAugment()
    for _ in range(3 * EVERY):
        found.watch(SURE, RANGE)
    assert found.p == MAX_P
    for _ in range(3 * EVERY):
        found.watch(UNSURE, RANGE)
    assert found.p == 0


def test_its_state_goes_on_in_the_middle_of_a_count() -> None:
    one, other = AdaptiveAugment(), AdaptiveAugment()
    for step in range(2 * EVERY + 1):
        one.watch(SURE if step % 3 else UNSURE, 100)
    other.load_state_dict(one.state_dict())
    for found in (one, other):
        for _ in range(EVERY - 1):
            found.watch(SURE, 100)
    assert one.state_dict() == other.state_dict() and one.p > 0
