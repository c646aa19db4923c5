"""What single editors promise beyond the contract of all: each method's own arithmetic, on a small random world."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import edited_world
import pytest
import torch
from edited_world import PEOPLE, PROMPT, edited, editor_of, settings_of
from torch import Tensor
from torch.nn import functional as F

from pipeline import editors, portraits
from pipeline.editors import _edit_direction, styleclip_gd, styleclip_op
from pipeline.networks import Backbones
from pipeline.runtime.errors import InputError
from pipeline.storage import domains
from pipeline.values import Direction, ImagePair, Source, TextPair

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures


# ---------------------------------------------------------------- what only some promise


def test_deltaedit_moves_the_relevant_channels_by_the_mappers_answer(world: Backbones, source: Source) -> None:
    editor = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(strength=1.0, threshold=0.05))
    direction = editor.fit(PROMPT)
    result = editor.edit(source, direction, 1.5)
    told = torch.cat([F.normalize(source.clip, dim=1), F.normalize(direction.delta, dim=0).expand(PEOPLE, -1)], dim=1)
    with torch.no_grad():
        delta_s = world.mapper(source.s, told)
    kept = (world.relevance @ direction.delta).abs() >= 0.05
    assert 0 < kept.sum() < len(kept)
    assert result.s is not None
    torch.testing.assert_close(result.s, source.s + 1.5 * delta_s * kept)
    with torch.no_grad():  # colours come from the unedited w+
        torch.testing.assert_close(result.images, world.generator.synthesis(result.s, source.w_plus))


def test_a_global_direction_is_the_relevance_to_the_unit_text_in_sigmas_cut_at_beta(
    world: Backbones, source: Source
) -> None:
    settings = styleclip_gd.Params(strength=1.0, alpha=3.0, beta=0.1)
    editor = editors.load("styleclip_gd", world, settings)
    direction = editor.fit(PROMPT)
    relevance = world.relevance @ (direction.delta / direction.delta.norm())
    expected = torch.zeros_like(relevance)
    for c, value in enumerate(relevance.tolist()):
        if abs(value) >= 0.1:
            expected[c] = value / relevance.abs().max() * world.s_std[c]
    assert 0 < (expected == 0).sum() < len(expected)
    torch.testing.assert_close(direction.data["delta_s"], expected)
    result = editor.edit(source, direction, 0.5)
    assert result.s is not None
    torch.testing.assert_close(result.s, source.s + 0.5 * 3.0 * expected)


def test_a_beta_that_no_channel_reaches_changes_nothing(world: Backbones, source: Source) -> None:
    editor = editors.load("styleclip_gd", world, styleclip_gd.Params(strength=1.0, alpha=3.0, beta=1.1))
    result = editor.edit(source, editor.fit(PROMPT), 1.0)
    assert result.s is not None and torch.equal(result.s, source.s)


def test_the_counterfactual_is_the_same_person_drawn_again(world: Backbones, source: Source) -> None:
    result = edited("counterfactual", world, source, PROMPT, 1.0)
    assert source.people is not None and result.evaluations == 0
    for image, person in zip(result.images, source.people, strict=True):
        drawn = portraits.render(portraits.counterfactual(person, {"hair_color": "red"}), world.domain.resolution)
        assert torch.equal(((image + 1) * 127.5).round().byte(), torch.from_numpy(drawn).permute(2, 0, 1))


def test_the_counterfactual_of_what_a_person_has_is_the_person(world: Backbones, source: Source) -> None:
    assert source.people is not None
    for i, person in enumerate(source.people):
        has = TextPair("face", "face", {"hair_color": portraits.attributes(person)["hair_color"]})
        assert torch.equal(edited("counterfactual", world, source.select([i]), has, 1.0).images[0], source.image[i])


def test_the_counterfactual_refuses_what_it_cannot_know(world: Backbones, source: Source) -> None:
    editor = editor_of("counterfactual", world)
    with pytest.raises(InputError, match="needs a prompt of the domain"):
        editor.fit(TextPair("face", "face with red hair"))
    strangers = Source(source.image, source.w_plus, source.s, source.clip)
    with pytest.raises(InputError, match="whose parameters are known"):
        editor.edit(strangers, editor.fit(PROMPT), 1.0)
    for attribute, value, hint in (("hair_colour", "red", "hair_color"), ("hair_color", "rde", "red")):
        with pytest.raises(InputError, match=hint):
            editor.fit(TextPair("face", "red hair", {attribute: value}))


def test_what_the_mapper_moves_against_its_own_effect_can_stay(world: Backbones, source: Source) -> None:
    module = editors.module("deltaedit_g")
    published, agreeing = (
        editors.load("deltaedit_g", world, module.Params(1.0, 0.0, agree)) for agree in (False, True)
    )
    direction = published.fit(PROMPT)
    all_moves, kept = (editor.edit(source, direction, 1.0).s - source.s for editor in (published, agreeing))
    with_effect = all_moves * (world.relevance @ direction.delta) > 0
    assert with_effect.any() and not with_effect.all()
    torch.testing.assert_close(kept, torch.where(with_effect, all_moves, 0.0))


def test_the_most_relevant_channels_that_make_up_the_share_move_and_no_others() -> None:
    """Two people, whom the same channels take different ways along the text."""
    relevance = torch.tensor([0.1, -0.9, 0.5, 0.3])
    does = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 7.0, -5.0]])
    for share, first, second in (
        (0.3, [1], [1, 2]),
        (0.5, [1, 2], [1, 2]),
        (0.55, [1, 2, 3], [1, 2]),
        (1, [0, 1, 2, 3], [0, 1, 2, 3]),
    ):
        moved = _edit_direction.foremost(does, relevance, share)
        assert [row.nonzero().flatten().tolist() for row in moved] == [first, second], share
    assert not _edit_direction.foremost(torch.zeros(1, 4), relevance, 0.5).any()


@pytest.mark.parametrize("name", ["deltaedit_g", "deltaedit_gp", "deltaedit_gr", "deltaedit_d"])
def test_less_of_the_way_moves_fewer_channels_of_the_same_ones(name: str, world: Backbones, source: Source) -> None:
    moves = []
    for share in (0.3, 0.8, None):
        editor = remade(name, world, threshold=0.0, share=share)
        moves.append(editor.edit(source, editor.fit(PROMPT), 1.0).s != source.s)  # type: ignore[operator]
    few, more, every = moves
    assert (few <= more).all() and (more <= every).all() and 0 < few.sum() < more.sum() < every.sum()


@pytest.mark.parametrize("name", ["deltaedit_g", "deltaedit_gr", "deltaedit_d"])
def test_no_channel_is_taken_further_out_than_asked_unless_it_was_there_before(
    name: str, world: Backbones, source: Source
) -> None:
    far = replace(source, s=source.s + 6 * world.s_std * torch.tensor([[1.0], [0], [0], [0], [0]]))
    free, found = (
        (editor := remade(name, world, threshold=0.0, within=within)).edit(far, editor.fit(PROMPT), 40.0).s
        for within in (None, 1.5)
    )
    lowest = torch.minimum(far.s, world.s_mean - 1.5 * world.s_std)
    highest = torch.maximum(far.s, world.s_mean + 1.5 * world.s_std)
    torch.testing.assert_close(found, free.clamp(lowest, highest))
    assert (found != free).any() and (found[0] > world.s_mean + 1.6 * world.s_std).any()


def test_a_text_loses_what_no_style_channel_attains_and_little_else() -> None:
    torch.manual_seed(0)
    shown = torch.randn(3, 12)  # all that any channel does lies in three of twelve directions
    relevance, delta, other = torch.randn(50, 3) @ shown, torch.randn(3) @ shown, torch.randn(12)
    away = other - torch.linalg.lstsq(shown.T, other[:, None]).solution[:, 0] @ shown
    for ridge in (1e-6, 1e-4):
        found = _edit_direction.attainable(relevance, delta + away, ridge)
        torch.testing.assert_close(found, delta, rtol=0, atol=200 * ridge + 1e-4)
    assert _edit_direction.attainable(relevance, delta, 1.0).norm() < 0.95 * delta.norm()  # more takes from all
    both = _edit_direction.attainable(relevance, torch.stack([delta, away]), 0.1)
    torch.testing.assert_close(both[0], _edit_direction.attainable(relevance, delta, 0.1))
    assert both[1].norm() < 1e-3


@pytest.mark.parametrize("name", ["deltaedit_g", "deltaedit_gp", "deltaedit_gr", "deltaedit_d"])
def test_the_mapper_is_told_what_is_attainable_where_there_is_a_matrix(
    name: str, world: Backbones, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Tensor] = []
    monkeypatch.setattr(
        _edit_direction, "answered", lambda nets, people, delta: told.append(delta) or people.s * 0 + 0.1
    )
    monkeypatch.setattr(Backbones, "effect", lambda nets, delta: torch.ones(source.s.shape[1]))
    for nets in (world, Backbones(world.domain, world.root, without=("relevance",))):
        for ridge in (None, 0.1):
            editor = remade(name, nets, ridge=ridge)
            editor.edit(source, editor.fit(PROMPT), 1.0)
    published, ours, plain, without = told
    delta = world.direction_delta(PROMPT.source, PROMPT.target)
    for same in (published, plain, without):
        torch.testing.assert_close(same, delta)
    torch.testing.assert_close(ours, _edit_direction.attainable(world.relevance, delta, 0.1))
    assert F.cosine_similarity(ours, delta, dim=0) < 0.999


def test_a_width_a_share_or_a_ridge_of_nothing_is_refused(world: Backbones) -> None:
    for name in ("deltaedit_g", "deltaedit_gp", "deltaedit_gr", "deltaedit_d"):
        for share in (0.0, 1.1):
            with pytest.raises(ValueError, match=f"share is {share}"):
                remade(name, world, share=share)
        with pytest.raises(ValueError, match="within is 0"):
            remade(name, world, within=0.0)
        with pytest.raises(ValueError, match="ridge is 0"):
            remade(name, world, ridge=0.0)


def test_ours_moves_by_the_geometric_mean_of_mapper_and_direction_where_both_agree(
    world: Backbones, source: Source
) -> None:
    mapper = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(1.0, 0.0, False))
    direction = editors.load("styleclip_gd", world, styleclip_gd.Params(strength=1.0, alpha=2.0, beta=0.0))
    ours = editors.load("deltaedit_gr", world, editors.module("deltaedit_gr").Params(1.0, 2.0, 0.0))
    moves = [editor.edit(source, editor.fit(PROMPT), 1.0).s - source.s for editor in (mapper, direction, ours)]
    agree = moves[0] * moves[1] > 0
    expected = torch.where(agree, moves[0].sign() * (moves[0] * moves[1]).abs().sqrt(), 0.0)
    assert agree.any() and not agree.all()
    torch.testing.assert_close(moves[2], expected, atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- what the baselines of the paper promise


def remade(name: str, world: Backbones, **settings: Any) -> Any:
    """The editor with its own section of params.yaml, but for `settings`."""
    return editors.load(name, world, replace(settings_of(name, world), **settings))


def closeness(world: Backbones, images: Tensor, direction: Direction) -> Tensor:
    """Cosine [B] of pictures with the target itself."""
    target = world.clip.text_feature(PROMPT.target, tuple(world.domain.templates))
    assert "target" not in direction.data or torch.equal(direction.data["target"], target)
    return F.cosine_similarity(world.clip.embed_images(images), target[None])


def test_without_its_mask_deltaedit_moves_every_channel_by_the_mappers_answer(world: Backbones, source: Source) -> None:
    unmasked = edited("deltaedit_g_unmasked", world, source, PROMPT, 1.5)
    masked = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(1.0, threshold=0.0))
    expected = masked.edit(source, masked.fit(PROMPT), 1.5)
    assert unmasked.s is not None and torch.equal(unmasked.s, expected.s)


def test_in_w_plus_rows_are_moved_and_colours_follow(world: Backbones, source: Source) -> None:
    result = edited("deltaedit_g_wplus", world, source, PROMPT, 0.5)
    delta = world.direction_delta(PROMPT.source, PROMPT.target)
    told = torch.cat([F.normalize(source.clip, dim=1), F.normalize(delta, dim=0).expand(len(source.clip), -1)], dim=1)
    with torch.no_grad():
        w_plus = source.w_plus + 0.5 * world.mapper_wplus(source.w_plus.flatten(1), told).reshape(source.w_plus.shape)
        expected = world.generator(w_plus)
        layer_colours = world.generator.synthesis(world.generator.styles(w_plus), source.w_plus)
    torch.testing.assert_close(result.images, expected, atol=1e-4, rtol=1e-4)
    assert (result.images - layer_colours).abs().max() > 1e-3
    torch.testing.assert_close(result.s, world.generator.styles(w_plus), atol=1e-4, rtol=1e-4)


def test_the_clip_target_editor_puts_the_text_where_the_second_picture_was(
    world: Backbones, source: Source
) -> None:
    """With a picture as target it is told what the mapper was trained on; with a text, the way across the gap."""
    pair = ImagePair(source.image[:1], source.image[1:2])
    text = world.clip.text_feature(PROMPT.target, tuple(world.domain.templates))
    picture = F.normalize(source.clip[1], dim=0)
    source = source.select([0, 2, 3, 4])  # whoever is there already has no way to go
    own = F.normalize(source.clip, dim=1)
    for condition, end in ((pair, picture), (PROMPT, text)):
        told = torch.cat([own, F.normalize(end - own, dim=1, eps=1e-5)], dim=1)
        with torch.no_grad():
            expected = source.s + 0.5 * world.mapper(source.s, told)
        result = edited("clip_target", world, source, condition, 0.5)
        torch.testing.assert_close(result.s, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("space", ["w_plus", "s"])
def test_optimisation_brings_every_person_closer_to_the_text(space: str, world: Backbones, source: Source) -> None:
    editor = remade("styleclip_op", world, space=space, steps=10, l2=0.0)
    direction = editor.fit(PROMPT)
    still, found = (editor.edit(source, direction, strength) for strength in (0.0, 1.0))
    assert (closeness(world, found.images, direction) > closeness(world, still.images, direction)).all()
    assert (still.evaluations, found.evaluations) == (1, 11)
    with torch.no_grad():  # colours follow a step in w+, and not one in s
        unmoved = world.generator.synthesis(found.s, source.w_plus)
    assert torch.equal(unmoved, found.images) == (space == "s")


def test_the_price_of_leaving_a_code_holds_optimisation_back(world: Backbones, source: Source) -> None:
    far, near = (
        (editor.edit(source, editor.fit(PROMPT), 1.0).s - source.s).norm()
        for editor in (remade("styleclip_op", world, steps=10, l2=price) for price in (0.0, 1.0))
    )
    assert near < far / 2


def test_the_rate_of_the_optimisation_rises_in_a_line_and_falls_along_a_cosine() -> None:
    rates = [styleclip_op.ramp(done) for done in (0.0, 0.025, 0.05, 0.75, 0.875, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0], abs=1e-6)


def test_a_latent_mapper_learns_one_text_from_generated_people(world: Backbones, source: Source) -> None:
    before, after = (remade("styleclip_lm", world, steps=steps, l2=0.0, lr=0.1) for steps in (1, 30))
    direction = after.fit(PROMPT)
    images = [editor.edit(source, editor.fit(PROMPT), 1.0).images for editor in (before, after)]
    assert closeness(world, images[1], direction).mean() > closeness(world, images[0], direction).mean()
    network = after._network()
    coarse, medium = world.generator.layout.split
    assert network.rows == [coarse + 1, medium - coarse, world.generator.num_ws - medium - 1]
    with torch.no_grad():  # a row of w+ is moved by what stands in it alone
        w_plus = source.w_plus.clone()
        w_plus[:, 1] += 1
        changed = (network(w_plus) - network(source.w_plus)).abs().amax(dim=(0, 2)) > 0
    assert changed.tolist() == [row == 1 for row in range(world.generator.num_ws)]


def test_stylemc_finds_one_direction_of_the_middle_layers_that_leads_to_the_text(
    world: Backbones, source: Source
) -> None:
    editor = remade("stylemc", world, power=20.0)
    direction = editor.fit(PROMPT)
    delta_s = direction.data["delta_s"]
    first = world.generator.layout.dims[0]
    assert not delta_s[:first].any() and delta_s[first:].any()
    still, found = (editor.edit(source, direction, strength) for strength in (0.0, 1.0))
    assert found.s is not None
    torch.testing.assert_close(found.s, source.s + 20 * delta_s)
    assert closeness(world, found.images, direction).mean() > closeness(world, still.images, direction).mean()


def test_stylemc_leaves_out_channels_whose_slope_keeps_changing_its_sign(world: Backbones) -> None:
    settings = {"images": 24, "batch": 2, "lr": 0.0}
    assert not remade("stylemc", world, **settings).fit(PROMPT).data["delta_s"].any()
    found = remade("stylemc", world, **{**settings, "lr": 5.0}).fit(PROMPT).data["delta_s"]
    moved = found[world.generator.layout.dims[0] :] != 0
    assert moved.any() and not moved.all()


@pytest.mark.parametrize("name", ["styleclip_op", "styleclip_lm", "stylemc"])
def test_the_identity_term_uses_the_domains_network_where_there_is_one(
    name: str, project: Path, world: Backbones, source: Source, tmp_path: Path
) -> None:
    free, held = (remade(name, world, identity=weight) for weight in (0.0, 50.0))
    results = [editor.edit(source, editor.fit(PROMPT), 1.0).s for editor in (free, held)]
    assert not torch.equal(*results)
    shutil.copytree(project, tmp_path / "without")
    (tmp_path / "without/data/pretrained/tiny/identity.safetensors").unlink()
    without = Backbones(domains.load("tiny", tmp_path / "without"), tmp_path / "without")
    editor = editors.load(name, without, held.params)
    assert torch.equal(editor.edit(source, editor.fit(PROMPT), 1.0).s, results[0])
