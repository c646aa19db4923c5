"""DeltaEdit-D on random networks: what it does to s, what it computes once, and how it draws."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from pipeline import sampler
from pipeline.denoiser import Denoiser
from pipeline.editors import deltaedit_d, load
from pipeline.editors.deltaedit_d import Params
from pipeline.values import ImagePair, Source, TextPair

S, E, R = 7, 5, 16
PARAMS = Params(strength=1.0, threshold=0.3, steps=4, refine=1)
PROMPT = TextPair("face", "face with red hair")


class Counted(Denoiser):
    calls = 0

    def forward(self, x, t, s):
        self.calls += 1
        return super().forward(x, t, s)


@pytest.fixture
def world():
    torch.manual_seed(0)
    network = Counted(R, (3, 4, 0), channels=8, mult=(1, 2), time_dim=12, style_dim=10).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    lift = torch.randn(2 * E, S)
    return SimpleNamespace(
        device="cpu",
        denoiser=network,
        mapper=lambda s, told: 0.1 * s + told @ lift,
        relevance=F.normalize(torch.randn(S, E), dim=1),
        s_stats=(torch.randn(S), torch.rand(S) + 0.5),
        direction_delta=lambda source, target: torch.full((E,), 0.0 if source == target else 0.4),
        clip=SimpleNamespace(embed_images=lambda images: images.flatten(1)[:, :E]),
    )


def people(batch=3):
    torch.manual_seed(1)
    images = torch.rand(batch, 3, R, R) * 2 - 1
    return Source(images, torch.randn(batch, 4, 6), torch.randn(batch, S), torch.randn(batch, E))


def test_the_edit_decodes_the_sources_own_noise_under_the_masked_style(world):
    source, editor = people(), load("deltaedit_d", world, PARAMS)
    direction = editor.fit(PROMPT)
    edited = editor.edit(source, direction, 0.5)
    unit = F.normalize(direction.delta, dim=0)
    told = torch.cat([F.normalize(source.clip, dim=1), unit.expand(3, -1)], dim=1)
    keep = (world.relevance @ direction.delta).abs() >= 0.3
    assert 0 < keep.sum() < S
    s = source.s + 0.5 * world.mapper(source.s, told) * keep
    torch.testing.assert_close(edited.s, s)
    noise = sampler.encode(world.denoiser, source.image, sampler.standardise(source.s, *world.s_stats), 4, 1).x
    images = sampler.decode(world.denoiser, noise, sampler.standardise(s, *world.s_stats), 4).x
    torch.testing.assert_close(edited.images, images)
    assert edited.evaluations == 12 and edited.mask is None


def test_strength_zero_is_the_reconstruction_whatever_the_prompt(world):
    source, editor = people(), load("deltaedit_d", world, PARAMS)
    still = editor.edit(source, editor.fit(PROMPT), 0.0)
    other = editor.edit(source, editor.fit(TextPair("face", "face")), 1.0)
    assert torch.equal(still.images, other.images) and torch.equal(still.s, source.s)
    moved = editor.edit(source, editor.fit(PROMPT), 1.0)
    assert (moved.images - still.images).abs().max() > 1e-3


def test_people_are_encoded_once_for_all_their_edits_and_the_bytes_are_those_of_a_fresh_editor(world):
    source, editor = people(), load("deltaedit_d", world, PARAMS)
    first = editor.edit(source, editor.fit(PROMPT), 1.0)
    assert world.denoiser.calls == 12
    again = editor.edit(source, editor.fit(PROMPT), 1.0)
    assert world.denoiser.calls == 16
    assert torch.equal(first.images, again.images) and first.evaluations == again.evaluations
    editor.edit(replace(source, image=-source.image), editor.fit(PROMPT), 1.0)
    editor.edit(replace(source, s=-source.s), editor.fit(PROMPT), 1.0)
    assert world.denoiser.calls == 40  # another picture or another code is another person
    fresh = load("deltaedit_d", world, PARAMS)
    assert torch.equal(fresh.edit(source, fresh.fit(PROMPT), 1.0).images, first.images)


def test_remembered_noise_stays_bounded(world, monkeypatch):
    monkeypatch.setattr(deltaedit_d, "REMEMBERED", 2)
    editor, source = load("deltaedit_d", world, PARAMS), people()
    for i in range(4):
        editor.edit(replace(source, s=source.s + i), editor.fit(PROMPT), 1.0)
    assert len(editor.noises) == 2


def test_a_person_does_not_depend_on_the_others(world):
    source, editor = people(), load("deltaedit_d", world, PARAMS)
    together = editor.edit(source, editor.fit(PROMPT), 1.0)
    alone = [editor.edit(source.select([i]), editor.fit(PROMPT), 1.0).images for i in range(3)]
    scale = together.images.std()
    torch.testing.assert_close(torch.cat(alone) / scale, together.images / scale, rtol=0, atol=1e-3)


def test_a_pair_of_pictures_is_a_condition_too(world):
    source, editor = people(), load("deltaedit_d", world, PARAMS)
    ends = torch.rand(2, 1, 3, R, R)
    direction = editor.fit(ImagePair(ends[0], ends[1]))
    assert direction.delta.shape == (E,)
    assert editor.edit(source, direction, 1.0).images.shape == source.image.shape


def test_steps_that_cannot_run_both_ways_are_refused():
    with pytest.raises(ValueError, match="7 sampling steps do not divide 1000: use 5 or 8"):
        replace(PARAMS, steps=7)
    with pytest.raises(ValueError, match="refine is -1"):
        replace(PARAMS, refine=-1)


def test_its_module_is_light_to_import():
    import subprocess
    import sys

    code = "import sys, pipeline.editors.deltaedit_d; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
