"""The relevance matrix against its definition computed channel by channel, image by image, with whole syntheses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import finite_differences, relevance
from pipeline.models.clip import Clip
from pipeline.models.stylegan2 import Generator
from pipeline.relevance import Part, Probe, RelevanceParams
from pipeline.runtime.errors import InputError
from pipeline.storage import params as sections

N, D, E = 11, 5, 7  # more images than one chunk, and not a multiple of it
PARAMS = RelevanceParams(images=N, alpha=5.0, psi=0.7, seed=9)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class TinyClip(nn.Module):
    """Stands for CLIP: a small nonlinear map of the image."""

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
        for layer in made.convolutions:
            layer.noise.weight.fill_(0.7)
            layer.activate.bias.normal_()
    return made.requires_grad_(False)


def probe_of(generator: Generator, params: RelevanceParams = PARAMS) -> Probe:
    torch.manual_seed(1)
    size = generator.layout.size
    clip: Clip = TinyClip().requires_grad_(False)  # type: ignore[assignment]
    return relevance.probe(generator, clip, torch.randn(size), torch.rand(size) / 4 + 0.1, params)


@torch.no_grad()
def embedded(probe: Probe, s: Tensor, image: int) -> np.ndarray:
    """The unit embedding of one image by a whole synthesis."""
    rgb = probe.generator.synthesis(s[None], probe.w_plus[image : image + 1])
    return unit(probe.clip.embed_images(rgb)[0].double().numpy())


def naive(probe: Probe, channel: int) -> np.ndarray:
    """Embed both ends, unit; difference, unit; mean over images, unit."""
    moves = []
    for image in range(len(probe.s)):
        low, high = probe.s[image].clone(), probe.s[image].clone()  # all other channels stay what they were
        low[channel] = probe.mean[channel] - probe.params.alpha * probe.std[channel]
        high[channel] = probe.mean[channel] + probe.params.alpha * probe.std[channel]
        moves.append(unit(embedded(probe, high, image) - embedded(probe, low, image)))
    return unit(np.mean(moves, axis=0))


def rows_of(probe: Probe, channels: range) -> Tensor:
    """Unit rows of some channels alone."""
    return F.normalize(relevance.compute(probe, Part(range(N), channels)), dim=1)


def cosines(found: Tensor, expected: Tensor) -> Tensor:
    return F.cosine_similarity(found.double(), expected.double(), dim=1)


# ---------------------------------------------------------------- finite differences


def test_every_row_equals_the_definition(generator: Generator) -> None:
    probe = probe_of(generator)
    found = relevance.matrix(probe)
    assert found.shape == (generator.layout.size, E) and not found.requires_grad
    expected = torch.from_numpy(np.stack([naive(probe, channel) for channel in range(generator.layout.size)]))
    assert cosines(found, expected).min() > 0.9999
    torch.testing.assert_close(found.norm(dim=1), torch.ones(generator.layout.size))


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("normalise", [False, True])
def test_changes_through_a_residual_clip_equal_whole_images(generator: Generator, normalise: bool) -> None:
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
def test_methods_that_would_round_whole_images_compute_in_float32(generator: Generator, changed: dict) -> None:
    asked = [replace(PARAMS, images=2, precision=precision, **changed) for precision in ("float32", "bfloat16")]
    exact, same = (relevance.matrix(probe_of(generator, params)) for params in asked)
    assert torch.equal(exact, same)


def test_rows_do_not_depend_on_the_parts(generator: Generator) -> None:
    probe = probe_of(generator)
    again = relevance.joined(probe, [relevance.compute(probe, part) for part in relevance.parts(probe)])
    assert torch.equal(again, relevance.matrix(probe))
    one_by_one = torch.cat([rows_of(probe, range(c, c + 1)) for c in range(4, 9)])  # over a layer's border
    torch.testing.assert_close(one_by_one, again[4:9], atol=2e-5, rtol=0)
    torch.testing.assert_close(rows_of(probe, range(4, 9)), again[4:9], atol=2e-5, rtol=0)


def test_parts_with_the_same_images_share_one_forward_pass(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    forward_pass = finite_differences.forward_pass
    monkeypatch.setattr(
        finite_differences, "forward_pass", lambda g, c, s, *rest: passed.append(len(s)) or forward_pass(g, c, s, *rest)
    )
    relevance.matrix(probe_of(generator))
    assert passed == [8, N - 8]


@pytest.mark.parametrize("most", [2, 6, 64])
def test_rows_do_not_depend_on_the_micro_batch(
    generator: Generator, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = probe_of(generator)
    expected = relevance.matrix(probe)
    monkeypatch.setattr(finite_differences, "MOST", {"cpu": most})
    assert finite_differences.micro_batch(generator, torch.device("cpu")) == most
    torch.testing.assert_close(relevance.matrix(probe), expected, atol=2e-5, rtol=0)


def test_the_micro_batch_of_large_images_fits_the_memory_limit() -> None:
    with torch.device("meta"):
        large = Generator(1024, 8, {2**k: 2**5 for k in range(2, 11)}, n_mlp=1)
    held = finite_differences.micro_batch(large, torch.device("cpu")) * 32 * 1024**2 * 4 * finite_differences.BUFFERS
    assert held <= 2 * 2**30  # two images, at the least


def test_accumulated_rows_are_the_mean_over_images_however_they_come() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 7, 3, 4))
    after[2, 1] = before[2, 1] * 2  # the same direction: no change
    expected = np.zeros((3, 4))
    for image, row in np.ndindex(7, 3):
        if (image, row) != (2, 1):
            expected[row] += unit(unit(after[image, row]) - unit(before[image, row])) / 7
    mean, done = torch.zeros(3, 4, dtype=torch.float64), 0
    for size in (3, 1, 0, 3):
        block = slice(done, done + size)
        ends = torch.from_numpy(before[block]), torch.from_numpy(after[block])
        mean = finite_differences.accumulate(mean, *ends, done)
        done += size
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-12)


def test_the_probe_is_not_modified(generator: Generator) -> None:
    probe = probe_of(generator, replace(PARAMS, emulate_published=True))
    before = probe.s.clone(), probe.w_plus.clone(), probe.mean.clone()
    relevance.matrix(probe)
    assert all(torch.equal(a, b) for a, b in zip((probe.s, probe.w_plus, probe.mean), before, strict=True))


def test_a_channel_without_effect_has_a_zero_row_and_changes_no_other(generator: Generator) -> None:
    probe = probe_of(generator)
    still = replace(probe, std=probe.std.clone())
    still.std[8] = 0
    found = rows_of(still, range(6, 15))
    assert not found[2].any() and torch.isfinite(found).all()
    others = [0, 1, 3, 4, 5, 6, 7, 8]
    torch.testing.assert_close(found[others], rows_of(probe, range(6, 15))[others])


def test_emulate_published_equals_the_released_loop(generator: Generator) -> None:
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


def test_reverse_mode_is_the_limit_of_small_differences(generator: Generator) -> None:
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


def test_prompt_relevance_equals_the_matrix_times_the_text_difference(generator: Generator) -> None:
    probe = probe_of(generator, replace(PARAMS, method="reverse", images=3))
    delta_t = torch.randn(E)
    exact = relevance.matrix(probe) @ delta_t
    torch.testing.assert_close(relevance.prompt_relevance(probe, delta_t, cotangents=E), exact, atol=1e-4, rtol=0)
    estimate = relevance.prompt_relevance(probe, delta_t, cotangents=4)
    assert torch.equal(estimate, relevance.prompt_relevance(probe, delta_t, cotangents=4))
    assert F.cosine_similarity(estimate, exact, dim=0) > 0.8
    assert not relevance.prompt_relevance(probe, torch.zeros(E)).any()


# ---------------------------------------------------------------- images and parameters


def test_the_probe_has_truncated_samples_and_ends_at_alpha_sigma(generator: Generator) -> None:
    probe = probe_of(generator)
    z = torch.randn(N, D, generator=torch.Generator().manual_seed(9))
    w = generator.w_mean + 0.7 * (generator.mapping(z) - generator.w_mean)
    assert torch.equal(probe.w_plus, w[:, None].expand(-1, 6, -1))
    assert torch.equal(probe.s, generator.styles(probe.w_plus))
    torch.testing.assert_close(probe.low, probe.mean - 5 * probe.std)
    torch.testing.assert_close(probe.high, probe.mean + 5 * probe.std)


def test_the_seed_fixes_the_images(generator: Generator) -> None:
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
        ({"method": "reverse", "emulate_published": True}, "emulate_published"),
    ],
)
def test_bad_parameters_are_one_line_that_names_them(changed: dict, named: str) -> None:
    values = {"images": 2, "alpha": 5.0, "psi": 0.7, "seed": 0, **changed}
    with pytest.raises(InputError) as error:
        sections.build(RelevanceParams, values, "relevance")
    assert named in str(error.value) and "relevance" in str(error.value) and "\n" not in str(error.value)
