"""DeltaEdit-GP: choice of the strength, region mask, and detail of the photograph."""

from __future__ import annotations

from dataclasses import replace

import edited_world
import pytest
import torch
from edited_world import PEOPLE, PROMPT, apply, settings_of
from torch.nn import functional as F

from pipeline import editors
from pipeline.editors._edit_direction import masked_direction
from pipeline.editors.deltaedit_gp import DeltaEditGP, region_mask, weakest, with_detail
from pipeline.networks import Networks
from pipeline.values import Source

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures


def editor_with(world: Networks, **settings: object) -> DeltaEditGP:
    return DeltaEditGP(world, replace(settings_of("deltaedit_gp", world), **settings))


def test_the_weakest_strength_with_a_share_of_the_best_progress_is_chosen() -> None:
    progress = torch.tensor([[0.1, 0.96, 0.5], [0.5, 1.0, 0.9], [1.0, 0.7, 1.0]])  # a row per strength
    assert weakest(progress, 0.95).tolist() == [2, 0, 2]
    assert weakest(progress, 0.5).tolist() == [1, 0, 0]
    assert weakest(progress, 1.0).tolist() == [2, 1, 2]


@pytest.mark.parametrize("share", [0.95, 1.0])
def test_without_any_progress_the_weakest_strength_is_chosen(share: float) -> None:
    assert weakest(torch.tensor([[-0.3, 0.0], [-0.1, 0.0]]), share).tolist() == [0, 0]


def test_detail_is_added_where_the_edit_is_small_only() -> None:
    photo, unedited = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    edited = unedited.clone()
    edited[:, 0, :, 40:] += 10.0
    result = with_detail(photo, unedited, edited, decay=0.5)
    assert torch.equal(result[..., :38], photo[..., :38])
    torch.testing.assert_close(result[..., 42:], edited[..., 42:])


@pytest.mark.parametrize(("size", "near"), [(16, 1), (64, 1), (256, 4)])
def test_changes_are_averaged_over_a_64th_of_the_image(size: int, near: int) -> None:
    photo, unedited = torch.ones(1, 3, size, size), torch.zeros(1, 3, size, size)
    edited = unedited.clone()
    edited[..., size // 2, size // 2] = 50.0
    touched = (with_detail(photo, unedited, edited, decay=0.1)[0, 0] < 0.999).nonzero()
    assert (touched.amax(0) - touched.amin(0)).tolist() == [2 * near, 2 * near]


def quarters(images: torch.Tensor) -> torch.Tensor:
    """Progress [B] to which the upper left quarter contributes most, the upper right less, the others nothing."""
    half = images.shape[-1] // 2
    return images[:, :, :half, :half].mean((1, 2, 3)) + 0.1 * images[:, :, :half, half:].mean((1, 2, 3))


@pytest.mark.parametrize("size", [16, 64, 100])
@pytest.mark.parametrize(("part", "right"), [(0.8, False), (0.99, True)])
def test_the_mask_has_the_regions_that_make_up_the_share(size: int, part: float, right: bool) -> None:
    mask, half = region_mask(quarters, torch.zeros(2, 3, size, size), torch.ones(2, 3, size, size), part), size // 2
    assert mask.shape == (2, 1, size, size) and mask.min() >= 0 and mask.max() <= 1
    near = max(1, round(0.3 * size))  # neighbours of chosen regions are inside too, and edges are soft
    assert (mask[..., : half - near, : half - near] == 1).all()
    assert (mask[..., : half - near, half + near :] == 1).all() if right else not mask[..., half + near :].any()
    assert not mask[..., half + near :, :].any()


def test_neighbours_of_chosen_regions_are_inside_and_regions_that_lead_back_are_not() -> None:
    def progress(images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 4, 4] + 0.5 * images[:, 0, 4, 5] - 3 * images[:, 0, 12, 12]

    photo = torch.zeros(1, 3, 16, 16)  # a region is a pixel
    (one,), (two,) = (region_mask(progress, photo, torch.ones_like(photo), part) for part in (0.6, 0.9))
    ring = torch.full((7, 7), 0.0)
    ring[1:-1, 1:-1] = torch.tensor([1, 2, 3, 2, 1])[:, None] * torch.tensor([1, 2, 3, 2, 1]) / 9
    torch.testing.assert_close(one[0, 1:8, 1:8], ring)
    assert one.count_nonzero() == 25 and two[0, 4, 7] == pytest.approx(1 / 3)
    assert not two[0, 10:].any()


def test_values_out_of_range_count_as_clamped() -> None:
    photo, edited = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    edited[..., 4, 4], edited[..., 12, 12] = 9.0, 0.9  # shown, 1 and .9
    mask = region_mask(lambda images: images[:, 0].sum((1, 2)), photo, edited, 0.9)
    assert mask[0, 0, 4, 4] == 1 and mask[0, 0, 12, 12] == 1


@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_the_mask_is_the_same_at_every_strength(world: Networks, source: Source, strength: float) -> None:
    editor = editor_with(world, threshold=0.0, region_share=0.5)
    result, other = (apply(editor, source, editor.fit(PROMPT), amount) for amount in (1.0, strength))
    assert result.mask is not None and other.mask is not None and torch.equal(result.mask, other.mask)
    assert result.s is not None and other.s is not None
    outside = (result.mask == 0).expand_as(source.image)
    assert outside.any() and torch.equal(other.images[outside], source.image[outside])
    assert not torch.equal(other.images, result.images)


def test_attribution_integrates_over_the_path_from_photo_to_edit() -> None:
    def saturating(images: torch.Tensor) -> torch.Tensor:  # flat where the edit ends
        return 1 - (images[:, :, :, :32].mean((1, 2, 3)) - 1) ** 2 + 0.05 * images[:, :, :, 32:].mean((1, 2, 3))

    mask = region_mask(saturating, torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), 0.9)
    assert (mask[..., :26] == 1).all() and not mask[..., 46:].any()


def test_the_mask_is_empty_where_no_region_makes_progress() -> None:
    photo, edited = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    assert not region_mask(lambda images: -(images - photo).square().mean((1, 2, 3)), photo, edited, 1.0).any()


def test_an_edit_is_the_photograph_outside_its_mask(world: Networks, source: Source) -> None:
    everywhere, some = (editor_with(world, threshold=0.0, region_share=share) for share in (None, 0.3))
    free, result = (apply(editor, source, editor.fit(PROMPT), 1.0) for editor in (everywhere, some))
    assert free.mask is None and result.mask is not None
    assert (result.mask == 0).any() and (result.mask > 0).any()
    torch.testing.assert_close(result.images, torch.lerp(source.image, free.images, result.mask))
    outside = (result.mask == 0).expand_as(source.image)
    assert torch.equal(result.images[outside], source.image[outside])


def test_a_mask_does_not_depend_on_the_batch(world: Networks, source: Source) -> None:
    editor = editor_with(world, threshold=0.0)
    together, alone = (apply(editor, images, editor.fit(PROMPT), 1.0).mask for images in (source, source.select([3])))
    assert together is not None and alone is not None
    torch.testing.assert_close(together[3:4], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_region_share_out_of_range_is_refused(world: Networks, share: float) -> None:
    with pytest.raises(ValueError, match=f"region_share is {share}"):
        editor_with(world, region_share=share)


def test_each_image_is_edited_with_its_own_strength(world: Networks, source: Source) -> None:
    strengths = (0.5, 1.0, 4.0)
    whole = {"threshold": 0.0, "same_sign": False, "top_share": None, "max_sigma": None, "delta_ridge": None}
    editor = editor_with(world, candidate_strengths=strengths, clip_progress=1.0, detail_decay=0.5, **whole)
    direction = editor.fit(PROMPT)  # along a random one the images differ in the strength they need
    delta = torch.randn(len(direction.delta), generator=torch.Generator().manual_seed(7))
    direction = masked_direction(world, replace(direction, delta=delta), editor.params)
    known = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(1.0, threshold=0.0))
    unedited = apply(known, source, direction, 0.0).images
    distances, codes = [], []
    for strength in strengths:
        tried = apply(known, source, direction, strength)
        images = with_detail(source.image, unedited, tried.images, editor.params.detail_decay).clamp(-1, 1)
        with torch.no_grad():
            after = F.normalize(world.clip.embed_images(images), dim=1)
        distances.append((after - F.normalize(source.clip, dim=1)) @ direction.delta)
        codes.append(tried.s)
    chosen = weakest(torch.stack(distances), editor.params.clip_progress)
    assert len(set(chosen.tolist())) > 1
    result = apply(editor, source, direction, 1.0)
    assert result.s is not None and result.evaluations == 4
    torch.testing.assert_close(result.s, torch.stack(codes)[chosen, torch.arange(PEOPLE)])
    assert result.strengths is not None and result.strengths.tolist() == [strengths[k] for k in chosen]
    half = apply(editor, source, direction, 0.5)
    assert half.s is not None
    torch.testing.assert_close(half.s - source.s, (result.s - source.s) / 2)


@pytest.mark.parametrize(("strength", "drawn"), [(1.0, 3), (0.5, 4)])
def test_unedited_images_are_drawn_once_and_no_candidate_twice(
    world: Networks, source: Source, strength: float, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, draw, seen = editor_with(world, candidate_strengths=(0.5, 1.0, 1.5)), world.generator.synthesis, []
    direction = editor.fit(PROMPT)

    def watched(s: torch.Tensor, w_plus: torch.Tensor) -> torch.Tensor:
        seen.append(torch.equal(s, source.s))
        return draw(s, w_plus)

    monkeypatch.setattr(world.generator, "synthesis", watched)
    prepared = editor.prepare(source)
    edits = [editor.edit(prepared, direction, strength) for _ in range(2)]
    assert sum(seen) == 1 and len(seen) == 1 + 2 * drawn
    assert torch.equal(edits[0].images, edits[1].images)
    assert [edited.evaluations for edited in edits] == [1 + drawn] * 2


def test_a_candidate_is_the_edit_of_its_strength(world: Networks, source: Source) -> None:
    editor = editor_with(world, threshold=0.0, same_sign=False)
    result, other = (apply(editor, source, editor.fit(PROMPT), strength) for strength in (1.0, 1 - 1e-6))
    torch.testing.assert_close(result.images, other.images, atol=1e-3, rtol=0)
    assert result.s is not None and other.s is not None
    torch.testing.assert_close(result.s, other.s, atol=1e-3, rtol=0)


def test_strength_0_is_the_photograph(world: Networks, source: Source) -> None:
    editor = editor_with(world)
    assert torch.equal(apply(editor, source, editor.fit(PROMPT), 0.0).images, source.image)


def test_channels_are_clamped_to_max_sigma(world: Networks, source: Source) -> None:
    editor = editor_with(world, max_sigma=1.0, threshold=0.0, candidate_strengths=(20.0,))
    moved = apply(editor, source, editor.fit(PROMPT), 1.0).s
    assert moved is not None
    lowest = torch.minimum(source.s, world.s_stats[0] - world.s_stats[1])
    highest = torch.maximum(source.s, world.s_stats[0] + world.s_stats[1])
    torch.testing.assert_close(moved, moved.clamp(lowest, highest))
    assert (moved != source.s).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"candidate_strengths": ()},
        {"candidate_strengths": (1.0, 0.5)},
        {"candidate_strengths": (0.0, 1.0)},
        {"candidate_strengths": (1, 1)},
    ],
)
def test_candidate_strengths_must_be_rising_and_positive(world: Networks, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="rising numbers above 0"):
        editor_with(world, **settings)


@pytest.mark.parametrize("settings", [{"clip_progress": 0.0}, {"clip_progress": 1.5}, {"detail_decay": 0.0}])
def test_settings_out_of_range_are_refused(world: Networks, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="clip_progress above 0"):
        editor_with(world, **settings)
