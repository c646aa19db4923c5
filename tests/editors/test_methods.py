"""Arithmetic of single editors, on small random networks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import edited_world
import pytest
import torch
from edited_world import PEOPLE, PROMPT, apply, edited, editor_of, settings_of
from torch import Tensor
from torch.nn import functional as F

from pipeline import editors, portraits
from pipeline.editors import _edit_direction, styleclip_gd, styleclip_op
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.storage import domains
from pipeline.values import Direction, ImagePair, Source, TextPair

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures


# ---------------------------------------------------------------- DeltaEdit, global directions, counterfactuals


def test_deltaedit_adds_delta_s_in_the_relevant_channels(world: Networks, source: Source) -> None:
    editor = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(strength=1.0, threshold=0.05))
    direction = editor.fit(PROMPT)
    result = apply(editor, source, direction, 1.5)
    condition = torch.cat(
        [F.normalize(source.clip, dim=1), F.normalize(direction.delta, dim=0).expand(PEOPLE, -1)], dim=1
    )
    with torch.no_grad():
        delta_s = world.mapper(source.s, condition)
    kept = (world.relevance @ direction.delta).abs() >= 0.05
    assert 0 < kept.sum() < len(kept)
    assert result.s is not None
    torch.testing.assert_close(result.s, source.s + 1.5 * delta_s * kept)
    with torch.no_grad():  # colours come from the unedited w+
        torch.testing.assert_close(result.images, world.generator.synthesis(result.s, source.inversion.w_plus))


def test_a_global_direction_is_the_relevance_in_standard_deviations_from_beta_on(
    world: Networks, source: Source
) -> None:
    settings = styleclip_gd.Params(strength=1.0, alpha=3.0, beta=0.1)
    editor = editors.load("styleclip_gd", world, settings)
    direction = editor.fit(PROMPT)
    relevance = world.relevance @ (direction.delta / direction.delta.norm())
    expected = torch.zeros_like(relevance)
    for c, value in enumerate(relevance.tolist()):
        if abs(value) >= 0.1:
            expected[c] = value / relevance.abs().max() * world.s_stats[1][c]
    assert 0 < (expected == 0).sum() < len(expected)
    torch.testing.assert_close(direction.data["delta_s"], expected)
    result = apply(editor, source, direction, 0.5)
    assert result.s is not None
    torch.testing.assert_close(result.s, source.s + 0.5 * 3.0 * expected)


def test_a_beta_above_all_relevance_changes_nothing(world: Networks, source: Source) -> None:
    editor = editors.load("styleclip_gd", world, styleclip_gd.Params(strength=1.0, alpha=3.0, beta=1.1))
    result = apply(editor, source, editor.fit(PROMPT), 1.0)
    assert result.s is not None and torch.equal(result.s, source.s)


def test_the_counterfactual_is_the_render_of_the_changed_portrait(world: Networks, source: Source) -> None:
    result = edited("counterfactual", world, source, PROMPT, 1.0)
    assert source.people is not None and result.evaluations == 0
    for image, person in zip(result.images, source.people, strict=True):
        drawn = portraits.render(portraits.counterfactual(person, {"hair_color": "red"}), world.domain.resolution)
        assert torch.equal(((image + 1) * 127.5).round().byte(), torch.from_numpy(drawn).permute(2, 0, 1))


def test_the_counterfactual_of_an_attribute_that_is_there_is_the_input(world: Networks, source: Source) -> None:
    assert source.people is not None
    for i, person in enumerate(source.people):
        has = TextPair("face", "face", {"hair_color": portraits.attributes(person)["hair_color"]})
        assert torch.equal(edited("counterfactual", world, source.select([i]), has, 1.0).images[0], source.image[i])


def test_the_counterfactual_refuses_unknown_attributes_and_photographs(world: Networks, source: Source) -> None:
    editor = editor_of("counterfactual", world)
    with pytest.raises(InputError, match="needs a prompt of the domain"):
        editor.fit(TextPair("face", "face with red hair"))
    photographs = replace(source, people=None)
    with pytest.raises(InputError, match="needs the renderer"):
        apply(editor, photographs, editor.fit(PROMPT), 1.0)
    for attribute, value, hint in (("hair_colour", "red", "hair_color"), ("hair_color", "rde", "red")):
        with pytest.raises(InputError, match=hint):
            editor.fit(TextPair("face", "red hair", {attribute: value}))


def test_same_sign_leaves_out_channels_that_move_against_their_effect(world: Networks, source: Source) -> None:
    module = editors.module("deltaedit_g")
    published, agreeing = (
        editors.load("deltaedit_g", world, module.Params(1.0, threshold=0.0, same_sign=same)) for same in (False, True)
    )
    direction = published.fit(PROMPT)
    all_moves, kept = (apply(editor, source, direction, 1.0).s - source.s for editor in (published, agreeing))
    with_effect = all_moves * (world.relevance @ direction.delta) > 0
    assert with_effect.any() and not with_effect.all()
    torch.testing.assert_close(kept, torch.where(with_effect, all_moves, 0.0))


def test_top_channels_are_the_most_relevant_ones_that_make_up_the_share() -> None:
    relevance = torch.tensor([0.1, -0.9, 0.5, 0.3])
    does = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 7.0, -5.0]])
    for share, first, second in (
        (0.3, [1], [1, 2]),
        (0.5, [1, 2], [1, 2]),
        (0.55, [1, 2, 3], [1, 2]),
        (1, [0, 1, 2, 3], [0, 1, 2, 3]),
    ):
        moved = _edit_direction.top_channels(does, relevance, share)
        assert [row.nonzero().flatten().tolist() for row in moved] == [first, second], share
    assert not _edit_direction.top_channels(torch.zeros(1, 4), relevance, 0.5).any()


@pytest.mark.parametrize("name", ["deltaedit_g", "deltaedit_gp", "deltaedit_gr", "deltaedit_d"])
def test_a_smaller_top_share_moves_a_subset_of_the_channels(name: str, world: Networks, source: Source) -> None:
    moves = []
    for share in (0.3, 0.8, None):
        editor = editor_with(name, world, threshold=0.0, top_share=share)
        moves.append(apply(editor, source, editor.fit(PROMPT), 1.0).s != source.s)  # type: ignore[operator]
    few, more, every = moves
    assert (few <= more).all() and (more <= every).all() and 0 < few.sum() < more.sum() < every.sum()


@pytest.mark.parametrize("name", ["deltaedit_g", "deltaedit_gr", "deltaedit_d"])
def test_channels_are_clamped_to_max_sigma_unless_they_were_beyond_before(
    name: str, world: Networks, source: Source
) -> None:
    far = replace(source, s=source.s + 6 * world.s_stats[1] * torch.tensor([[1.0], [0], [0], [0], [0]]))
    free, result = (
        apply(editor, far, editor.fit(PROMPT), 40.0).s
        for editor in (editor_with(name, world, threshold=0.0, max_sigma=limit) for limit in (None, 1.5))
    )
    lowest = torch.minimum(far.s, world.s_stats[0] - 1.5 * world.s_stats[1])
    highest = torch.maximum(far.s, world.s_stats[0] + 1.5 * world.s_stats[1])
    torch.testing.assert_close(result, free.clamp(lowest, highest))
    assert (result != free).any() and (result[0] > world.s_stats[0] + 1.6 * world.s_stats[1]).any()


def test_attainable_removes_what_no_channel_attains() -> None:
    torch.manual_seed(0)
    shown = torch.randn(3, 12)  # relevance spans three of twelve directions
    relevance, delta, other = torch.randn(50, 3) @ shown, torch.randn(3) @ shown, torch.randn(12)
    away = other - torch.linalg.lstsq(shown.T, other[:, None]).solution[:, 0] @ shown
    for ridge in (1e-6, 1e-4):
        result = _edit_direction.attainable(relevance, delta + away, ridge)
        torch.testing.assert_close(result, delta, rtol=0, atol=200 * ridge + 1e-4)
    assert _edit_direction.attainable(relevance, delta, 1.0).norm() < 0.95 * delta.norm()  # more takes from all
    both = _edit_direction.attainable(relevance, torch.stack([delta, away]), 0.1)
    torch.testing.assert_close(both[0], _edit_direction.attainable(relevance, delta, 0.1))
    assert both[1].norm() < 1e-3


@pytest.mark.parametrize("name", ["deltaedit_g", "deltaedit_gp", "deltaedit_gr", "deltaedit_d"])
def test_the_mapper_gets_the_attainable_delta_where_there_is_a_relevance_matrix(
    name: str, world: Networks, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas: list[Tensor] = []
    monkeypatch.setattr(
        _edit_direction, "mapper_delta", lambda nets, images, delta: deltas.append(delta) or images.s * 0 + 0.1
    )
    monkeypatch.setattr(_edit_direction, "channel_relevance", lambda nets, delta: torch.ones(source.s.shape[1]))
    bare = Networks(world.domain, world.root)
    monkeypatch.setattr(bare, "absent", lambda network: "missing" if network == "relevance" else None)
    for nets in (world, bare):
        for ridge in (None, 0.1):
            editor = editor_with(name, nets, delta_ridge=ridge)
            apply(editor, source, editor.fit(PROMPT), 1.0)
    published, ours, plain, without = deltas
    delta = world.clip.text_delta(PROMPT.source, PROMPT.target, world.domain.templates)
    for same in (published, plain, without):
        torch.testing.assert_close(same, delta)
    torch.testing.assert_close(ours, _edit_direction.attainable(world.relevance, delta, 0.1))
    assert F.cosine_similarity(ours, delta, dim=0) < 0.999


def test_mask_settings_out_of_range_are_refused(world: Networks) -> None:
    for name in ("deltaedit_g", "deltaedit_gp", "deltaedit_gr", "deltaedit_d"):
        for share in (0.0, 1.1):
            with pytest.raises(ValueError, match=f"top_share is {share}"):
                editor_with(name, world, top_share=share)
        with pytest.raises(ValueError, match="max_sigma is 0"):
            editor_with(name, world, max_sigma=0.0)
        with pytest.raises(ValueError, match="delta_ridge is 0"):
            editor_with(name, world, delta_ridge=0.0)


def test_deltaedit_gr_moves_by_the_geometric_mean_where_signs_agree(world: Networks, source: Source) -> None:
    mapper = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(1.0, threshold=0.0))
    direction = editors.load("styleclip_gd", world, styleclip_gd.Params(strength=1.0, alpha=2.0, beta=0.0))
    ours = editors.load("deltaedit_gr", world, editors.module("deltaedit_gr").Params(1.0, 2.0, threshold=0.0))
    moves = [apply(editor, source, editor.fit(PROMPT), 1.0).s - source.s for editor in (mapper, direction, ours)]
    same = moves[0] * moves[1] > 0
    expected = torch.where(same, moves[0].sign() * (moves[0] * moves[1]).abs().sqrt(), 0.0)
    assert same.any() and not same.all()
    torch.testing.assert_close(moves[2], expected, atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- baselines of the paper


def editor_with(name: str, world: Networks, **settings: Any) -> Any:
    """The editor with the settings of params.yaml, except for `settings`."""
    return editors.load(name, world, replace(settings_of(name, world), **settings))


def closeness(world: Networks, images: Tensor, direction: Direction) -> Tensor:
    """Cosine [B] of images with the target."""
    target = world.clip.text_feature(PROMPT.target, tuple(world.domain.templates))
    assert "target" not in direction.data or torch.equal(direction.data["target"], target)
    return F.cosine_similarity(world.clip.embed_images(images), target[None])


def test_without_its_mask_deltaedit_adds_the_whole_delta_s(world: Networks, source: Source) -> None:
    unmasked = edited("deltaedit_g_unmasked", world, source, PROMPT, 1.5)
    masked = editors.load("deltaedit_g", world, editors.module("deltaedit_g").Params(1.0, threshold=0.0))
    expected = apply(masked, source, masked.fit(PROMPT), 1.5)
    assert unmasked.s is not None and torch.equal(unmasked.s, expected.s)


def test_in_w_plus_rows_move_and_colours_follow(world: Networks, source: Source) -> None:
    result = edited("deltaedit_g_wplus", world, source, PROMPT, 0.5)
    delta = world.clip.text_delta(PROMPT.source, PROMPT.target, world.domain.templates)
    condition = torch.cat(
        [F.normalize(source.clip, dim=1), F.normalize(delta, dim=0).expand(len(source.clip), -1)], dim=1
    )
    with torch.no_grad():
        w_plus = source.inversion.w_plus + 0.5 * world.mapper_wplus(
            source.inversion.w_plus.flatten(1), condition
        ).reshape(source.inversion.w_plus.shape)
        expected = world.generator(w_plus)
        layer_colours = world.generator.synthesis(world.generator.styles(w_plus), source.inversion.w_plus)
    torch.testing.assert_close(result.images, expected, atol=1e-4, rtol=1e-4)
    assert (result.images - layer_colours).abs().max() > 1e-3
    torch.testing.assert_close(result.s, world.generator.styles(w_plus), atol=1e-4, rtol=1e-4)


def test_clip_target_conditions_on_the_target_minus_the_image(world: Networks, source: Source) -> None:
    pair = ImagePair(source.image[:1], source.image[1:2])
    text = world.clip.text_feature(PROMPT.target, tuple(world.domain.templates))
    with torch.no_grad():  # alone, as the editor embeds it: a batch rounds otherwise, and differences here are small
        picture = F.normalize(world.clip.embed_images(pair.target)[0], dim=0)
    source = source.select([0, 2, 3, 4])  # image 1 is the target of the pair
    own = F.normalize(source.clip, dim=1)
    for asked, end in ((pair, picture), (PROMPT, text)):
        condition = torch.cat([own, F.normalize(end - own, dim=1, eps=1e-5)], dim=1)
        with torch.no_grad():
            expected = source.s + 0.5 * world.mapper(source.s, condition)
        result = edited("clip_target", world, source, asked, 0.5)
        torch.testing.assert_close(result.s, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("space", ["w_plus", "s"])
def test_optimisation_brings_every_image_closer_to_the_text(space: str, world: Networks, source: Source) -> None:
    editor = editor_with("styleclip_op", world, space=space, steps=10, l2=0.0)
    direction = editor.fit(PROMPT)
    still, result = (apply(editor, source, direction, strength) for strength in (0.0, 1.0))
    assert (closeness(world, result.images, direction) > closeness(world, still.images, direction)).all()
    assert (still.evaluations, result.evaluations) == (1, 11)
    with torch.no_grad():  # colours follow a step in w+, and not one in s
        unmoved = world.generator.synthesis(result.s, source.inversion.w_plus)
    assert torch.equal(unmoved, result.images) == (space == "s")


def test_the_l2_term_of_optimisation_limits_the_change(world: Networks, source: Source) -> None:
    far, near = (
        (apply(editor, source, editor.fit(PROMPT), 1.0).s - source.s).norm()
        for editor in (editor_with("styleclip_op", world, steps=10, l2=price) for price in (0.0, 1.0))
    )
    assert near < far / 2


def test_the_learning_rate_of_optimisation_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [styleclip_op.ramp(done) for done in (0.0, 0.025, 0.05, 0.75, 0.875, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0], abs=1e-6)


def test_a_latent_mapper_is_fitted_on_generated_images(world: Networks, source: Source) -> None:
    before, after = (editor_with("styleclip_lm", world, steps=steps, l2=0.0, lr=0.1) for steps in (1, 30))
    direction = after.fit(PROMPT)
    images = [apply(editor, source, editor.fit(PROMPT), 1.0).images for editor in (before, after)]
    assert closeness(world, images[1], direction).mean() > closeness(world, images[0], direction).mean()
    network = after._network()
    coarse, medium = world.generator.layout.split
    assert network.rows == [coarse + 1, medium - coarse, world.generator.num_ws - medium - 1]
    with torch.no_grad():  # a row of w+ is moved by what stands in it alone
        w_plus = source.inversion.w_plus.clone()
        w_plus[:, 1] += 1
        changed = (network(w_plus) - network(source.inversion.w_plus)).abs().amax(dim=(0, 2)) > 0
    assert changed.tolist() == [row == 1 for row in range(world.generator.num_ws)]


def test_stylemc_fits_a_direction_of_the_middle_layers(world: Networks, source: Source) -> None:
    editor = editor_with("stylemc", world, power=20.0)
    direction = editor.fit(PROMPT)
    delta_s = direction.data["delta_s"]
    first = world.generator.layout.dims[0]
    assert not delta_s[:first].any() and delta_s[first:].any()
    still, result = (apply(editor, source, direction, strength) for strength in (0.0, 1.0))
    assert result.s is not None
    torch.testing.assert_close(result.s, source.s + 20 * delta_s)
    assert closeness(world, result.images, direction).mean() > closeness(world, still.images, direction).mean()


def test_stylemc_leaves_out_channels_whose_gradient_changes_its_sign(world: Networks) -> None:
    settings = {"images": 24, "batch": 2, "lr": 0.0}
    assert not editor_with("stylemc", world, **settings).fit(PROMPT).data["delta_s"].any()
    result = editor_with("stylemc", world, **{**settings, "lr": 5.0}).fit(PROMPT).data["delta_s"]
    moved = result[world.generator.layout.dims[0] :] != 0
    assert moved.any() and not moved.all()


@pytest.mark.parametrize("name", ["styleclip_op", "styleclip_lm", "stylemc"])
def test_the_identity_loss_uses_the_domain_s_network_where_there_is_one(
    name: str, project: Path, world: Networks, source: Source, tmp_path: Path
) -> None:
    free, weighted = (editor_with(name, world, identity=weight) for weight in (0.0, 50.0))
    results = [apply(editor, source, editor.fit(PROMPT), 1.0).s for editor in (free, weighted)]
    assert not torch.equal(*results)
    shutil.copytree(project, tmp_path / "without")
    (tmp_path / "without/data/pretrained/tiny/identity.safetensors").unlink()
    without = Networks(domains.load("tiny", tmp_path / "without"), tmp_path / "without")
    editor = editors.load(name, without, weighted.params)
    assert torch.equal(apply(editor, source, editor.fit(PROMPT), 1.0).s, results[0])
