"""The editors that walk to noise and back, on small networks: what they do to s, what they keep, their masks."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from pipeline import delta_mapper
from pipeline.editors import _edit_direction, deltaedit_d_wplus, encode_decode, load
from pipeline.editors._diffusion import Masked, Settings
from pipeline.models import ode_solvers
from pipeline.models.unet import Denoiser
from pipeline.runtime.errors import InputError
from pipeline.values import ImagePair, Source, TextPair

S, E, R = 7, 5, 16
PARAMS = Settings(
    strength=1.0,
    threshold=0.3,
    agree=False,
    share=None,
    within=None,
    ridge=None,
    steps=4,
    solver="ddim",
    refine=1,
    guidance=1.0,
)
MASKED = Masked(
    1.0, 0.3, False, None, None, None, 4, "belm", 0, 1.0, 1.0, 0.0, 2, 1.0, 2.0, cell=4, clamp="mean", cut=0.4, seed=0
)
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
    lift, relevance = torch.randn(2 * E, S), F.normalize(torch.randn(S, E), dim=1)
    return SimpleNamespace(
        device="cpu",
        denoiser=network,
        mapper=lambda s, told: 0.1 * s + told @ lift,
        relevance=relevance,
        effect=lambda delta: relevance @ delta,
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
    own, told = (ode_solvers.standardise(code, *world.s_stats) for code in (source.s, s))
    noise = ode_solvers.encode(world.denoiser, source.image, own, PARAMS.walk, "eps")
    images = ode_solvers.decode(world.denoiser, noise, told, PARAMS.walk, "eps").x
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
    monkeypatch.setattr(_edit_direction, "REMEMBERED", 2)
    editor, source = load("deltaedit_d", world, PARAMS), people()
    for i in range(4):
        editor.edit(replace(source, s=source.s + i), editor.fit(PROMPT), 1.0)
    assert len(editor.known.things) == 2


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


def test_encode_decode_goes_a_part_of_the_way(world):
    source = people()
    whole = load("deltaedit_d", world, PARAMS)
    part = load("encode_decode", world, encode_decode.Params(*vars(PARAMS).values(), ratio=0.5, carry=0.0))
    images = []
    for editor, asked in ((whole, 12), (part, 6)):
        edited = editor.edit(source, editor.fit(PROMPT), 1.0)
        assert edited.evaluations == asked
        images.append(edited.images)
    assert (images[1] - source.image).square().mean() < (images[0] - source.image).square().mean()


def test_of_the_mapper_s_answer_only_channels_that_agree_with_their_effect_move_where_that_is_asked(world):
    source = people()
    editor = load("deltaedit_d", world, replace(PARAMS, agree=True, threshold=0.0))
    direction = editor.fit(PROMPT)
    moved = editor.edit(source, direction, 1.0).s - source.s
    effect = world.relevance @ direction.delta
    assert (moved * effect >= 0).all() and (moved != 0).any() and (moved == 0).any()


def test_guidance_goes_beyond_what_the_style_changes_at_twice_the_passes_down(world):
    source = people()
    plain, guided = (load("deltaedit_d", world, replace(PARAMS, guidance=factor)) for factor in (1.0, 2.0))
    direction = plain.fit(PROMPT)
    edited = guided.edit(source, direction, 1.0)
    assert edited.evaluations == 8 + 2 * 4 and plain.edit(source, direction, 1.0).evaluations == 8 + 4
    own, told = (ode_solvers.standardise(code, *world.s_stats) for code in (source.s, edited.s))
    noise = ode_solvers.encode(world.denoiser, source.image, own, PARAMS.walk, "eps")
    twice = lambda x, t, s: 2 * world.denoiser(x, t, told) - world.denoiser(x, t, own)  # noqa: E731
    expected = ode_solvers.decode(twice, noise, told, PARAMS.walk, "eps").x
    torch.testing.assert_close(edited.images, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    still = guided.edit(source, direction, 0.0)
    torch.testing.assert_close(still.images, plain.edit(source, direction, 0.0).images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "belm"])
def test_the_generators_change_is_carried_into_the_noise_where_decoding_begins(world, solver):
    class Drawing:
        def synthesis(self, s, w_plus):
            return s[:, :3, None, None].expand(-1, -1, R, R) + w_plus.mean()

    world.generator = Drawing()
    settings = encode_decode.Params(1.0, 0.3, False, None, None, None, 4, solver, 0, 1.0, ratio=0.5, carry=0.7)
    source, editor = people(), load("encode_decode", world, settings)
    edited = editor.edit(source, editor.fit(PROMPT), 1.0)
    change = (edited.s - source.s)[:, :3, None, None]
    own, told = (ode_solvers.standardise(code, *world.s_stats) for code in (source.s, edited.s))
    noise = ode_solvers.encode(world.denoiser, source.image, own, settings.walk, "eps")
    abar = ode_solvers.schedulers()[0].alphas_cumprod
    below, top = (abar[249], abar[499]) if solver == "belm" else (abar[0], abar[250])
    path = (noise.path[-2] + 0.7 * below.sqrt() * change, noise.x + 0.7 * top.sqrt() * change)
    expected = ode_solvers.decode(world.denoiser, ode_solvers.Sampled(path[1], 0, path), told, settings.walk, "eps").x
    torch.testing.assert_close(edited.images, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


# ---------------------------------------------------------------- masks


class Known(torch.nn.Module):
    """Says what the style's first number is, in the upper left quarter, and what noise there is."""

    objective, space = "eps", "s"

    def forward(self, x, t, s):
        said = torch.zeros_like(x)
        said[:, :, : R // 2, : R // 2] = s[:, :1, None, None]
        return 0.1 * x + said


class Sloped(Known):
    """Sees the style more and more to the right, and through the noise."""

    def forward(self, x, t, s):
        slope = torch.linspace(0, 1, R) ** 3
        return s[:, :1, None, None] * slope * (1 + 0.5 * x)


@pytest.fixture
def known(world):
    """The world with that denoiser, and a mapper that moves every channel alike."""
    ones = torch.ones(S)
    effect = torch.full((S, E), E**-0.5)
    mapper = lambda s, told: torch.ones_like(s)  # noqa: E731
    return SimpleNamespace(
        **{
            **vars(world),
            "denoiser": Known(),
            "mapper": mapper,
            "effect": lambda delta: effect @ delta,
            "s_stats": (0 * ones, ones),
        }
    )


def test_a_carried_change_stays_inside_the_mask(known):
    class Everywhere:
        def synthesis(self, s, w_plus):
            return s[:, :1, None, None].expand(-1, 3, R, R)

    known.generator = Everywhere()
    source = people()
    editor = load("deltaedit_dm", known, replace(MASKED, carry=2.0, ratio=0.5))
    plain = load("deltaedit_dm", known, replace(MASKED, ratio=0.5))
    one, other = (each.edit(source, each.fit(PROMPT), 1.0) for each in (editor, plain))
    outside = one.mask.expand_as(source.image) == 0
    assert torch.equal(one.images[outside], source.image[outside])
    assert (one.images - other.images).abs().max() > 0.1
    seen = []
    draw = known.denoiser.forward
    known.denoiser.forward = lambda x, t, s: seen.append(x) or draw(x, t, s)
    editor.edit(source, editor.fit(PROMPT), 1.0)
    path = editor.noise(source, keep=True).path
    first = seen[MASKED.draws]  # after the mask's, half of which are known: the first state on the way down
    assert torch.equal(first[outside], path[-2][outside]) and not torch.equal(first, path[-2])


@pytest.mark.parametrize("clamp", ["mean", "peak"])
def test_the_cut_is_of_three_times_the_mean_or_of_the_peak(known, clamp):
    known.denoiser = Sloped()
    source = people()
    editor = load("diffedit", known, replace(MASKED, cut=0.3, clamp=clamp))
    noisy_free = torch.linspace(0, 1, R) ** 3
    cells = noisy_free.view(-1, 4).mean(dim=1)
    most = 3 * cells.mean() if clamp == "mean" else cells.max()
    expected = (cells > 0.3 * most).float().repeat_interleave(4)
    mask = editor.edit(source, editor.fit(PROMPT), 1.0).mask
    assert (mask[:, 0, 8] == expected).all()


def test_cells_that_do_not_fill_the_picture_are_refused(world):
    editor = load("diffedit", world, replace(MASKED, cell=3))
    with pytest.raises(InputError, match="16 pixels are no whole cells of 3"):
        editor.edit(people(), editor.fit(PROMPT), 1.0)


@pytest.mark.parametrize("name", ["diffedit", "deltaedit_dm"])
def test_the_mask_is_where_the_style_is_seen_and_outside_it_pixels_are_the_inputs_own(known, name):
    source, editor = people(), load(name, known, MASKED)
    edited = editor.edit(source, editor.fit(PROMPT), 1.0)
    expected = torch.zeros(3, 1, R, R)
    expected[:, :, : R // 2, : R // 2] = 1
    assert torch.equal(edited.mask, expected)
    outside = edited.mask.expand_as(source.image) == 0
    assert torch.equal(edited.images[outside], source.image[outside])
    assert ((edited.images - source.image)[~outside]).abs().min() > 1e-3
    assert edited.evaluations == 4 + 3 + 2 * 2


def test_nothing_is_masked_where_nothing_stands_out_or_changes(known):
    source, editor = people(), load("diffedit", known, MASKED)
    for direction, strength in ((editor.fit(PROMPT), 0.0), (editor.fit(TextPair("face", "face")), 1.0)):
        edited = editor.edit(source, direction, strength)
        assert not edited.mask.any() and torch.equal(edited.images, source.image)
    known.denoiser.forward = lambda x, t, s: x + s[:, :1, None, None]  # everywhere alike
    assert not editor.edit(source, editor.fit(PROMPT), 1.0).mask.any()


def test_a_mask_is_made_of_whole_cells_and_a_higher_cut_takes_fewer(known):
    source, areas, known.denoiser = people(), [], Sloped()
    for cut in (0.2, 0.4, 0.6):
        editor = load("diffedit", known, replace(MASKED, cut=cut))
        mask = editor.edit(source, editor.fit(PROMPT), 1.0).mask
        assert torch.equal(F.avg_pool2d(mask, 4), F.max_pool2d(mask, 4))
        areas.append(mask.sum().item())
    assert areas[0] >= areas[1] >= areas[2] and areas[0] > areas[2]


def test_masks_do_not_depend_on_neighbours_and_their_noise_on_the_seed_alone(known):
    known.denoiser = Sloped()
    source, editor = people(), load("diffedit", known, MASKED)
    mask = editor.edit(source, editor.fit(PROMPT), 1.0).mask
    alone = [editor.edit(source.select([i]), editor.fit(PROMPT), 1.0).mask for i in range(3)]
    assert torch.equal(torch.cat(alone), mask)
    few = replace(MASKED, draws=1, cell=1)
    masks = [load("diffedit", known, replace(few, seed=seed)).mask(source, source.s + 1) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_settings_that_cannot_run_are_refused():
    with pytest.raises(ValueError, match="7 sampling steps do not divide 1000: use 5 or 8"):
        replace(PARAMS, steps=7)
    for wrong in ({"refine": -1}, {"solver": "magic"}, {"guidance": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(PARAMS, **wrong)
    for wrong in ({"draws": 0}, {"cell": 0}, {"noise": 0.0}, {"cut": 1.0}, {"ratio": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(MASKED, **wrong)


@pytest.fixture
def in_w_plus(world):
    """The world with a denoiser that is told w_plus, and a mapper of it."""
    width = 4 * 6
    network = Denoiser(R, (12, 12, 0), channels=8, mult=(1, 2), time_dim=12, style_dim=10, space="w_plus").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    lift = torch.randn(2 * E, width)
    world.denoiser, world.mapper_wplus = network, lambda w_plus, told: 0.1 * w_plus + told @ lift
    stats = torch.randn(width), torch.rand(width) + 0.5
    world.spread = {"w_plus": stats}.get
    world.generator = SimpleNamespace(num_ws=4, styles=lambda w_plus: w_plus.sum(dim=1))
    return world


def test_in_w_plus_the_noise_of_the_own_rows_is_decoded_under_the_moved_ones(in_w_plus):
    source, params = people(), deltaedit_d_wplus.Params(4, "ddim", 1, 1.0, strength=1.0)
    editor = load("deltaedit_d_wplus", in_w_plus, params)
    direction = editor.fit(PROMPT)
    edited = editor.edit(source, direction, 0.5)
    unit = F.normalize(direction.delta, dim=0)
    rows = source.w_plus.flatten(1)
    moved = rows + 0.5 * in_w_plus.mapper_wplus(rows, delta_mapper.condition(source.clip, unit))
    own, told = (ode_solvers.standardise(code, *in_w_plus.spread("w_plus")) for code in (rows, moved))
    noise = ode_solvers.encode(in_w_plus.denoiser, source.image, own, params.walk, "eps")
    torch.testing.assert_close(edited.images, ode_solvers.decode(in_w_plus.denoiser, noise, told, params.walk, "eps").x)
    torch.testing.assert_close(edited.s, moved.view(3, 4, 6).sum(dim=1))
    assert not torch.equal(edited.images, editor.edit(source, direction, 0.0).images)


def test_an_editor_refuses_a_denoiser_that_is_told_another_space(world, in_w_plus):
    source = people()
    in_s = load("deltaedit_d", in_w_plus, PARAMS)
    with pytest.raises(InputError, match=r"told w_plus: edit with deltaedit_d_wplus"):
        in_s.edit(source, in_s.fit(PROMPT), 1.0)
    in_w_plus.denoiser = Counted(R, (3, 4, 0), channels=8, mult=(1, 2), time_dim=12, style_dim=10)
    other = load("deltaedit_d_wplus", in_w_plus, deltaedit_d_wplus.Params(4, "ddim", 1, 1.0, strength=1.0))
    with pytest.raises(InputError, match=r"told s: edit with the other diffusion editors"):
        other.edit(source, other.fit(PROMPT), 1.0)


def test_its_module_is_light_to_import():
    import subprocess
    import sys

    code = "import sys, pipeline.editors.deltaedit_dm; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
