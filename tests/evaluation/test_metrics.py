"""Metrics whose answers can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation import metrics
from pipeline.evaluation.bootstrap import Bootstrap, Metric, metric


def flat(level: float, size: int = 16) -> torch.Tensor:
    """One image of one colour; `level` on the [0,1] scale."""
    return torch.full((1, 3, size, size), 2 * level - 1)


def square(size: int, height: int, width: int) -> torch.Tensor:
    """A region in the upper left corner, [1,1,size,size]."""
    region = torch.zeros(1, 1, size, size, dtype=torch.bool)
    region[:, :, :height, :width] = True
    return region


# ---------------------------------------------------------------- images


def test_psnr_of_a_known_error() -> None:
    assert metrics.mse(flat(0.6), flat(0.5)).item() == pytest.approx(0.01, rel=1e-5)
    assert metrics.psnr(flat(0.6), flat(0.5)).item() == pytest.approx(20.0, abs=1e-4)


def test_psnr_is_taken_per_image_before_any_mean() -> None:
    pair = torch.cat([flat(0.6), flat(0.51)])
    assert metrics.psnr(pair, flat(0.5).expand(2, -1, -1, -1)).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_equal_images_have_a_finite_psnr() -> None:
    assert metrics.psnr(flat(0.3), flat(0.3)).item() == metrics.PSNR_CEILING


def test_values_beyond_the_range_of_an_encoded_image_do_not_count() -> None:
    assert metrics.mse(flat(1.0) + 5, flat(1.0)).item() == 0


def test_ssim_of_equal_images_is_one() -> None:
    image = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert metrics.ssim(image, image).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_ssim_of_flat_images_follows_the_formula_with_zeros_beyond_the_border() -> None:
    a, b, size = 0.25, 0.75, 16
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    inside = np.array([sum(w for o, w in zip(offsets, weights, strict=True) if 0 <= i + o < size) for i in range(size)])
    mass = np.outer(inside, inside)  # the share of the window that lies on the image; 1 in the middle
    spread = mass * (1 - mass)
    luminance = (2 * a * b * mass**2 + 1e-4) / ((a * a + b * b) * mass**2 + 1e-4)
    structure = (2 * a * b * spread + 9e-4) / ((a * a + b * b) * spread + 9e-4)
    assert metrics.ssim(flat(a), flat(b)).item() == pytest.approx((luminance * structure).mean(), abs=1e-5)


def test_ssim_is_its_definition_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(1, 3, 12, 12, generator=generator).double()
    b = (a + 0.3 * torch.rand(a.shape, generator=generator)).clamp(0, 1).double()
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    weights = torch.outer(line, line) / line.sum() ** 2
    framed_a, framed_b = (torch.nn.functional.pad(image, (5, 5, 5, 5)) for image in (a, b))
    values = []
    for y in range(12):
        for x in range(12):
            p, q = framed_a[..., y : y + 11, x : x + 11], framed_b[..., y : y + 11, x : x + 11]
            mean_p, mean_q = ((patch * weights).sum((-1, -2), keepdim=True) for patch in (p, q))
            var_p, var_q, both = (
                (left * right * weights).sum((-1, -2), keepdim=True)
                for left, right in ((p - mean_p, p - mean_p), (q - mean_q, q - mean_q), (p - mean_p, q - mean_q))
            )
            top = (2 * mean_p * mean_q + 1e-4) * (2 * both + 9e-4)
            values.append(top / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4)))
    assert metrics.ssim(2 * a - 1, 2 * b - 1).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-9)


def test_cosine_of_right_angles_opposites_and_zero() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 3.0], [-1.0, -1.0], [5.0, 0.0], [1.0, 0.0]])
    assert metrics.cosine(a, b).tolist() == pytest.approx([0, -1, 1, 0], abs=1e-6)


# ---------------------------------------------------------------- attributes


def test_reached_is_everything_asked_for_and_ignores_the_rest() -> None:
    read = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    expected = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 2], [1, 1, 2]])
    asked = torch.tensor([[True, False, False], [True, True, False], [True, True, False], [False, True, True]])
    assert metrics.reached(read, expected, asked).tolist() == [1, 1, 0, 1]


def test_kept_is_the_share_of_the_counted_attributes() -> None:
    read = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 0]])
    expected = torch.tensor([[0, 0, 2, 1], [0, 1, 1, 1]])
    counted = torch.tensor([[False, True, True, False], [False, False, False, False]])
    kept = metrics.kept(read, expected, counted).tolist()
    assert kept[0] == 0.5
    assert math.isnan(kept[1])


def test_balanced_accuracy_of_always_reading_the_common_class_is_chance() -> None:
    labels = torch.tensor([0] * 97 + [1] * 2 + [2])
    columns = metrics.class_columns(labels == 0, labels)
    assert Bootstrap().mean(columns)["value"] == pytest.approx(1 / 3, abs=1e-6) and columns.shape == (100, 3)


def test_balanced_accuracy_counts_each_class_alike() -> None:
    labels, read = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 0])
    columns = metrics.class_columns(read == labels, labels)
    assert Bootstrap().mean(columns)["value"] == pytest.approx((0.75 + 0.5) / 2)


# ---------------------------------------------------------------- Frechet distance


def test_frechet_distance_of_shifted_clouds_is_the_squared_shift() -> None:
    cloud = np.random.default_rng(0).normal(size=(50, 4))
    assert metrics.frechet_distance(cloud, cloud + np.array([3, 0, 4, 0])) == pytest.approx(25.0)


def test_frechet_distance_of_a_stretched_line_is_the_squared_difference_of_deviations() -> None:
    line = np.array([[-1.0], [0.0], [1.0]])  # variance 1
    assert metrics.frechet_distance(line, 3 * line) == pytest.approx((3 - 1) ** 2)


def test_frechet_distance_of_commuting_covariances_is_that_of_their_axes() -> None:
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=float) * math.sqrt(3 / 4)  # covariance identity
    assert metrics.frechet_distance(corners * [2, 1], corners * [5, 3]) == pytest.approx((5 - 2) ** 2 + (3 - 1) ** 2)


def test_frechet_distance_works_with_fewer_rows_than_features() -> None:
    rng = np.random.default_rng(1)
    few = rng.normal(size=(5, 30))
    assert metrics.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert math.isnan(metrics.frechet_distance(few[:1], few))


def test_weights_repeat_rows() -> None:
    rng = np.random.default_rng(2)
    a, b, weights = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), np.array([0, 1, 2, 3, 1, 1])
    written_out = metrics.frechet_distance(a.repeat(weights, axis=0), b.repeat(weights, axis=0))
    assert metrics.frechet_distance(a, b, weights.astype(float)) == pytest.approx(written_out)


# ---------------------------------------------------------------- alignment


def test_differences_are_aligned_where_embeddings_are_not() -> None:
    rng = torch.Generator().manual_seed(0)
    meanings = 0.2 * torch.randn(40, 16, generator=rng)
    image_embeddings = torch.randn(16, generator=rng) + meanings
    text_embeddings = torch.randn(16, generator=rng) + meanings
    numbers = metrics.alignment(image_embeddings, text_embeddings, Bootstrap(50))
    assert numbers["delta_cos_paired"]["value"] > 0.9 > numbers["raw_cos_paired"]["value"]
    assert abs(numbers["delta_cos_mismatched"]["value"]) < 0.1
    assert numbers["retrieval_delta"]["value"] > numbers["retrieval_raw"]["value"]
    assert numbers == metrics.alignment(3 * image_embeddings, text_embeddings / 2, Bootstrap(50))
    assert metrics.alignment(image_embeddings, text_embeddings.roll(1, 0))["delta_cos_paired"]["value"] < 0.2


def test_delta_cosines_of_parallel_and_of_crossed_differences() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    paired, mismatched = metrics.delta_cosines(images, 5 * images)
    assert paired.tolist() == pytest.approx([1, 1]) and mismatched.tolist() == pytest.approx([0, 0])
    paired, mismatched = metrics.delta_cosines(images, images.flip(0))
    assert paired.tolist() == pytest.approx([0, 0]) and mismatched.tolist() == pytest.approx([1, 1])


def test_a_modality_gap_breaks_raw_retrieval_and_not_that_of_differences() -> None:
    """The paper's figure 2 in small: texts lie far from images, yet their differences are alike."""
    rng = torch.Generator().manual_seed(0)
    meaning = torch.randn(40, 8, generator=rng)
    images, texts = meaning.clone(), 0.1 * meaning
    images[:, 1] += 10
    texts[:, 0] += 10
    images_moved, texts_moved = images.roll(1, 0) - images, texts.roll(1, 0) - texts
    assert metrics.retrieval(images, texts).mean() < 0.2
    assert metrics.retrieval(images_moved, texts_moved).mean() == 1.0


def test_retrieval_counts_equal_texts_as_one() -> None:
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert metrics.retrieval(torch.tensor([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1]]), texts).tolist() == [1, 1, 0]


def test_zero_shot_takes_the_nearest_text_by_angle() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    assert metrics.zero_shot(torch.tensor([[3.0, 1.0], [1.0, 3.0]]), texts).tolist() == [0, 1]


# ---------------------------------------------------------------- intervals


def test_every_prompt_counts_alike_however_many_images_it_applies_to() -> None:
    table = np.array([[1.0, 0.0], [1.0, np.nan], [1.0, np.nan], [1.0, np.nan]])
    assert Bootstrap().mean(table)["value"] == 0.5


def test_groups_are_averaged_before_the_smallest_is_taken() -> None:
    table = np.array([[1.0, 0.0, 0.4]])
    assert Bootstrap().mean(table, ["a", "a", "b"])["value"] == pytest.approx(0.45)
    assert Bootstrap().mean(table, ["a", "a", "b"], worst=True)["value"] == pytest.approx(0.4)


def test_all_prompts_of_an_image_are_resampled_together() -> None:
    """Ten equal prompts must not make the interval narrower."""
    one = np.random.default_rng(0).integers(0, 2, size=(30, 1)).astype(float)
    assert Bootstrap().mean(one.repeat(10, axis=1)) == Bootstrap().mean(one)
    apart = np.random.default_rng(1).integers(0, 2, size=(30, 10)).astype(float)
    together, alone = Bootstrap().mean(one.repeat(10, axis=1)), Bootstrap().mean(apart)
    assert _width(alone) < _width(together) / 2


def test_the_interval_is_that_of_the_binomial_distribution() -> None:
    table = np.array([1.0] * 200 + [0.0] * 200)
    leaf = Bootstrap(4000).mean(table)
    assert leaf["value"] == 0.5
    assert _width(leaf) == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    table = np.random.default_rng(0).normal(size=(50, 3))
    assert Bootstrap(seed=1).mean(table) == Bootstrap(seed=1).mean(table)
    assert Bootstrap(seed=1).mean(table) != Bootstrap(seed=2).mean(table)


def test_a_single_sample_has_a_value_and_no_interval() -> None:
    assert Bootstrap().mean(np.array([[0.25]])) == {"value": 0.25, "low": None, "high": None}


def test_a_table_without_values_is_null() -> None:
    nothing = {"value": None, "low": None, "high": None}
    assert Bootstrap().mean(np.full((4, 2), np.nan)) == nothing
    assert Bootstrap().mean(np.zeros((0, 2))) == nothing
    assert metric(math.inf) == nothing


def test_a_centred_interval_contains_its_value() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) + 0.3

    def distance(weights: np.ndarray) -> np.ndarray:
        return np.array([metrics.frechet_distance(a, b, draw) for draw in weights])

    leaf = Bootstrap(100).statistic(distance, 60, centred=True)
    assert 0 <= leaf["low"] < leaf["value"] < leaf["high"]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_an_interval_lies_within_the_range_of_the_table(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, columns))
    table[rng.random(table.shape) < 0.3] = np.nan
    leaf = Bootstrap(50, seed).mean(table)
    if leaf["low"] is not None:
        low, high = np.nanmin(table) - 1e-6, np.nanmax(table) + 1e-6
        assert low <= leaf["low"] <= leaf["high"] <= high
        assert low <= leaf["value"] <= high


def _width(leaf: Metric) -> float:
    return float(leaf["high"]) - float(leaf["low"])  # type: ignore[arg-type]


def test_precision_and_recall_of_points_on_a_line() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0], [-10.0]])
    made = torch.tensor([[0.5], [4.0], [30.0]])
    precision, recall = metrics.precision_recall(made, real, neighbours=1)
    assert precision.tolist() == [1, 1, 0]  # 0, 1 and 2 reach as far as 1, 10 as far as 8, -10 as far as 10
    assert recall.tolist() == [1, 1, 1, 1, 0]  # .5 and 4 reach as far as 3.5, 30 as far as 26
    assert metrics.precision_recall(real, real)[0].mean() == 1


# ---------------------------------------------------------------- regions


def test_a_pixel_is_changed_where_one_colour_differs_visibly() -> None:
    before, after = flat(0.5, 4), flat(0.5, 4)
    after[0, 1, 0, 0] += 0.1
    after[0, 2, 3, 3] += 0.02
    assert torch.equal(metrics.changed(after, before), square(4, 1, 1))


def test_overlap_is_intersection_over_union() -> None:
    region = torch.cat([square(8, 4, 4), square(8, 4, 4), square(8, 2, 2), square(8, 0, 0)])
    masks = torch.cat([square(8, 4, 4), square(8, 4, 2), ~square(8, 8, 4), square(8, 0, 0)]).float()
    overlap = metrics.overlap(masks, region)
    assert overlap[:3].tolist() == [1, 0.5, 0] and overlap[3].isnan()


def test_psnr_outside_ignores_the_region() -> None:
    before, after, region = flat(0.5, 4), flat(0.5, 4), square(4, 2, 4)
    after[:, :, :2] = 1
    assert metrics.psnr_outside(after, before, region).item() == 60
    after[:, :, 2:] += 0.2  # .1 on the [0,1] scale
    assert metrics.psnr_outside(after, before, region).item() == pytest.approx(20, abs=1e-4)
    assert metrics.psnr_outside(after, before, square(4, 4, 4)).isnan()
