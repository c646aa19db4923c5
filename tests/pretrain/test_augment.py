"""Adaptive augmentation: none at p = 0, random changes above it, and p follows the discriminator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import augment as augmentation
from pretrain.augment import EVERY, MAX_P, RANGE, AdaptiveAugment, change_colour, change_geometry, mirrored


def smooth_noise(count: int = 64, size: int = 16) -> Tensor:
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return F.avg_pool2d(F.pad(noise, (2, 2, 2, 2), mode="reflect"), 5, 1) * 2 - 1


def augment(p: float) -> AdaptiveAugment:
    ada = AdaptiveAugment()
    ada.p = p
    return ada


def test_p_zero_returns_the_images_and_draws_no_random_number() -> None:
    images, before = smooth_noise(), torch.get_rng_state()
    assert augment(0.0)(images) is images
    assert torch.equal(torch.get_rng_state(), before)


def test_augmented_images_keep_their_shape_and_depend_on_the_seed() -> None:
    images, before = smooth_noise(), smooth_noise()
    torch.manual_seed(3)
    changed = augment(0.8)(images)
    assert changed.shape == images.shape and changed.dtype == torch.float32 and torch.isfinite(changed).all()
    assert torch.equal(images, before)
    torch.manual_seed(3)
    assert torch.equal(augment(0.8)(images), changed)
    torch.manual_seed(4)
    assert not torch.equal(augment(0.8)(images), changed)


@pytest.mark.parametrize("change", [change_geometry, change_colour])
def test_fraction_of_changed_images_follows_p(change) -> None:
    images, untouched = smooth_noise(400, 8), []
    for p in (0.02, 0.1, 0.5):
        torch.manual_seed(0)
        same = (change(images, p) - images).abs().amax(dim=(1, 2, 3)) < 1e-4
        untouched.append(same.float().mean().item())
    kinds = 6 if change is change_geometry else 4
    assert untouched[0] > (1 - 0.02) ** kinds - 0.05
    assert untouched[0] > untouched[1] > untouched[2]
    assert untouched[2] < 0.25


def test_geometry_reflects_at_the_border() -> None:
    torch.manual_seed(0)
    flat = torch.linspace(-1, 1, 200)[:, None, None, None].expand(-1, 3, 16, 16)
    torch.testing.assert_close(change_geometry(flat, 0.8), flat)  # no black border
    images = smooth_noise()
    changed = change_geometry(images, 0.8)
    assert changed.max() <= images.max() + 1e-5 and changed.min() >= images.min() - 1e-5


def test_flips_quarter_turns_and_shifts_move_whole_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "SCALE", 0.0)
    monkeypatch.setattr(math, "sqrt", lambda _: 1.0)  # no rotations by arbitrary angles
    torch.manual_seed(0)
    values = smooth_noise(1, 8).expand(200, -1, -1, -1)
    changed = change_geometry(values, 0.9)
    own = values[0].flatten()
    nearest = (changed.flatten()[:, None] - own).abs().amin(dim=1)
    assert nearest.max() < 1e-5  # every pixel is one of the image: no interpolation
    orientations = [torch.rot90(image, k, (1, 2)) for image in (values[0], values[0].flip(-1)) for k in range(4)]
    for view in orientations:  # all eight occur
        assert ((changed - view).abs().amax(dim=(1, 2, 3)) < 1e-5).any()


def test_augmentation_is_differentiable() -> None:
    images = smooth_noise(8).requires_grad_(True)
    torch.manual_seed(0)
    (augment(0.8)(images) * torch.randn(8, 3, 16, 16)).sum().backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_autocast_changes_no_pixel() -> None:
    images = smooth_noise(8)
    torch.manual_seed(0)
    expected = augment(0.5)(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(0.5)(images), expected)


def test_mirrored_flips_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = smooth_noise(100)
    flipped = mirrored(images)
    same, mirror = (
        torch.tensor([torch.equal(a, b) for a, b in zip(flipped, other)]) for other in (images, images.flip(-1))
    )
    assert (same ^ mirror).all() and 30 < mirror.sum() < 70


CONFIDENT, UNSURE = torch.full((10,), 2.0), torch.tensor([-1.0, 1.0] * 5)


def test_p_rises_for_a_confident_discriminator_and_falls_for_an_unsure_one() -> None:
    ada = AdaptiveAugment()
    for _ in range(3 * EVERY):
        ada.watch(CONFIDENT, 100)
    assert ada.p == pytest.approx(3 * EVERY * 100 / RANGE)
    for _ in range(EVERY):
        ada.watch(UNSURE, 100)
    assert ada.p == pytest.approx(2 * EVERY * 100 / RANGE)


def test_p_changes_only_every_few_batches() -> None:
    ada = AdaptiveAugment()
    for _ in range(EVERY - 1):
        ada.watch(CONFIDENT, 100)
    assert ada.p == 0
    ada.watch(CONFIDENT, 100)
    assert ada.p > 0


def test_target_confidence_is_eight_of_ten_images() -> None:
    for right, expected in ((7, 0.0), (9, EVERY * 10 / RANGE)):  # mean signs .4 and .8 of ten
        ada = AdaptiveAugment()
        for _ in range(EVERY):
            ada.watch(torch.tensor([1.0] * right + [-1.0] * (10 - right)), 10)
        assert ada.p == pytest.approx(expected)


def test_p_stays_between_zero_and_its_maximum() -> None:
    ada = AdaptiveAugment()
    for _ in range(3 * EVERY):
        ada.watch(CONFIDENT, RANGE)
    assert ada.p == MAX_P
    for _ in range(3 * EVERY):
        ada.watch(UNSURE, RANGE)
    assert ada.p == 0


def test_state_resumes_between_two_changes_of_p() -> None:
    one, other = AdaptiveAugment(), AdaptiveAugment()
    for step in range(2 * EVERY + 1):
        one.watch(CONFIDENT if step % 3 else UNSURE, 100)
    other.load_state_dict(one.state_dict())
    for ada in (one, other):
        for _ in range(EVERY - 1):
            ada.watch(CONFIDENT, 100)
    assert one.state_dict() == other.state_dict() and one.p > 0
