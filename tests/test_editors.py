"""One contract for all editors, on a small random world: what strength, seed, batch, text and pictures must mean.

An editor is found by its file, so a new one is held to all of this without a word here.
"""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import domains, editing, editors, params, portraits, weights
from pipeline.backbones import Backbones
from pipeline.editors import styleclip_gd, styleclip_op
from pipeline.values import Direction, Edited, ImagePair, InputError, Source, TextPair
from stages import _edit

NAMES = editors.names()
PEOPLE = 5
PROMPT = TextPair("face", "face with red hair", "hair_color", "red")
SAME = TextPair("face with red hair", "face with red hair", "hair_color", "red")
ODD = {
    "empty": "",
    "japanese": "赤い髪の顔",
    "right_to_left": "وجه بشعر أحمر",
    "emoji": "face with 👓",
    "very_long": "face with red hair " * 2000,
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.fixture(scope="module")
def project(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with what its DAG would add: statistics of s, a mapper and a relevance matrix, at random.

    The denoiser gets random weights as well: an untrained one begins with zeros and does not listen to s.
    """
    from pipeline import denoiser
    from pipeline.mapper import DeltaMapper, numbers

    root = tmp_path_factory.mktemp("editors")
    shutil.copytree(tiny / "domains", root / "domains")
    shutil.copytree(tiny / "data/pretrained", root / "data/pretrained")
    shutil.copy(tiny / "params.yaml", root)
    torch.manual_seed(5)
    networks = Backbones(domains.load("tiny", root), root)
    layout, dim = networks.generator.layout, networks.clip.dim
    with torch.no_grad():
        s = networks.generator.styles(networks.generator.repeat(networks.generator.mapping(torch.randn(256, 12))))
    folder = root / "data/pretrained/tiny"
    statistics = {"mean": s.mean(dim=0), "std": s.std(dim=0).clamp(min=0.05)}
    weights.save(folder / "s_stats.safetensors", statistics, {}, half=False)
    relevance = F.normalize(torch.randn(layout.size, dim), dim=1)
    weights.save(folder / "relevance.safetensors", {"relevance": relevance}, {}, half=False)
    network = networks.denoiser
    for parameter in network.parameters():
        parameter.normal_(std=0.1)
    denoiser.save(folder / "denoiser.safetensors", network)
    meta = {"model": numbers(layout, dim)}
    weights.save(folder / "mapper.safetensors", DeltaMapper(layout, dim).state_dict(), meta, half=False)
    return root


@pytest.fixture(scope="module")
def world(project: Path) -> Backbones:
    return Backbones(domains.load("tiny", project), project)


@pytest.fixture(scope="module")
def source(world: Backbones) -> Source:
    people = tuple(portraits.sample(row) for row in range(PEOPLE))
    drawn = np.stack([portraits.render(person, world.domain.resolution) for person in people])
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        w_plus = world.encoder(images)
        return Source(images, w_plus, world.generator.styles(w_plus), world.clip.embed_images(images), people)


def editor_of(name: str, world: Backbones) -> Any:
    return editors.load(name, world, settings_of(name, world))


def settings_of(name: str, world: Backbones) -> Any:
    """The editor's own section of params.yaml, in that of the stage that runs it."""
    module = editors.module(name)
    return params.section(module.Params, world.root, f"edit_{module.KIND}.{name}", domain=world.domain)


def edited(name: str, world: Backbones, source: Source, condition: TextPair | ImagePair, strength: float) -> Edited:
    editor = editor_of(name, world)
    return editor.edit(source, editor.fit(condition), strength)


def reconstruction(name: str, world: Backbones, source: Source) -> Tensor:
    """What strength 0 must be: the picture itself, or what the method makes of it without any edit."""
    needs = editors.module(name).NEEDS
    if "denoiser" in needs:
        from pipeline import sampler

        told, own = sampler.standardise(source.s, world.s_mean, world.s_std), settings_of(name, world)
        if name == "sdedit":
            return sampler.unburied(world.denoiser, source.image, told, own.walk, "eps", own.seed).x
        if name in ("diffedit", "deltaedit_dm"):
            return source.image  # nothing is in the mask
        noise = sampler.encode(world.denoiser, source.image, told, own.walk, "eps")
        return sampler.decode(world.denoiser, noise, told, own.walk, "eps").x
    return world.generator.synthesis(source.s, source.w_plus) if "generator" in needs else source.image


# ---------------------------------------------------------------- the registry


def test_all_editors_of_the_parameters_are_there_and_nothing_private_is() -> None:
    assert {"deltaedit_g", "deltaedit_d", "styleclip_gd", "identity_editor", "counterfactual"} <= set(NAMES)
    assert not [name for name in NAMES if name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_an_editor_says_its_stage_its_needs_and_its_parameters(name: str, world: Backbones) -> None:
    module = editors.module(name)
    groups = params.load_yaml(world.root)["editors"]
    assert name in groups[module.KIND] or not any(name in group for group in groups.values())
    assert set(module.NEEDS) <= {"generator", "encoder", "clip", "denoiser", "mapper", "relevance", "s_stats"}
    assert "strength" in {field.name for field in fields(module.Params)}
    with pytest.raises(AttributeError):
        settings_of(name, world).strength = 2.0


@pytest.mark.parametrize("scale", ["default", "full"])
def test_dear_editors_edit_fewer_people_and_the_others_as_many_as_their_kind(scale: editing.Scale) -> None:
    counts = {name: _edit.people(editors.module(name), scale) for name in NAMES}
    of_kind = {name: editing.PEOPLE[scale][editors.module(name).KIND] for name in NAMES}
    assert {name for name in NAMES if counts[name] != of_kind[name]} == {"styleclip_op", "styleclip_lm"}
    assert all(0 < counts[name] <= of_kind[name] for name in NAMES)


def test_an_unknown_editor_is_refused_with_the_nearest_name(world: Backbones) -> None:
    with pytest.raises(InputError, match=r"unknown editor 'deltaedit' \(did you mean 'deltaedit_[dg]'\?\)"):
        editors.load("deltaedit", world, None)
    with pytest.raises(InputError, match="unknown editor '_deltas'"):
        editors.module("_deltas")


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back_has_the_promised_shapes_and_changes_no_input(
    name: str, world: Backbones, source: Source
) -> None:
    before = [tensor.clone() for tensor in (source.image, source.w_plus, source.s, source.clip)]
    result = edited(name, world, source, PROMPT, 0.7)
    size = world.domain.resolution
    assert isinstance(result, Edited)
    assert result.images.shape == (PEOPLE, 3, size, size) and result.images.dtype == torch.float32
    assert torch.isfinite(result.images).all() and not result.images.requires_grad
    assert result.s is None or (result.s.shape == source.s.shape and not result.s.requires_grad)
    assert result.mask is None or result.mask.shape == (PEOPLE, 1, size, size)
    assert result.evaluations >= 0
    after = (source.image, source.w_plus, source.s, source.clip)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_strength_0_changes_nothing_beyond_the_reconstruction(name: str, world: Backbones, source: Source) -> None:
    result = edited(name, world, source, PROMPT, 0.0)
    with torch.no_grad():
        expected = reconstruction(name, world, source)
    torch.testing.assert_close(result.images, expected, atol=1e-5, rtol=1e-5)
    assert result.s is None or torch.equal(result.s, source.s)


MASKED = {name for name in NAMES if "cut" in {field.name for field in fields(editors.module(name).Params)}}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity_editor" and name not in MASKED])
def test_an_edit_changes_every_picture_and_the_identity_editor_none(
    name: str, world: Backbones, source: Source
) -> None:
    still, moved = (edited(name, world, source, PROMPT, strength).images for strength in (0.0, 1.0))
    others = torch.tensor([portraits.attributes(person)["hair_color"] != "red" for person in source.people or ()])
    others &= torch.tensor([portraits.visible(person)["hair_color"] for person in source.people or ()])
    assert others.sum() >= 2
    assert ((moved - still).abs().amax(dim=(1, 2, 3)) > 1e-4)[others].all()
    assert torch.equal(edited("identity_editor", world, source, PROMPT, 1.0).images, source.image)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_world_gives_the_same_bytes_again(name: str, project: Path, world: Backbones, source: Source) -> None:
    first = edited(name, world, source, PROMPT, 1.0)
    fresh = Backbones(domains.load("tiny", project), project)
    torch.manual_seed(99)  # an editor that draws from the global generator would show
    second = edited(name, fresh, source, PROMPT, 1.0)
    assert torch.equal(first.images, second.images)
    assert first.s is None or second.s is None or torch.equal(first.s, second.s)
    assert first.evaluations == second.evaluations


@pytest.mark.parametrize("name", NAMES)
def test_a_person_is_edited_alike_in_a_batch_of_any_size(name: str, world: Backbones, source: Source) -> None:
    together = edited(name, world, source, PROMPT, 1.0)
    scale = max(1.0, together.images.std().item())
    for rows in ([0], [3, 1], [4, 4, 0], [2, 0, 1, 4, 3]):
        alone = edited(name, world, source.select(rows), PROMPT, 1.0)
        torch.testing.assert_close(alone.images / scale, together.images[rows] / scale, atol=1e-3, rtol=0)
        if alone.s is not None and together.s is not None:
            torch.testing.assert_close(alone.s, together.s[rows], atol=1e-4, rtol=1e-4)
        assert alone.evaluations == together.evaluations


@pytest.mark.parametrize("name", [name for name in NAMES if "relevance" in editors.module(name).NEEDS])
def test_a_text_equal_to_its_source_changes_nothing(name: str, world: Backbones, source: Source) -> None:
    result = edited(name, world, source, SAME, 3.0)
    assert result.s is not None and torch.equal(result.s, source.s)
    assert torch.equal(result.images, edited(name, world, source, PROMPT, 0.0).images)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_texts_nobody_expects_are_edits_like_others(name: str, text: str, world: Backbones, source: Source) -> None:
    result = edited(name, world, source.select([0, 1]), TextPair("face", text, "hair_color", "red"), 1.0)
    assert result.images.shape[0] == 2 and torch.isfinite(result.images).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_of_pictures_is_a_condition_where_the_method_takes_one(
    name: str, world: Backbones, source: Source
) -> None:
    pair = ImagePair(source.image[:1], source.image[1:2])
    if name == "counterfactual":
        with pytest.raises(InputError, match="needs a prompt of the domain"):
            editor_of(name, world).fit(pair)
        return
    direction = editor_of(name, world).fit(pair)
    assert isinstance(direction, Direction) and direction.condition is pair
    assert edited(name, world, source, pair, 1.0).images.shape == source.image.shape
    if "clip" in editors.module(name).NEEDS:
        ends = F.normalize(world.clip.embed_images(torch.cat([pair.source, pair.target])), dim=1)
        torch.testing.assert_close(direction.delta, ends[1] - ends[0])
    if "relevance" in editors.module(name).NEEDS:
        still = edited(name, world, source, ImagePair(pair.source, pair.source), 1.0)
        assert still.s is not None and torch.equal(still.s, source.s)


@pytest.mark.parametrize("name", [name for name in NAMES if "clip" in editors.module(name).NEEDS])
def test_a_text_is_fitted_in_the_templates_of_the_domain(name: str, world: Backbones) -> None:
    direction = editor_of(name, world).fit(PROMPT)
    expected = world.clip.text_delta(PROMPT.source, PROMPT.target, tuple(world.domain.templates))
    assert torch.equal(direction.delta, expected) and not direction.delta.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_what_an_editor_needs_is_all_it_reads(
    name: str, project: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`NEEDS` decides what its stage depends on in dvc.yaml: a file read beside it would make stale results."""
    read: list[str] = []
    path = Backbones.path
    monkeypatch.setattr(Backbones, "path", lambda self, network: read.append(network) or path(self, network))
    fresh = Backbones(domains.load("tiny", project), project)
    edited(name, fresh, source.select([0]), PROMPT, 1.0)
    assert set(read) <= set(editors.module(name).NEEDS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
def test_an_edit_on_another_device_is_the_same_edit(
    name: str, device: str, project: Path, world: Backbones, source: Source
) -> None:
    here = edited(name, world, source, PROMPT, 1.0)
    there = Backbones(domains.load("tiny", project), project, device)
    result = edited(name, there, source.to(device), PROMPT, 1.0)
    assert result.images.device.type == device
    scale = max(1.0, here.images.std().item())
    torch.testing.assert_close(result.images.cpu() / scale, here.images / scale, atol=1e-2, rtol=0)


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
        drawn = portraits.render(portraits.counterfactual(person, "hair_color", "red"), world.domain.resolution)
        assert torch.equal(((image + 1) * 127.5).round().byte(), torch.from_numpy(drawn).permute(2, 0, 1))


def test_the_counterfactual_of_what_a_person_has_is_the_person(world: Backbones, source: Source) -> None:
    assert source.people is not None
    for i, person in enumerate(source.people):
        has = TextPair("face", "face", "hair_color", portraits.attributes(person)["hair_color"])
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
            editor.fit(TextPair("face", "red hair", attribute, value))


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


def test_the_straightforward_editor_puts_the_text_where_the_second_picture_was(
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
        result = edited("straightforward", world, source, condition, 0.5)
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
