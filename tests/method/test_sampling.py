"""Codes of fakes and reals: a row's bytes depend on the row alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import sampling
from pipeline.models.stylegan2 import Generator
from pipeline.storage import artefacts


class MeanColour:
    """A CLIP whose embedding is the mean colour; records the shapes of its inputs."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        return images.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(16, 12, {4: 16, 8: 12, 16: 10}, n_mlp=2, split=(2, 4)).eval()


@given(st.integers(1, 40), st.sampled_from([8, 16, 24]))
@settings(max_examples=25, deadline=None)
def test_batches_are_always_full_and_rows_come_back_in_order(count: int, batch: int) -> None:
    sizes = []

    def step(x: torch.Tensor) -> tuple[torch.Tensor]:
        sizes.append(len(x))
        return (2 * x,)

    rows = torch.arange(count)
    assert torch.equal(sampling.fixed_batches(step, batch, rows)[0], 2 * rows)
    assert set(sizes) == {batch}


@pytest.mark.parametrize("batch", [0, 7, 12])
def test_a_batch_that_is_not_a_multiple_of_8_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        sampling.BatchParams(batch)


def test_a_fake_is_fixed_by_seed_and_row_id(generator: Generator) -> None:
    whole = sampling.sample_w(generator, range(100), seed=3, truncation=1.0, batch=16)
    part = sampling.sample_w(generator, range(37, 59), seed=3, truncation=1.0, batch=16)
    assert torch.equal(whole[37:59], part)
    assert not torch.equal(whole, sampling.sample_w(generator, range(100), seed=4, truncation=1.0, batch=16))
    assert len(torch.unique(whole, dim=0)) == 100


def test_noise_is_standard_normal_and_rows_are_independent() -> None:
    z = sampling.noise(range(4000), 8, seed=0)
    assert z.mean().abs() < 0.02 and (z.std() - 1).abs() < 0.02
    assert torch.corrcoef(torch.stack([z[:-1].flatten(), z[1:].flatten()]))[0, 1].abs() < 0.02
    assert not torch.equal(sampling.noise([2**32], 8, 0), sampling.noise([0], 8, 0))


def test_codes_of_fakes_do_not_depend_on_how_they_are_sharded(generator: Generator) -> None:
    w, clip = sampling.sample_w(generator, range(20), 0, 1.0), MeanColour()
    s, seen = sampling.fake_codes(generator, clip, w, 8)  # type: ignore[arg-type]
    shards = [sampling.fake_codes(generator, clip, rows, 8) for rows in w.split([8, 12])]  # type: ignore[arg-type]
    assert torch.equal(s, torch.cat([shard[0] for shard in shards]))
    assert torch.equal(seen, torch.cat([shard[1] for shard in shards]))
    assert s.dtype == torch.float16 and s.shape == (20, generator.layout.size)
    assert set(clip.shapes) == {(8, 3, 16, 16)}


def test_codes_of_a_fake_do_not_depend_on_its_neighbours(generator: Generator) -> None:
    w = sampling.sample_w(generator, range(8), 0, 1.0)
    others = sampling.sample_w(generator, range(50, 58), 0, 1.0)
    others[3] = w[3]
    for one, other in zip(*(sampling.fake_codes(generator, MeanColour(), rows, 8) for rows in (w, others))):  # type: ignore[arg-type]
        assert torch.equal(one[3], other[3])
        assert not torch.equal(one[2], other[2])


def test_a_real_has_the_embedding_of_its_photo_and_the_styles_of_its_inversion(generator: Generator) -> None:
    torch.manual_seed(1)
    w_plus, photos = torch.randn(5, generator.num_ws, 12), torch.rand(5, 3, 16, 16) * 2 - 1
    s, clip = sampling.real_codes(generator, MeanColour(), w_plus, photos, 8)  # type: ignore[arg-type]
    assert torch.allclose(clip, photos.mean(dim=(2, 3)))
    assert torch.allclose(s.float(), generator.styles(w_plus).half().float(), atol=2e-3)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_moments_are_those_of_all_rows_however_they_arrive(blocks: list[int]) -> None:
    torch.manual_seed(sum(blocks))
    rows = torch.randn(sum(blocks), 4) * torch.tensor([1.0, 10.0, 0.1, 0.0]) + torch.tensor([0.0, 500.0, -3.0, 2.0])
    moments = sampling.Moments()
    for block in rows.split(blocks):
        moments.add(block)
    found = moments.result()
    assert torch.allclose(found["mean"], rows.double().mean(dim=0).float(), atol=1e-5, rtol=1e-5)
    assert torch.allclose(found["std"], rows.double().std(dim=0, unbiased=False).float(), atol=1e-4, rtol=1e-4)


def test_every_fiftieth_fake_is_for_validation() -> None:
    splits = [artefacts.fake_split(row) for row in range(200)]
    assert [row for row, split in enumerate(splits) if split == "val"] == [0, 50, 100, 150]


def test_siblings_differ_in_the_redrawn_part_of_their_noise() -> None:
    z = sampling.noise(range(4000), 50, seed=5, redrawn=0.2)
    apart = (z[0::2] != z[1::2]).float().mean(dim=1)
    strangers = apart[::25]  # of every 50th, which is for validation
    assert (strangers == 1).all()
    apart = apart[torch.arange(len(apart)) % 25 != 0]
    assert 0.19 < apart.mean() < 0.21 and 0 < apart.min() < apart.max() < 0.6
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01  # spread as all others are
    assert torch.equal(sampling.noise([77], 50, seed=5, redrawn=0.2)[0], z[77])  # without its sibling being drawn
    as_published = sampling.noise(range(4000), 50, seed=5)
    assert torch.equal(as_published[0::2], z[0::2]) and not (as_published[0::2] == as_published[1::2]).any()


def test_siblings_differ_in_one_number_at_least() -> None:
    z = sampling.noise(range(2, 40), 8, seed=0, redrawn=1e-9)
    assert ((z[0::2] != z[1::2]).sum(dim=1) == 1).all()


@pytest.mark.parametrize("part", [0.0, -0.1, 1.1])
def test_redrawn_outside_0_to_1_is_refused(part: float) -> None:
    with pytest.raises(ValueError, match=f"redrawn is {part:g}"):
        sampling.SampleParams(count=10, seed=0, truncation=1.0, redrawn=part, shard=4)


@pytest.mark.usefixtures("bfloat16_pays")
def test_bfloat16_changes_embeddings_slightly_and_styles_not(generator: Generator) -> None:
    w = sampling.sample_w(generator, range(16), seed=0, truncation=1.0)
    found = {p: sampling.fake_codes(generator, MeanColour(), w, 8, p) for p in ("float32", "bfloat16")}  # type: ignore[arg-type]
    assert torch.equal(found["float32"][0], found["bfloat16"][0])
    assert found["bfloat16"][1].dtype == torch.float32
    assert 0 < (found["float32"][1] - found["bfloat16"][1]).abs().max() < 0.05
    assert torch.cosine_similarity(found["float32"][1], found["bfloat16"][1]).mean() > 0.999
