"""DeltaEdit-GP: which strength is enough, where a change counts, and how it is laid onto a photograph."""

from __future__ import annotations

from dataclasses import replace

import edited_world
import pytest
import torch
from edited_world import PEOPLE, PROMPT, settings_of
from torch.nn import functional as F

from pipeline import editors
from pipeline.editors.deltaedit_gp import DeltaEditGP, onto, weakest, where
from pipeline.networks import Backbones
from pipeline.values import Source

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures


def made(world: Backbones, **settings: object) -> DeltaEditGP:
    return DeltaEditGP(world, replace(settings_of("deltaedit_gp", world), **settings))


def test_the_weakest_strength_that_goes_nearly_as_far_is_enough() -> None:
    ways = torch.tensor([[0.1, 0.96, 0.5], [0.5, 1.0, 0.9], [1.0, 0.7, 1.0]])  # of three people, by rising strengths
    assert weakest(ways, 0.95).tolist() == [2, 0, 2]
    assert weakest(ways, 0.5).tolist() == [1, 0, 0]
    assert weakest(ways, 1.0).tolist() == [2, 1, 2]


@pytest.mark.parametrize("enough", [0.95, 1.0])
def test_where_no_strength_goes_along_the_text_the_weakest_is_taken(enough: float) -> None:
    assert weakest(torch.tensor([[-0.3, 0.0], [-0.1, 0.0]]), enough).tolist() == [0, 0]


def test_what_the_inversion_lost_stays_where_nothing_changes_and_goes_where_much_does() -> None:
    photo, unedited = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    edited = unedited.clone()
    edited[:, 0, :, 40:] += 10.0
    laid = onto(photo, unedited, edited, fade=0.5)
    assert torch.equal(laid[..., :38], photo[..., :38])
    torch.testing.assert_close(laid[..., 42:], edited[..., 42:])


@pytest.mark.parametrize(("size", "near"), [(16, 1), (64, 1), (256, 4)])
def test_a_change_counts_a_sixty_fourth_of_the_picture_around_itself(size: int, near: int) -> None:
    photo, unedited = torch.ones(1, 3, size, size), torch.zeros(1, 3, size, size)
    edited = unedited.clone()
    edited[..., size // 2, size // 2] = 50.0
    touched = (onto(photo, unedited, edited, fade=0.1)[0, 0] < 0.999).nonzero()
    assert (touched.amax(0) - touched.amin(0)).tolist() == [2 * near, 2 * near]


def quarters(images: torch.Tensor) -> torch.Tensor:
    """A way that the upper left quarter of a picture goes far along, the upper right less, and no other: [B]."""
    half = images.shape[-1] // 2
    return images[:, :, :half, :half].mean((1, 2, 3)) + 0.1 * images[:, :, :half, half:].mean((1, 2, 3))


@pytest.mark.parametrize("size", [16, 64, 100])
@pytest.mark.parametrize(("part", "right"), [(0.8, False), (0.99, True)])
def test_only_the_places_that_make_up_the_way_change(size: int, part: float, right: bool) -> None:
    mask, half = where(quarters, torch.zeros(2, 3, size, size), torch.ones(2, 3, size, size), part), size // 2
    assert mask.shape == (2, 1, size, size) and mask.min() >= 0 and mask.max() <= 1
    near = max(1, round(0.3 * size))  # what is next to a place that counts goes with it, and edges are soft
    assert (mask[..., : half - near, : half - near] == 1).all()
    assert (mask[..., : half - near, half + near :] == 1).all() if right else not mask[..., half + near :].any()
    assert not mask[..., half + near :, :].any()


def test_a_place_that_counts_changes_with_its_neighbours_and_one_that_leads_back_does_not() -> None:
    def way(images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 4, 4] + 0.5 * images[:, 0, 4, 5] - 3 * images[:, 0, 12, 12]

    photo = torch.zeros(1, 3, 16, 16)  # a place is a pixel
    (one,), (two,) = (where(way, photo, torch.ones_like(photo), part) for part in (0.6, 0.9))
    ring = torch.full((7, 7), 0.0)
    ring[1:-1, 1:-1] = torch.tensor([1, 2, 3, 2, 1])[:, None] * torch.tensor([1, 2, 3, 2, 1]) / 9
    torch.testing.assert_close(one[0, 1:8, 1:8], ring)
    assert one.count_nonzero() == 25 and two[0, 4, 7] == pytest.approx(1 / 3)
    assert not two[0, 10:].any()


def test_what_no_screen_shows_earns_no_credit() -> None:
    photo, edited = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    edited[..., 4, 4], edited[..., 12, 12] = 9.0, 0.9  # shown, 1 and .9
    mask = where(lambda images: images[:, 0].sum((1, 2)), photo, edited, 0.9)
    assert mask[0, 0, 4, 4] == 1 and mask[0, 0, 12, 12] == 1


@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_at_other_strengths_the_places_that_were_found_change(
    world: Backbones, source: Source, strength: float
) -> None:
    editor = made(world, threshold=0.0, places=0.5)
    found, other = (editor.edit(source, editor.fit(PROMPT), amount) for amount in (1.0, strength))
    assert found.mask is not None and other.mask is not None and torch.equal(found.mask, other.mask)
    assert found.s is not None and other.s is not None
    outside = (found.mask == 0).expand_as(source.image)
    assert outside.any() and torch.equal(other.images[outside], source.image[outside])
    assert not torch.equal(other.images, found.images)


def test_places_are_credited_all_along_the_way_and_not_at_its_end() -> None:
    def soon_there(images: torch.Tensor) -> torch.Tensor:  # flat where the edit ends
        return 1 - (images[:, :, :, :32].mean((1, 2, 3)) - 1) ** 2 + 0.05 * images[:, :, :, 32:].mean((1, 2, 3))

    mask = where(soon_there, torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), 0.9)
    assert (mask[..., :26] == 1).all() and not mask[..., 46:].any()


def test_where_no_place_comes_nearer_the_text_the_photograph_stays() -> None:
    photo, edited = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    assert not where(lambda images: -(images - photo).square().mean((1, 2, 3)), photo, edited, 1.0).any()


def test_an_edit_is_the_photograph_outside_its_mask(world: Backbones, source: Source) -> None:
    everywhere, some = (made(world, threshold=0.0, places=places) for places in (None, 0.3))
    free, found = (editor.edit(source, editor.fit(PROMPT), 1.0) for editor in (everywhere, some))
    assert free.mask is None and found.mask is not None
    assert (found.mask == 0).any() and (found.mask > 0).any()
    torch.testing.assert_close(found.images, torch.lerp(source.image, free.images, found.mask))
    outside = (found.mask == 0).expand_as(source.image)
    assert torch.equal(found.images[outside], source.image[outside])


def test_a_mask_does_not_depend_on_who_else_is_edited(world: Backbones, source: Source) -> None:
    editor = made(world, threshold=0.0)
    together, alone = (editor.edit(people, editor.fit(PROMPT), 1.0).mask for people in (source, source.select([3])))
    assert together is not None and alone is not None
    torch.testing.assert_close(together[3:4], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("places", [0.0, 1.1])
def test_a_part_of_the_way_that_is_none_is_refused(world: Backbones, places: float) -> None:
    with pytest.raises(ValueError, match=f"places is {places}"):
        made(world, places=places)


def test_each_person_is_moved_by_the_strength_that_was_found_for_them(world: Backbones, source: Source) -> None:
    tries = (0.5, 1.0, 4.0)
    whole = {"threshold": 0.0, "agree": False, "share": None, "within": None, "ridge": None}
    editor = made(world, tries=tries, enough=1.0, fade=0.5, **whole)
    direction = editor.fit(PROMPT)  # in another direction people of a random CLIP differ in what is enough
    direction = replace(direction, delta=torch.randn(len(direction.delta), generator=torch.Generator().manual_seed(3)))
    known = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(1.0, 0.0, False))
    unedited = known.edit(source, direction, 0.0).images
    ways, codes = [], []
    for strength in tries:
        tried = known.edit(source, direction, strength)
        laid = onto(source.image, unedited, tried.images, editor.params.fade).clamp(-1, 1)
        with torch.no_grad():
            after = F.normalize(world.clip.embed_images(laid), dim=1)
        ways.append((after - F.normalize(source.clip, dim=1)) @ direction.delta)
        codes.append(tried.s)
    chosen = weakest(torch.stack(ways), editor.params.enough)
    assert len(set(chosen.tolist())) > 1
    found = editor.edit(source, direction, 1.0)
    assert found.s is not None and found.evaluations == 4
    torch.testing.assert_close(found.s, torch.stack(codes)[chosen, torch.arange(PEOPLE)])
    assert found.enough is not None and found.enough.tolist() == [tries[k] for k in chosen]
    half = editor.edit(source, direction, 0.5)
    assert half.s is not None
    torch.testing.assert_close(half.s - source.s, (found.s - source.s) / 2)


@pytest.mark.parametrize(("strength", "drawn"), [(1.0, 3), (0.5, 4)])
def test_who_is_not_edited_is_drawn_once_and_what_was_tried_not_again(
    world: Backbones, source: Source, strength: float, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, draw, seen = made(world, tries=(0.5, 1.0, 1.5)), world.generator.synthesis, []
    direction = editor.fit(PROMPT)

    def watched(s: torch.Tensor, w_plus: torch.Tensor) -> torch.Tensor:
        seen.append(torch.equal(s, source.s))
        return draw(s, w_plus)

    monkeypatch.setattr(world.generator, "synthesis", watched)
    edits = [editor.edit(source, direction, strength) for _ in range(2)]
    assert sum(seen) == 1 and len(seen) == 1 + 2 * drawn
    assert torch.equal(edits[0].images, edits[1].images)
    assert [edited.evaluations for edited in edits] == [1 + drawn] * 2


def test_what_was_tried_is_what_would_be_drawn(world: Backbones, source: Source) -> None:
    editor = made(world, threshold=0.0, agree=False)
    found, other = (editor.edit(source, editor.fit(PROMPT), strength) for strength in (1.0, 1 - 1e-6))
    torch.testing.assert_close(found.images, other.images, atol=1e-3, rtol=0)
    assert found.s is not None and other.s is not None
    torch.testing.assert_close(found.s, other.s, atol=1e-3, rtol=0)


def test_a_photograph_that_is_not_edited_comes_back_as_it_is(world: Backbones, source: Source) -> None:
    editor = made(world)
    assert torch.equal(editor.edit(source, editor.fit(PROMPT), 0.0).images, source.image)


def test_no_channel_is_taken_further_out_than_asked(world: Backbones, source: Source) -> None:
    editor = made(world, within=1.0, threshold=0.0, tries=(20.0,))
    moved = editor.edit(source, editor.fit(PROMPT), 1.0).s
    assert moved is not None
    lowest = torch.minimum(source.s, world.s_mean - world.s_std)
    highest = torch.maximum(source.s, world.s_mean + world.s_std)
    torch.testing.assert_close(moved, moved.clamp(lowest, highest))
    assert (moved != source.s).any()


@pytest.mark.parametrize("settings", [{"tries": ()}, {"tries": (1.0, 0.5)}, {"tries": (0.0, 1.0)}, {"tries": (1, 1)}])
def test_strengths_to_try_must_rise_from_above_nothing(world: Backbones, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="strengths above 0 that rise"):
        made(world, **settings)


@pytest.mark.parametrize("settings", [{"enough": 0.0}, {"enough": 1.5}, {"fade": 0.0}])
def test_a_part_of_nothing_and_a_fade_of_nothing_are_refused(world: Backbones, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="enough above 0"):
        made(world, **settings)
