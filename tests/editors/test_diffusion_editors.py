"""Editors by inversion and sampling, on small networks: their change of s, what they keep, their masks."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from edited_world import apply
from torch.nn import functional as F

from pipeline import delta_mapper, sampling
from pipeline.editors import deltaedit_d_wplus, encode_decode, load
from pipeline.editors._diffusion import MaskedEditor, MaskParams, WholeImageParams
from pipeline.models import ode_solvers
from pipeline.models.unet import Denoiser
from pipeline.runtime.errors import InputError
from pipeline.values import ImagePair, Inversion, Source, TextPair

S, E, R = 7, 5, 16
SAMPLING = {"strength": 1.0, "threshold": 0.3, "steps": 4, "guidance": 1.0}
PARAMS = WholeImageParams(**SAMPLING, solver="ddim")
PARTIAL = {**SAMPLING, "encode_ratio": 0.5, "generator_share": 0.0}
MASKED = MaskParams(
    **{**PARTIAL, "encode_ratio": 1.0, "solver": "belm", "mask_draws": 2, "mask_noise": 1.0, "mask_cell": 4},
    **{"mask_clamp": "mean", "mask_threshold": 0.4, "seed": 0},
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
        mapper=lambda s, condition: 0.1 * s + condition @ lift,
        relevance=relevance,
        absent=lambda name: None,
        s_stats=(torch.randn(S), torch.rand(S) + 0.5),
        clip=SimpleNamespace(
            embed_images=lambda images: images.flatten(1)[:, :E],
            text_delta=lambda source, target, templates: torch.full((E,), 0.0 if source == target else 0.4),
        ),
        domain=SimpleNamespace(templates=("{}",)),
    )


def images_of(batch=3):
    torch.manual_seed(1)
    images = torch.rand(batch, 3, R, R) * 2 - 1
    return Source(images, Inversion(torch.randn(batch, 4, 6)), torch.randn(batch, S), torch.randn(batch, E))


def test_the_source_s_noise_is_sampled_under_the_masked_style(world):
    source, editor = images_of(), load("deltaedit_d", world, PARAMS)
    direction = editor.fit(PROMPT)
    edited = apply(editor, source, direction, 0.5)
    unit = F.normalize(direction.delta, dim=0)
    condition = torch.cat([F.normalize(source.clip, dim=1), unit.expand(3, -1)], dim=1)
    keep = (world.relevance @ direction.delta).abs() >= 0.3
    assert 0 < keep.sum() < S
    s = source.s + 0.5 * world.mapper(source.s, condition) * keep
    torch.testing.assert_close(edited.s, s)
    own, condition = (ode_solvers.standardise(code, *world.s_stats) for code in (source.s, s))
    noise = ode_solvers.encode(world.denoiser, source.image, own, PARAMS.trajectory, "eps")
    images = ode_solvers.decode(world.denoiser, noise, condition, PARAMS.trajectory, "eps").x
    torch.testing.assert_close(edited.images, images)
    assert edited.evaluations == 8 and edited.mask is None


def test_strength_zero_is_the_reconstruction_whatever_the_prompt(world):
    source, editor = images_of(), load("deltaedit_d", world, PARAMS)
    still = apply(editor, source, editor.fit(PROMPT), 0.0)
    other = apply(editor, source, editor.fit(TextPair("face", "face")), 1.0)
    assert torch.equal(still.images, other.images) and torch.equal(still.s, source.s)
    moved = apply(editor, source, editor.fit(PROMPT), 1.0)
    assert (moved.images - still.images).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "params", "prepare", "edit"), [("deltaedit_d", PARAMS, 4, 4), ("diffedit", MASKED, 6, 5)]
)
def test_images_are_inverted_once_for_all_their_edits(world, name, params, prepare, edit):
    editor = load(name, world, params)
    direction, prepared = editor.fit(PROMPT), editor.prepare(images_of())
    assert world.denoiser.calls == prepare
    first, again = (editor.edit(prepared, direction, 1.0) for _ in range(2))
    assert world.denoiser.calls == prepare + 2 * edit
    assert torch.equal(first.images, again.images) and first.evaluations == again.evaluations == prepare + edit


def test_an_edit_does_not_depend_on_the_batch(world):
    source, editor = images_of(), load("deltaedit_d", world, PARAMS)
    together = apply(editor, source, editor.fit(PROMPT), 1.0)
    alone = [apply(editor, source.select([i]), editor.fit(PROMPT), 1.0).images for i in range(3)]
    scale = together.images.std()
    torch.testing.assert_close(torch.cat(alone) / scale, together.images / scale, rtol=0, atol=1e-3)


def test_a_pair_of_images_is_a_condition(world):
    source, editor = images_of(), load("deltaedit_d", world, PARAMS)
    ends = torch.rand(2, 1, 3, R, R)
    direction = editor.fit(ImagePair(ends[0], ends[1]))
    assert direction.delta.shape == (E,)
    assert apply(editor, source, direction, 1.0).images.shape == source.image.shape


def test_encode_decode_inverts_a_part_of_the_steps(world):
    source = images_of()
    whole = load("deltaedit_d", world, PARAMS)
    part = load("encode_decode", world, encode_decode.Params(**PARTIAL, solver="ddim"))
    images = []
    for editor, asked in ((whole, 8), (part, 4)):
        edited = apply(editor, source, editor.fit(PROMPT), 1.0)
        assert edited.evaluations == asked
        images.append(edited.images)
    assert (images[1] - source.image).square().mean() < (images[0] - source.image).square().mean()


def test_same_sign_keeps_channels_that_move_along_their_effect(world):
    source = images_of()
    editor = load("deltaedit_d", world, replace(PARAMS, same_sign=True, threshold=0.0))
    direction = editor.fit(PROMPT)
    moved = apply(editor, source, direction, 1.0).s - source.s
    effect = world.relevance @ direction.delta
    assert (moved * effect >= 0).all() and (moved != 0).any() and (moved == 0).any()


def test_guidance_extrapolates_the_change_of_style_with_two_evaluations_per_step(world):
    source = images_of()
    plain, guided = (load("deltaedit_d", world, replace(PARAMS, guidance=factor)) for factor in (1.0, 2.0))
    direction = plain.fit(PROMPT)
    edited = apply(guided, source, direction, 1.0)
    assert edited.evaluations == 4 + 2 * 4 and apply(plain, source, direction, 1.0).evaluations == 4 + 4
    own, condition = (ode_solvers.standardise(code, *world.s_stats) for code in (source.s, edited.s))
    noise = ode_solvers.encode(world.denoiser, source.image, own, PARAMS.trajectory, "eps")
    twice = lambda x, t, s: 2 * world.denoiser(x, t, condition) - world.denoiser(x, t, own)  # noqa: E731
    expected = ode_solvers.decode(twice, noise, condition, PARAMS.trajectory, "eps").x
    torch.testing.assert_close(edited.images, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    still = apply(guided, source, direction, 0.0)
    torch.testing.assert_close(still.images, apply(plain, source, direction, 0.0).images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "belm"])
def test_the_generator_s_change_is_added_to_the_noise(world, solver):
    class Drawing:
        def synthesis(self, s, w_plus):
            return s[:, :3, None, None].expand(-1, -1, R, R) + w_plus.mean()

    world.generator = Drawing()
    settings = encode_decode.Params(**{**PARTIAL, "generator_share": 0.7}, solver=solver)
    source, editor = images_of(), load("encode_decode", world, settings)
    edited = apply(editor, source, editor.fit(PROMPT), 1.0)
    change = (edited.s - source.s)[:, :3, None, None]
    own, condition = (ode_solvers.standardise(code, *world.s_stats) for code in (source.s, edited.s))
    noise = ode_solvers.encode(world.denoiser, source.image, own, settings.trajectory, "eps")
    abar = ode_solvers.schedulers()[0].alphas_cumprod
    below, top = (abar[249], abar[499]) if solver == "belm" else (abar[0], abar[250])
    path = (noise.path[-2] + 0.7 * below.sqrt() * change, noise.x + 0.7 * top.sqrt() * change)
    expected = ode_solvers.decode(
        world.denoiser, ode_solvers.Sampled(path[1], 0, path), condition, settings.trajectory, "eps"
    ).x
    torch.testing.assert_close(edited.images, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


# ---------------------------------------------------------------- masks


class FirstChannel(torch.nn.Module):
    """Says what the style's first number is, in the upper left quarter, and what noise there is."""

    objective, space = "eps", "s"

    def forward(self, x, t, s):
        said = torch.zeros_like(x)
        said[:, :, : R // 2, : R // 2] = s[:, :1, None, None]
        return 0.1 * x + said


class Sloped(FirstChannel):
    """Sees the style more and more to the right, and through the noise."""

    def forward(self, x, t, s):
        slope = torch.linspace(0, 1, R) ** 3
        return s[:, :1, None, None] * slope * (1 + 0.5 * x)


@pytest.fixture
def known(world):
    """The world with that denoiser, and a mapper that moves every channel alike."""
    ones = torch.ones(S)
    mapper = lambda s, condition: torch.ones_like(s)  # noqa: E731
    return SimpleNamespace(
        **{
            **vars(world),
            "denoiser": FirstChannel(),
            "mapper": mapper,
            "relevance": torch.full((S, E), E**-0.5),
            "s_stats": (0 * ones, ones),
        }
    )


def test_the_generator_s_change_stays_inside_the_mask(known):
    class Everywhere:
        def synthesis(self, s, w_plus):
            return s[:, :1, None, None].expand(-1, 3, R, R)

    known.generator = Everywhere()
    source = images_of()
    editor = MaskedEditor(known, replace(MASKED, generator_share=2.0, encode_ratio=0.5))
    plain = load("deltaedit_dm", known, replace(MASKED, encode_ratio=0.5))
    one, other = (apply(each, source, each.fit(PROMPT), 1.0) for each in (editor, plain))
    outside = one.mask.expand_as(source.image) == 0
    assert torch.equal(one.images[outside], source.image[outside])
    assert (one.images - other.images).abs().max() > 0.1
    seen, prepared = [], editor.prepare(source)
    draw = known.denoiser.forward
    known.denoiser.forward = lambda x, t, s: seen.append(x) or draw(x, t, s)
    editor.edit(prepared, editor.fit(PROMPT), 1.0)
    path = prepared.noise.path
    first = seen[MASKED.mask_draws]  # after those of the mask: the first state of sampling
    assert torch.equal(first[outside], path[-2][outside]) and not torch.equal(first, path[-2])


@pytest.mark.parametrize("clamp", ["mean", "peak"])
def test_the_mask_threshold_is_of_three_times_the_mean_or_of_the_peak(known, clamp):
    known.denoiser = Sloped()
    source = images_of()
    editor = load("diffedit", known, replace(MASKED, mask_threshold=0.3, mask_clamp=clamp))
    noisy_free = torch.linspace(0, 1, R) ** 3
    cells = noisy_free.view(-1, 4).mean(dim=1)
    most = 3 * cells.mean() if clamp == "mean" else cells.max()
    expected = (cells > 0.3 * most).float().repeat_interleave(4)
    mask = apply(editor, source, editor.fit(PROMPT), 1.0).mask
    assert (mask[:, 0, 8] == expected).all()


def test_cells_that_do_not_divide_the_image_are_refused(world):
    editor = load("diffedit", world, replace(MASKED, mask_cell=3))
    with pytest.raises(InputError, match="mask_cell is 3: it does not divide images of 16 pixels"):
        apply(editor, images_of(), editor.fit(PROMPT), 1.0)


@pytest.mark.parametrize("name", ["diffedit", "deltaedit_dm"])
def test_the_mask_is_where_the_style_has_effect_and_pixels_outside_are_the_input_s(known, name):
    source, editor = images_of(), load(name, known, MASKED)
    edited = apply(editor, source, editor.fit(PROMPT), 1.0)
    expected = torch.zeros(3, 1, R, R)
    expected[:, :, : R // 2, : R // 2] = 1
    assert torch.equal(edited.mask, expected)
    outside = edited.mask.expand_as(source.image) == 0
    assert torch.equal(edited.images[outside], source.image[outside])
    assert ((edited.images - source.image)[~outside]).abs().min() > 1e-3
    assert edited.evaluations == 4 + 3 + 2 * 2


def test_the_mask_is_empty_where_no_cell_stands_out(known):
    source, editor = images_of(), load("diffedit", known, MASKED)
    for direction, strength in ((editor.fit(PROMPT), 0.0), (editor.fit(TextPair("face", "face")), 1.0)):
        edited = apply(editor, source, direction, strength)
        assert not edited.mask.any() and torch.equal(edited.images, source.image)
    known.denoiser.forward = lambda x, t, s: x + s[:, :1, None, None]  # everywhere alike
    assert not apply(editor, source, editor.fit(PROMPT), 1.0).mask.any()


def test_masks_consist_of_cells_and_shrink_with_the_threshold(known):
    source, areas, known.denoiser = images_of(), [], Sloped()
    for cut in (0.2, 0.4, 0.6):
        editor = load("diffedit", known, replace(MASKED, mask_threshold=cut))
        mask = apply(editor, source, editor.fit(PROMPT), 1.0).mask
        assert torch.equal(F.avg_pool2d(mask, 4), F.max_pool2d(mask, 4))
        areas.append(mask.sum().item())
    assert areas[0] >= areas[1] >= areas[2] and areas[0] > areas[2]


def test_masks_do_not_depend_on_the_batch_and_their_noise_on_the_seed_only(known):
    known.denoiser = Sloped()
    source, editor = images_of(), load("diffedit", known, MASKED)
    mask = apply(editor, source, editor.fit(PROMPT), 1.0).mask
    alone = [apply(editor, source.select([i]), editor.fit(PROMPT), 1.0).mask for i in range(3)]
    assert torch.equal(torch.cat(alone), mask)
    few = replace(MASKED, mask_draws=1, mask_cell=1)
    reseeded = [MaskedEditor(known, replace(few, seed=seed)) for seed in (1, 1, 2)]
    masks = [one.mask(one.prepare(source), source.s + 1) for one in reseeded]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_settings_that_cannot_run_are_refused():
    with pytest.raises(ValueError, match="7 sampling steps do not divide 1000: use 5 or 8"):
        replace(PARAMS, steps=7)
    for wrong in ({"solver": "magic"}, {"guidance": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(PARAMS, **wrong)
    for wrong in (
        {"mask_draws": 0},
        {"mask_cell": 0},
        {"mask_noise": 0.0},
        {"mask_threshold": 1.0},
        {"encode_ratio": 1.5},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(MASKED, **wrong)


@pytest.fixture
def in_w_plus(world, monkeypatch):
    """Networks with a denoiser and a mapper of w_plus."""
    width = 4 * 6
    network = Denoiser(R, (12, 12, 0), channels=8, mult=(1, 2), time_dim=12, style_dim=10, space="w_plus").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    lift = torch.randn(2 * E, width)
    world.denoiser, world.mapper_wplus = network, lambda w_plus, condition: 0.1 * w_plus + condition @ lift
    stats = torch.randn(width), torch.rand(width) + 0.5
    monkeypatch.setattr(sampling, "measured_stats", lambda generator, space: stats)
    world.generator = SimpleNamespace(num_ws=4, styles=lambda w_plus: w_plus.sum(dim=1))
    return world


def test_in_w_plus_the_noise_is_sampled_under_the_moved_rows(in_w_plus):
    source, params = images_of(), deltaedit_d_wplus.Params(1.0, 4, "ddim", 1.0)
    editor = load("deltaedit_d_wplus", in_w_plus, params)
    direction = editor.fit(PROMPT)
    edited = apply(editor, source, direction, 0.5)
    unit = F.normalize(direction.delta, dim=0)
    rows = source.inversion.w_plus.flatten(1)
    moved = rows + 0.5 * in_w_plus.mapper_wplus(rows, delta_mapper.condition(source.clip, unit))
    own, condition = (
        ode_solvers.standardise(code, *sampling.style_stats(in_w_plus, "w_plus")) for code in (rows, moved)
    )
    noise = ode_solvers.encode(in_w_plus.denoiser, source.image, own, params.trajectory, "eps")
    torch.testing.assert_close(
        edited.images, ode_solvers.decode(in_w_plus.denoiser, noise, condition, params.trajectory, "eps").x
    )
    torch.testing.assert_close(edited.s, moved.view(3, 4, 6).sum(dim=1))
    assert not torch.equal(edited.images, apply(editor, source, direction, 0.0).images)


def test_a_denoiser_of_another_space_is_refused(world, in_w_plus):
    source = images_of()
    in_s = load("deltaedit_d", in_w_plus, PARAMS)
    with pytest.raises(InputError, match="conditioned on w_plus: use deltaedit_d_wplus"):
        apply(in_s, source, in_s.fit(PROMPT), 1.0)
    in_w_plus.denoiser = Counted(R, (3, 4, 0), channels=8, mult=(1, 2), time_dim=12, style_dim=10)
    other = load("deltaedit_d_wplus", in_w_plus, deltaedit_d_wplus.Params(1.0, 4, "ddim", 1.0))
    with pytest.raises(InputError, match="conditioned on s: use the other diffusion editors"):
        apply(other, source, other.fit(PROMPT), 1.0)


def test_importing_an_editor_does_not_import_diffusers():
    import subprocess
    import sys

    code = "import sys, pipeline.editors.deltaedit_dm; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
