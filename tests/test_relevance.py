"""The relevance matrix against its definition computed channel by channel, and what true copies mean for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import relevance
from pipeline.generator import Generator
from pipeline.relevance import Probe, RelevanceParams, rows

N, S, L, D, E = 3, 7, 4, 5, 6
PARAMS = RelevanceParams(images=4, alpha=5.0, psi=0.7, seed=9)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def linear_probe(idle: int | None = None) -> tuple[Probe, Tensor, Tensor]:
    """A "picture" whose embedding is a fixed map of s and of the mean w; channel `idle` of s does nothing to it."""
    generator = torch.Generator().manual_seed(4)
    from_s, from_w = torch.randn(S, E, generator=generator), torch.randn(D, E, generator=generator)
    if idle is not None:
        from_s[idle] = 0
    s, w_plus = torch.randn(N, S, generator=generator), torch.randn(N, L, D, generator=generator)
    low = torch.linspace(-3, -1, S)
    embed = lambda styles, codes: styles @ from_s + codes.mean(dim=1) @ from_w  # noqa: E731
    return Probe(embed, s, w_plus, low, low + 4), from_s, from_w


def naive(probe: Probe, from_s: Tensor, from_w: Tensor) -> np.ndarray:
    """Every channel, every picture: embed both ends, unit; difference, unit; mean over pictures, unit."""
    s, matrix = probe.s.numpy(), np.zeros((S, E))
    for c in range(S):
        total = np.zeros(E)
        for n in range(N):
            ends = []
            for value in (probe.low[c].item(), probe.high[c].item()):
                styles = s[n].copy()  # all other channels stay what they were
                styles[c] = value
                ends.append(unit(styles @ from_s.numpy() + probe.w_plus[n].numpy().mean(axis=0) @ from_w.numpy()))
            total += unit(ends[1] - ends[0])
        matrix[c] = unit(total / N)
    return matrix


def test_the_matrix_is_the_definition_computed_picture_by_picture() -> None:
    probe, from_s, from_w = linear_probe()
    np.testing.assert_allclose(rows(probe, range(S)).numpy(), naive(probe, from_s, from_w), atol=1e-5)


def test_rows_are_unit_vectors_and_do_not_depend_on_how_the_channels_are_shared_out() -> None:
    probe, *_ = linear_probe()
    whole = rows(probe, range(S))
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(S))
    parts = torch.cat([rows(probe, range(5, S)), rows(probe, range(2)), rows(probe, range(2, 5))])
    assert torch.equal(parts, whole[[5, 6, 0, 1, 2, 3, 4]])


def test_the_pictures_to_try_on_are_never_written_to() -> None:
    probe, *_ = linear_probe()
    before = probe.s.clone(), probe.w_plus.clone()
    rows(probe, range(S))
    assert torch.equal(probe.s, before[0]) and torch.equal(probe.w_plus, before[1])


def test_a_channel_that_does_nothing_has_a_row_of_zeros_and_spoils_no_other() -> None:
    probe, *_ = linear_probe(idle=2)
    matrix = rows(probe, range(S))
    assert not matrix[2].any()
    assert torch.isfinite(matrix).all()
    torch.testing.assert_close(matrix.norm(dim=1), torch.tensor([1.0, 1, 0, 1, 1, 1, 1]))


def test_a_channel_moves_the_embedding_along_its_row() -> None:
    probe, from_s, _ = linear_probe()
    scaled = Probe(probe.embed, 1e-3 * probe.s, torch.zeros_like(probe.w_plus), -torch.ones(S), torch.ones(S))
    torch.testing.assert_close(rows(scaled, range(S)), F.normalize(from_s, dim=1), atol=1e-2, rtol=0)


class Brightness:
    """Stands for CLIP: how bright the three colours are in each half of the picture."""

    def embed_images(self, images: Tensor) -> Tensor:
        halves = images.chunk(2, dim=2)
        return torch.cat([half.mean(dim=(2, 3)) for half in halves], dim=1)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    made = Generator(16, D, {4: 6, 8: 5, 16: 4}, n_mlp=2).eval()
    made.w_mean.normal_()
    return made


def test_the_probe_of_a_generator_is_truncated_samples_and_alpha_sigma_around_the_mean(generator: Generator) -> None:
    mean, std = torch.randn(generator.layout.size), torch.rand(generator.layout.size) + 0.1
    probe = relevance.probe(generator, Brightness(), mean, std, PARAMS)  # type: ignore[arg-type]
    z = torch.randn(4, D, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        w = generator.w_mean + 0.7 * (generator.mapping(z) - generator.w_mean)
        assert torch.equal(probe.w_plus, w[:, None].expand(-1, 6, -1))
        assert torch.equal(probe.s, generator.styles(probe.w_plus))
        torch.testing.assert_close(probe.low, mean - 5 * std)
        torch.testing.assert_close(probe.high, mean + 5 * std)
        pictures = generator.synthesis(probe.s, probe.w_plus)
        assert torch.equal(probe.embed(probe.s, probe.w_plus), Brightness().embed_images(pictures))


def test_the_matrix_of_a_generator_is_the_definition_picture_by_picture(generator: Generator) -> None:
    mean, std = torch.zeros(generator.layout.size), torch.full((generator.layout.size,), 0.3)
    probe = relevance.probe(generator, Brightness(), mean, std, PARAMS)  # type: ignore[arg-type]
    matrix = rows(probe, range(generator.layout.size))
    assert matrix.shape == (generator.layout.size, 6) and not matrix.requires_grad
    for c in (0, 11, generator.layout.size - 1):
        moves = []
        for n in range(4):
            ends = []
            for value in (-1.5, 1.5):
                s = probe.s[n : n + 1].clone()
                s[0, c] = value
                with torch.no_grad():
                    image = generator.synthesis(s, probe.w_plus[n : n + 1])
                ends.append(unit(Brightness().embed_images(image)[0].double().numpy()))
            moves.append(unit(ends[1] - ends[0]))
        np.testing.assert_allclose(matrix[c].numpy(), unit(np.mean(moves, axis=0)), atol=2e-3)


def test_the_same_seed_gives_the_same_probe_and_another_one_another(generator: Generator) -> None:
    mean, std = torch.zeros(generator.layout.size), torch.ones(generator.layout.size)
    probes = [
        relevance.probe(generator, Brightness(), mean, std, RelevanceParams(2, 5.0, 0.7, seed))  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(probes[0].s, probes[1].s) and not torch.equal(probes[0].s, probes[2].s)
