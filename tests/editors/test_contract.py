"""Contract of all editors: strength, seed, batch, texts and images as conditions.

Editors are found by their files, so a new one is tested without a change here.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import edited_world
import pytest
import torch
from edited_world import PEOPLE, PROMPT, apply, edited, editor_of, settings_of
from torch import Tensor
from torch.nn import functional as F

from pipeline import denoiser_training, editors, portraits, sources
from pipeline.networks import Networks
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.storage import domains, params
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair
from stages import _edit
from stages._stage import NetworkSpec

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures
NAMES = editors.names()
SAME = TextPair("face with red hair", "face with red hair", {"hair_color": "red"})
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


def reconstruction(name: str, world: Networks, source: Source) -> Tensor:
    """Result of strength 0: the image itself, or the method's reconstruction."""
    needs = editors.module(name).NEEDS
    if "denoiser" in needs:
        from pipeline.models import ode_solvers

        world = edited_world.world_of(name, world)
        condition, own = denoiser_training.condition(world, source.inversion.w_plus), settings_of(name, world)
        if name == "sdedit":

            def predict(x: Tensor, t: Tensor, s: Tensor) -> Tensor:  # in bfloat16, since nothing is inverted
                with lowered(x.device):
                    return world.denoiser(x, t, s).float()

            return ode_solvers.renoise_and_sample(predict, source.image, condition, own.trajectory, "eps", own.seed).x
        if name in ("diffedit", "deltaedit_dm"):
            return source.image  # the mask is empty
        noise = ode_solvers.encode(world.denoiser, source.image, condition, own.trajectory, "eps")
        return ode_solvers.decode(world.denoiser, noise, condition, own.trajectory, "eps").x
    if name == "deltaedit_gp":
        return source.image  # all detail is added back
    return source.decode(world.generator, source.s) if "generator" in needs else source.image


# ---------------------------------------------------------------- the registry


def test_all_editors_are_found_and_no_private_module_is() -> None:
    assert {"deltaedit_g", "deltaedit_d", "styleclip_gd", "identity_editor", "counterfactual"} <= set(NAMES)
    assert not [name for name in NAMES if name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_an_editor_declares_kind_needs_and_frozen_params(name: str, world: Networks) -> None:
    module = editors.module(name)
    groups = params.load_yaml(world.root)["editors"]
    assert name in groups[module.KIND] or not any(name in group for group in groups.values())
    known = {"generator", "encoder", "clip", "denoiser", "mapper", "mapper_wplus", "relevance", "s_stats"}
    assert set(module.NEEDS) <= known
    assert "strength" in {field.name for field in fields(module.Params)}
    with pytest.raises(AttributeError):
        settings_of(name, world).strength = 2.0


@pytest.mark.parametrize("scale", ["default", "full"])
def test_slow_editors_edit_fewer_test_images_than_their_kind(scale: sources.Scale) -> None:
    counts = {name: _edit.test_images(editors.module(name), scale) for name in NAMES}
    of_kind = {name: sources.TEST_IMAGES[scale][editors.module(name).KIND] for name in NAMES}
    assert {name for name in NAMES if counts[name] != of_kind[name]} == {"deltaedit_gp", "styleclip_op", "styleclip_lm"}
    assert all(0 < counts[name] <= of_kind[name] for name in NAMES)


def test_block_size_is_bounded_by_pixels() -> None:
    on_cpu, on_gpu = ([_edit.block_size(device, size) for size in (64, 256, 512, 1024)] for device in ("cpu", "cuda"))
    assert on_cpu == [_edit.BLOCK, _edit.BLOCK, 3, 1]
    assert on_gpu == [128, _edit.BLOCK, _edit.BLOCK, _edit.BLOCK]


def test_an_unknown_editor_is_refused_with_the_nearest_name(world: Networks) -> None:
    with pytest.raises(InputError, match=r"unknown editor 'deltaedit' \(did you mean 'deltaedit_[dg]'\?\)"):
        editors.load("deltaedit", world, None)
    with pytest.raises(InputError, match="unknown editor '_diffusion'"):
        editors.module("_diffusion")


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", NAMES)
def test_results_have_the_promised_shapes_and_inputs_stay_unchanged(name: str, world: Networks, source: Source) -> None:
    before = [tensor.clone() for tensor in (source.image, source.inversion.w_plus, source.s, source.clip)]
    result = edited(name, world, source, PROMPT, 0.7)
    size = world.domain.resolution
    assert isinstance(result, Edited)
    assert result.images.shape == (PEOPLE, 3, size, size) and result.images.dtype == torch.float32
    assert torch.isfinite(result.images).all() and not result.images.requires_grad
    assert result.s is None or (result.s.shape == source.s.shape and not result.s.requires_grad)
    assert result.mask is None or result.mask.shape == (PEOPLE, 1, size, size)
    assert result.evaluations >= 0
    after = (source.image, source.inversion.w_plus, source.s, source.clip)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_strength_0_is_the_reconstruction(name: str, world: Networks, source: Source) -> None:
    result = edited(name, world, source, PROMPT, 0.0)
    with torch.no_grad():
        expected = reconstruction(name, world, source)
    torch.testing.assert_close(result.images, expected, atol=1e-5, rtol=1e-5)
    assert result.s is None or torch.equal(result.s, source.s)


MASKED = {name for name in NAMES if "mask_threshold" in {field.name for field in fields(editors.module(name).Params)}}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity_editor" and name not in MASKED])
def test_an_edit_changes_every_image_and_the_identity_editor_none(name: str, world: Networks, source: Source) -> None:
    still, moved = (edited(name, world, source, PROMPT, strength).images for strength in (0.0, 1.0))
    others = torch.tensor([portraits.attributes(person)["hair_color"] != "red" for person in source.people or ()])
    others &= torch.tensor([portraits.visible(person)["hair_color"] for person in source.people or ()])
    assert others.sum() >= 2
    assert ((moved - still).abs().amax(dim=(1, 2, 3)) > 1e-4)[others].all()
    assert torch.equal(edited("identity_editor", world, source, PROMPT, 1.0).images, source.image)


@pytest.mark.parametrize("name", NAMES)
def test_edits_are_deterministic(name: str, project: Path, world: Networks, source: Source) -> None:
    first = edited(name, world, source, PROMPT, 1.0)
    fresh = Networks(domains.load("tiny", project), project)
    torch.manual_seed(99)  # shows editors that draw from the global generator
    second = edited(name, fresh, source, PROMPT, 1.0)
    assert torch.equal(first.images, second.images)
    assert first.s is None or second.s is None or torch.equal(first.s, second.s)
    assert first.evaluations == second.evaluations


@pytest.mark.parametrize("name", NAMES)
def test_a_direction_gives_the_same_edit_in_another_process(
    name: str, project: Path, world: Networks, source: Source, tmp_path: Path
) -> None:
    spec = _edit.EditorSpec(NetworkSpec("tiny", project, "cpu"), name, settings_of(name, world))
    path = tmp_path / "directions"
    _edit.fit(spec, path)
    handed, conditions = _edit.fitted(path, "cpu"), sources.conditions(world.domain)
    assert [direction.condition for direction in handed] == conditions
    here, there = (editor_of(name, world) for _ in range(2))  # the second one fits nothing
    own = apply(here, source, here.fit(conditions[0]), 1.0).images
    assert torch.equal(apply(there, source, handed[0], 1.0).images, own)


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_does_not_depend_on_the_batch(name: str, world: Networks, source: Source) -> None:
    together = edited(name, world, source, PROMPT, 1.0)
    scale = max(1.0, together.images.std().item())
    for rows in ([0], [3, 1], [4, 4, 0], [2, 0, 1, 4, 3]):
        alone = edited(name, world, source.select(rows), PROMPT, 1.0)
        torch.testing.assert_close(alone.images / scale, together.images[rows] / scale, atol=1e-3, rtol=0)
        if alone.s is not None and together.s is not None:
            torch.testing.assert_close(alone.s, together.s[rows], atol=1e-4, rtol=1e-4)
        assert alone.evaluations == together.evaluations


@pytest.mark.parametrize("name", [name for name in NAMES if "relevance" in editors.module(name).NEEDS])
def test_a_text_equal_to_its_source_changes_nothing(name: str, world: Networks, source: Source) -> None:
    result = edited(name, world, source, SAME, 3.0)
    assert result.s is not None and torch.equal(result.s, source.s)
    assert torch.equal(result.images, edited(name, world, source, PROMPT, 0.0).images)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_texts_are_accepted(name: str, text: str, world: Networks, source: Source) -> None:
    result = edited(name, world, source.select([0, 1]), TextPair("face", text, {"hair_color": "red"}), 1.0)
    assert result.images.shape[0] == 2 and torch.isfinite(result.images).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_of_images_is_a_condition(name: str, world: Networks, source: Source) -> None:
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
def test_texts_are_put_into_the_templates_of_the_domain(name: str, world: Networks) -> None:
    direction = editor_of(name, world).fit(PROMPT)
    expected = world.clip.text_delta(PROMPT.source, PROMPT.target, tuple(world.domain.templates))
    assert torch.equal(direction.delta, expected) and not direction.delta.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_an_editor_reads_only_the_networks_it_declares(
    name: str, project: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`NEEDS` are dependencies of its stage in dvc.yaml: results would not follow another file."""
    read: list[str] = []
    path = Networks.path
    monkeypatch.setattr(Networks, "path", lambda self, network: read.append(network) or path(self, network))
    fresh = Networks(domains.load("tiny", project), project)
    edited(name, fresh, source.select([0]), PROMPT, 1.0)
    assert set(read) <= set(editors.module(name).NEEDS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
def test_an_edit_is_the_same_on_another_device(
    name: str, device: str, project: Path, world: Networks, source: Source
) -> None:
    here = edited(name, world, source, PROMPT, 1.0)
    there = Networks(domains.load("tiny", project), project, device)
    result = edited(name, there, source.to(device), PROMPT, 1.0)
    assert result.images.device.type == device
    scale = max(1.0, here.images.std().item())
    near = (
        5e-2 if name == "styleclip_op" else 1e-2
    )  # its steps of descent enlarge what was rounded otherwise: .013 on an H200
    torch.testing.assert_close(result.images.cpu() / scale, here.images / scale, atol=near, rtol=0)
