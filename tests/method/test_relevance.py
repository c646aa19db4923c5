"""The relevance matrix against its definition computed channel by channel, picture by picture, with whole syntheses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import differences, perturbation, relevance
from pipeline.models.clip import Clip
from pipeline.models.stylegan2 import Generator
from pipeline.relevance import Part, Probe, RelevanceParams
from pipeline.runtime.errors import InputError
from pipeline.storage import params as sections

N, D, E = 11, 5, 7  # more pictures than are held at once, and not a multiple of it
PARAMS = RelevanceParams(images=N, alpha=5.0, psi=0.7, seed=9)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Eye(nn.Module):
    """Stands for CLIP: a small curved map of the picture."""

    dim = E

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 5, stride=3), nn.Linear(4 * 16, E)

    def embed_images(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(images)).flatten(1)).float()


@pytest.fixture(scope="module")
def generator() -> Generator:
    """All sizes differ; noise and biases are not zero."""
    torch.manual_seed(0)
    made = Generator(16, D, {4: 6, 8: 9, 16: 4}, n_mlp=2).eval()
    made.w_mean.normal_()
    with torch.no_grad():
        for layer in made.styled:
            layer.noise.weight.fill_(0.7)
            layer.activate.bias.normal_()
    return made.requires_grad_(False)


def probe_of(generator: Generator, params: RelevanceParams = PARAMS) -> Probe:
    torch.manual_seed(1)
    size = generator.layout.size
    eye: Clip = Eye().requires_grad_(False)  # type: ignore[assignment]
    return relevance.probe(generator, eye, torch.randn(size), torch.rand(size) / 4 + 0.1, params)


@torch.no_grad()
def embedded(probe: Probe, s: Tensor, picture: int) -> np.ndarray:
    """The unit embedding of one picture by a whole synthesis."""
    image = probe.generator.synthesis(s[None], probe.w_plus[picture : picture + 1])
    return unit(probe.clip.embed_images(image)[0].double().numpy())


def naive(probe: Probe, channel: int) -> np.ndarray:
    """Embed both ends, unit; difference, unit; mean over pictures, unit."""
    moves = []
    for picture in range(len(probe.s)):
        low, high = probe.s[picture].clone(), probe.s[picture].clone()  # all other channels stay what they were
        low[channel] = probe.mean[channel] - probe.params.alpha * probe.std[channel]
        high[channel] = probe.mean[channel] + probe.params.alpha * probe.std[channel]
        moves.append(unit(embedded(probe, high, picture) - embedded(probe, low, picture)))
    return unit(np.mean(moves, axis=0))


def rows_of(probe: Probe, channels: range) -> Tensor:
    """Unit rows of some channels alone."""
    return F.normalize(relevance.compute(probe, Part(range(N), channels)), dim=1)


def cosines(found: Tensor, expected: Tensor) -> Tensor:
    return F.cosine_similarity(found.double(), expected.double(), dim=1)


# ---------------------------------------------------------------- finite differences


def test_every_row_of_every_layer_is_the_definition(generator: Generator) -> None:
    probe = probe_of(generator)
    found = relevance.matrix(probe)
    assert found.shape == (generator.layout.size, E) and not found.requires_grad
    expected = torch.from_numpy(np.stack([naive(probe, channel) for channel in range(generator.layout.size)]))
    assert cosines(found, expected).min() > 0.9999
    torch.testing.assert_close(found.norm(dim=1), torch.ones(generator.layout.size))


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("normalise", [False, True])
def test_changes_pass_through_a_residual_clip_as_whole_pictures_do(generator: Generator, normalise: bool) -> None:
    torch.manual_seed(2)
    vision = {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 64}
    clip = Clip({"embed_dim": 6, "vision": vision, "text": {"width": 8, "heads": 1, "layers": 1}}, normalise)
    for module in clip.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, std=0.3)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
    probe = replace(probe_of(generator, replace(PARAMS, images=3)), clip=clip.eval().requires_grad_(False))
    chosen = range(0, generator.layout.size, 3)
    expected = torch.from_numpy(np.stack([naive(probe, channel) for channel in chosen]))
    assert cosines(relevance.matrix(probe)[chosen.start :: chosen.step], expected).min() > 0.9999
    half = replace(probe, params=replace(probe.params, precision="bfloat16"))
    assert cosines(relevance.matrix(half)[chosen.start :: chosen.step], expected).min() > 0.999


@pytest.mark.usefixtures("bfloat16_pays")
def test_bfloat16_gives_nearly_the_same_rows(generator: Generator) -> None:
    exact = relevance.matrix(probe_of(generator))
    rough = relevance.matrix(probe_of(generator, replace(PARAMS, precision="bfloat16")))
    assert 0.999 < cosines(rough, exact).min() < 1 - 1e-7


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("changed", [{"method": "reverse"}, {"emulate_published": True}])
def test_what_would_round_whole_pictures_is_computed_in_float32(generator: Generator, changed: dict) -> None:
    asked = [replace(PARAMS, images=2, precision=precision, **changed) for precision in ("float32", "bfloat16")]
    exact, same = (relevance.matrix(probe_of(generator, params)) for params in asked)
    assert torch.equal(exact, same)


def test_rows_do_not_depend_on_how_the_channels_are_shared_out_by_the_stage(generator: Generator) -> None:
    probe = probe_of(generator)
    again = relevance.joined(probe, [relevance.compute(probe, part) for part in relevance.parts(probe)])
    assert torch.equal(again, relevance.matrix(probe))
    one_by_one = torch.cat([rows_of(probe, range(c, c + 1)) for c in range(4, 9)])  # over a layer's border
    torch.testing.assert_close(one_by_one, again[4:9], atol=2e-5, rtol=0)
    torch.testing.assert_close(rows_of(probe, range(4, 9)), again[4:9], atol=2e-5, rtol=0)


def test_pictures_are_passed_over_once_for_all_parts_that_need_them(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    base = differences.base
    monkeypatch.setattr(differences, "base", lambda g, c, s, *rest: passed.append(len(s)) or base(g, c, s, *rest))
    relevance.matrix(probe_of(generator))
    assert passed == [8, N - 8]


@pytest.mark.parametrize("most", [2, 6, 64])
def test_the_size_of_a_pass_changes_nothing_but_the_memory(
    generator: Generator, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = probe_of(generator)
    expected = relevance.matrix(probe)
    monkeypatch.setattr(perturbation, "MOST", {"cpu": most})
    assert perturbation.micro_batch(generator, torch.device("cpu")) == most
    torch.testing.assert_close(relevance.matrix(probe), expected, atol=2e-5, rtol=0)


def test_a_pass_over_large_pictures_is_small() -> None:
    with torch.device("meta"):
        large = Generator(1024, 8, {2**k: 2**5 for k in range(2, 11)}, n_mlp=1)
    held = perturbation.micro_batch(large, torch.device("cpu")) * 32 * 1024**2 * 4 * perturbation.BUFFERS
    assert held <= 2 * 2**30  # two pictures, at the least


def test_the_pictures_to_try_on_are_never_written_to(generator: Generator) -> None:
    probe = probe_of(generator, replace(PARAMS, emulate_published=True))
    before = probe.s.clone(), probe.w_plus.clone(), probe.mean.clone()
    relevance.matrix(probe)
    assert all(torch.equal(a, b) for a, b in zip((probe.s, probe.w_plus, probe.mean), before, strict=True))


def test_a_channel_that_does_nothing_has_a_row_of_zeros_and_spoils_no_other(generator: Generator) -> None:
    probe = probe_of(generator)
    still = replace(probe, std=probe.std.clone())
    still.std[8] = 0
    found = rows_of(still, range(6, 15))
    assert not found[2].any() and torch.isfinite(found).all()
    others = [0, 1, 3, 4, 5, 6, 7, 8]
    torch.testing.assert_close(found[others], rows_of(probe, range(6, 15))[others])


def test_the_published_script_leaves_every_channel_it_tried_at_its_mean(generator: Generator) -> None:
    probe = probe_of(generator, replace(PARAMS, emulate_published=True))
    codes, expected = probe.s.clone(), []  # `codes` is written to, cumulatively, as in the released loop
    for channel in range(generator.layout.size):
        ends = []
        codes[:, channel] = probe.mean[channel]
        for sign in (-1, 1):
            tried = codes.clone()
            tried[:, channel] += sign * probe.params.alpha * probe.std[channel]
            ends.append(np.stack([embedded(probe, tried[n], n) for n in range(N)]))
        expected.append(unit(unit(ends[1] - ends[0]).mean(axis=0)))
    found = relevance.matrix(probe)
    assert cosines(found, torch.from_numpy(np.stack(expected))).min() > 0.9999
    assert cosines(found, relevance.matrix(probe_of(generator))).min() < 0.99


@pytest.mark.parametrize("method", ["finite", "reverse"])
def test_rows_of_layers_that_are_not_asked_for_stay_zero(generator: Generator, method: str) -> None:
    asked = replace(PARAMS, method=method, images=2)
    some, whole = (relevance.matrix(probe_of(generator, replace(asked, layers=chosen))) for chosen in ((0, 2), None))
    layout = generator.layout
    for layer in range(len(layout.dims)):
        rows = some[layout.layer(layer)]
        assert torch.equal(rows, whole[layout.layer(layer)]) if layer in (0, 2) else not rows.any()


# ---------------------------------------------------------------- derivatives


def test_reverse_mode_is_the_mean_unit_derivative(generator: Generator) -> None:
    probe = probe_of(generator, replace(PARAMS, method="reverse", images=3))
    found = relevance.matrix(probe)

    def embed(s: Tensor, w_plus: Tensor) -> Tensor:
        return F.normalize(probe.clip.embed_images(generator.synthesis(s[None], w_plus[None])), dim=1)[0]

    jacobians = [
        torch.autograd.functional.jacobian(lambda s, w=w: embed(s, w), s)  # [E,S]
        for s, w in zip(probe.s, probe.w_plus, strict=True)
    ]
    rows = torch.stack([F.normalize(j.T, dim=1) for j in jacobians]).mean(dim=0)  # type: ignore[union-attr]
    torch.testing.assert_close(found, F.normalize(rows, dim=1), atol=1e-4, rtol=0)


def test_reverse_mode_is_where_small_differences_lead(generator: Generator) -> None:
    probe = probe_of(generator, replace(PARAMS, method="reverse", images=2))
    found, size = relevance.matrix(probe), generator.layout.size
    double = replace(
        probe, generator=generator.double(), clip=probe.clip.double(), s=probe.s.double(), w_plus=probe.w_plus.double()
    )
    try:
        for channel in range(0, size, 5):
            moves = []
            for n in range(2):
                low, high = double.s[n].clone(), double.s[n].clone()
                low[channel], high[channel] = low[channel] - 1e-2, high[channel] + 1e-2
                moves.append(unit(embedded(double, high, n) - embedded(double, low, n)))
            assert unit(np.mean(moves, axis=0)) @ found[channel].double().numpy() > 0.999
    finally:
        generator.float()


def test_a_prompt_needs_no_matrix(generator: Generator) -> None:
    probe = probe_of(generator, replace(PARAMS, method="reverse", images=3))
    delta_t = torch.randn(E)
    exact = relevance.matrix(probe) @ delta_t
    torch.testing.assert_close(relevance.prompt_relevance(probe, delta_t, cotangents=E), exact, atol=1e-4, rtol=0)
    estimate = relevance.prompt_relevance(probe, delta_t, cotangents=4)
    assert torch.equal(estimate, relevance.prompt_relevance(probe, delta_t, cotangents=4))
    assert F.cosine_similarity(estimate, exact, dim=0) > 0.8
    assert not relevance.prompt_relevance(probe, torch.zeros(E)).any()


# ---------------------------------------------------------------- pictures and parameters


def test_the_probe_of_a_generator_is_truncated_samples_and_alpha_sigma_around_the_mean(generator: Generator) -> None:
    probe = probe_of(generator)
    z = torch.randn(N, D, generator=torch.Generator().manual_seed(9))
    w = generator.w_mean + 0.7 * (generator.mapping(z) - generator.w_mean)
    assert torch.equal(probe.w_plus, w[:, None].expand(-1, 6, -1))
    assert torch.equal(probe.s, generator.styles(probe.w_plus))
    torch.testing.assert_close(probe.low, probe.mean - 5 * probe.std)
    torch.testing.assert_close(probe.high, probe.mean + 5 * probe.std)


def test_the_same_seed_gives_the_same_pictures_and_another_one_others(generator: Generator) -> None:
    probes = [probe_of(generator, replace(PARAMS, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(probes[0].s, probes[1].s) and not torch.equal(probes[0].s, probes[2].s)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"images": 0}, "images"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"method": "forward"}, "method"),
        ({"precision": "float16"}, "precision"),
        ({"layers": []}, "layers"),
        ({"layers": [-1]}, "layers"),
        ({"layers": [1.5]}, "layers"),
        ({"method": "reverse", "emulate_published": True}, "emulate_published"),
    ],
)
def test_bad_parameters_are_one_line_that_names_them(changed: dict, named: str) -> None:
    values = {"images": 2, "alpha": 5.0, "psi": 0.7, "seed": 0, **changed}
    with pytest.raises(InputError) as error:
        sections.build(RelevanceParams, values, "relevance")
    assert named in str(error.value) and "relevance" in str(error.value) and "\n" not in str(error.value)


def test_a_layer_that_the_generator_lacks_is_refused(generator: Generator) -> None:
    with pytest.raises(InputError, match="no layer 7: this generator has layers 0 to 4"):
        probe_of(generator, replace(PARAMS, layers=(0, 7)))
