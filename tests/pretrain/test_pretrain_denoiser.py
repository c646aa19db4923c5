"""Training of the denoiser on inversions, resumable and of the sizes that the generator decides."""

import pytest
import torch

from pipeline import denoiser_training
from pipeline.models.e4e import Encoder
from pipeline.models.stylegan2 import Generator
from pipeline.sampling import measured_stats
from pretrain import generator_supervised
from pretrain.denoiser import encoded_batches, steps

R, D = 16, 12
NUMBERS = {"channels": 8, "mult": (1, 2), "time_dim": 12, "style_dim": 10, "attention": ()}


class RandomImages:
    """Random images in place of renders."""

    def __init__(self) -> None:
        self.all = torch.rand(40, 3, R, R, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return len(self.all)

    def images(self, rows):
        return self.all[rows]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    generator = Generator(R, D, {4: 16, 8: 12, 16: 10}, n_mlp=2, split=(2, 4))
    encoder = Encoder(R, (6, 8, 12, 16), rows=6, style_dim=D, split=(2, 4))
    return encoder.eval().requires_grad_(False), generator.eval().requires_grad_(False)


def train(networks, state, until):
    encoder, generator = networks
    *_, (_, _, average) = steps(
        NUMBERS, RandomImages(), encoder, generator, *measured_stats(generator), state, until, batch=4
    )
    return average


def test_codes_are_the_standardised_styles_of_the_inversion(networks):
    encoder, generator = networks
    mean, std = measured_stats(generator)
    rows = torch.tensor([3, 0, 7])
    images, s = encoded_batches(RandomImages(), encoder, generator, mean, std)(rows, torch.Generator())
    assert torch.equal(images, RandomImages().all[rows])
    torch.testing.assert_close(s * std + mean, generator.styles(encoder(images)), rtol=1e-4, atol=1e-5)


def test_generated_images_mix_the_channels_of_two_samples(networks):
    encoder, generator = networks
    mean, std = measured_stats(generator)
    rows, chance = torch.arange(10), torch.Generator().manual_seed(1)
    images, s = encoded_batches(RandomImages(), encoder, generator, mean, std, generated_share=0.4)(rows, chance)
    assert torch.equal(images[:6], RandomImages().all[:6]) and len(images) == len(s) == 10
    raw = s[6:] * std + mean
    w = generator.mapping(torch.randn(8, D, generator=torch.Generator().manual_seed(1)))
    own, other = generator.styles(generator.repeat(w)).chunk(2)
    near = [(raw - code).abs() < 1e-4 for code in (own, other)]
    assert (near[0] | near[1]).all() and near[0].float().mean(dim=1).min() > 0.4 and not near[0].all()
    expected = generator.synthesis(raw, generator.repeat(w[:4])).clamp(-1, 1)
    torch.testing.assert_close(images[6:], expected, atol=1e-3, rtol=0)
    again = encoded_batches(RandomImages(), encoder, generator, mean, std, generated_share=0.4)(
        rows, torch.Generator().manual_seed(1)
    )
    assert torch.equal(images, again[0]) and torch.equal(s, again[1])


def test_originals_are_the_first_sample_or_the_image_itself(networks):
    encoder, generator = networks
    mean, std = measured_stats(generator)
    rows = torch.arange(10)
    images, s, before = encoded_batches(
        RandomImages(), encoder, generator, mean, std, generated_share=0.4, show_original=True
    )(rows, torch.Generator().manual_seed(1))
    plain = encoded_batches(RandomImages(), encoder, generator, mean, std, generated_share=0.4)(
        rows, torch.Generator().manual_seed(1)
    )
    assert torch.equal(images, plain[0]) and torch.equal(s, plain[1])
    w_plus = generator.repeat(generator.mapping(torch.randn(8, D, generator=torch.Generator().manual_seed(1))))[:4]
    expected = generator.synthesis(generator.styles(w_plus), w_plus).clamp(-1, 1)
    torch.testing.assert_close(before[6:], expected, atol=1e-3, rtol=0)
    assert torch.equal(before[:6], images[:6]) and (before[6:] - images[6:]).abs().max() > 1e-2


def test_known_codes_replace_the_inversions_of_a_part_of_the_renders(networks, monkeypatch):
    encoder, generator = networks
    known = torch.randn(3, 6, D)
    monkeypatch.setattr(generator_supervised, "codes", lambda g, people: known[: len(people)])
    data = RandomImages()
    data.people = lambda rows: iter(rows.tolist())
    mean, std = measured_stats(generator)
    rows = torch.arange(10)
    _, s = encoded_batches(data, encoder, generator, mean, std, known_code_share=0.3)(rows, torch.Generator())
    raw = s * std + mean
    torch.testing.assert_close(raw[:3], generator.styles(known), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(raw[3:], generator.styles(encoder(data.all[3:10])), rtol=1e-4, atol=1e-5)


def test_measured_stats_are_those_of_generated_styles(networks):
    _, generator = networks
    mean, std = measured_stats(generator, count=20_000)
    w = generator.mapping(torch.randn(20_000, D, generator=torch.Generator().manual_seed(5)))
    s = generator.styles(generator.repeat(w))
    assert (mean - s.mean(dim=0)).abs().max() < 0.05 * s.std(dim=0).max()
    torch.testing.assert_close(std, s.std(dim=0), rtol=0.05, atol=1e-4)


def test_the_generator_decides_the_sizes_and_a_resumed_training_ends_with_the_same_bytes(networks, tmp_path):
    _, generator = networks
    whole = train(networks, tmp_path / "whole.pt", 24)
    assert whole.spec["resolution"] == R
    assert tuple(whole.spec["style_sizes"]) == generator.layout.level_sizes
    assert set(whole.block_levels.values()) == {"coarse", "medium", "fine"}
    train(networks, tmp_path / "state.pt", 12)  # three steps, saved at the end
    resumed = train(networks, tmp_path / "state.pt", 24)
    for name, network in (("a", whole), ("b", resumed)):
        denoiser_training.save(tmp_path / name, network)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
