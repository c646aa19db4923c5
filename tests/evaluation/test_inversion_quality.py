"""Metrics of inversions: reconstruction in s, the mapper between images, edits of inversions and of samples."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import edited_world
import pytest
import torch
from torch import Tensor

from pipeline import inversion
from pipeline.evaluation import inversion_quality, metrics
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.networks import Networks
from pipeline.storage.domains import Prompt
from pipeline.values import Direction, Edited, Inversion, Prepared, Source

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures


def context(networks: Any, test: TestSet, **options: Any) -> EvaluationContext:
    return EvaluationContext(
        networks=networks, test=test, edits={}, prompts={}, bootstrap=Bootstrap(50, 0), batch=4, **options
    )


@pytest.fixture
def test(source: Source) -> TestSet:
    return TestSet(tuple(range(len(source))), source.image, source.people)


def test_inversion_in_s_is_measured_on_the_images_of_its_codes(world: Networks, source: Source, test: TestSet) -> None:
    assert inversion_quality.inversion_in_s(context(world, test, inversion=source.inversion)) == {}  # nothing refined
    inversions = replace(source.inversion, refined=20)
    numbers = inversion_quality.inversion_in_s(context(world, test, inversion=inversions))["in_s"]
    encoder_codes = world.encoder(source.image)
    before = world.generator.synthesis(world.generator.styles(encoder_codes), encoder_codes).clamp(-1, 1)
    s = inversion.refine_s(world.encoder, world.generator, source.image, encoder_codes, world.s_stats[1], 20)
    reconstruction = world.generator.synthesis(s, encoder_codes).clamp(-1, 1)
    assert numbers["mse"]["value"] == pytest.approx(metrics.mse(reconstruction, source.image).mean().item(), rel=0.02)
    assert numbers["mse"]["value"] < metrics.mse(before, source.image).mean().item()
    gain = (metrics.ssim(reconstruction, source.image) - metrics.ssim(before, source.image)).mean().item()
    assert numbers["ssim_over_w_plus"]["value"] == pytest.approx(gain, abs=0.01)  # w_plus are the encoder's own
    assert numbers["identity"]["value"] is not None


def test_the_round_trip_inverts_generated_images_better_than_the_encoder(
    world: Networks, source: Source, test: TestSet
) -> None:
    w = world.generator.mapping(torch.randn(4, 12, generator=torch.Generator().manual_seed(1)))
    inversions = replace(source.inversion, refined=20)
    numbers = inversion_quality.round_trip(context(world, test, inversion=inversions, fakes=w))["round_trip"]
    made = world.generator(world.generator.repeat(w)).clamp(-1, 1)
    encoder_codes = world.encoder(made)
    before = world.generator(encoder_codes).clamp(-1, 1)
    w_plus = inversion.refine(world.encoder, world.generator, made, encoder_codes, 20)
    reconstruction = world.generator(w_plus).clamp(-1, 1)
    assert numbers["mse"]["value"] == pytest.approx(metrics.mse(reconstruction, made).mean().item(), rel=0.02)
    identity = metrics.cosine(world.identity(reconstruction), world.identity(made)).mean().item()
    assert numbers["identity"]["value"] == pytest.approx(identity, abs=0.01)
    assert numbers["mse"]["value"] < metrics.mse(before, made).mean().item()


def test_descent_in_s_lowers_the_error_of_each_image_independently(world: Networks, source: Source) -> None:
    generator, unit = world.generator, world.s_stats[1]

    def descend(rows: list[int]) -> Tensor:
        images = source.image[rows]
        return inversion.refine_s(world.encoder, generator, images, source.inversion.w_plus[rows], unit, 15)

    def error(s: Tensor) -> Tensor:
        return (generator.synthesis(s, source.inversion.w_plus) - source.image).square().mean(dim=(1, 2, 3))

    together = descend([0, 1, 2, 3, 4])
    assert (error(together) < error(source.s)).all()
    torch.testing.assert_close(error(descend([4, 2, 1, 3, 0])[[4, 2, 1, 3, 0]]), error(together), atol=0, rtol=0.02)


@pytest.mark.parametrize("knows", [True, False])
def test_a_perfect_mapper_leaves_no_error_and_a_zero_mapper_explains_nothing(
    knows: bool, world: Networks, source: Source, test: TestSet
) -> None:
    w_plus = source.inversion.w_plus + torch.randn(
        source.inversion.w_plus.shape, generator=torch.Generator().manual_seed(0)
    )
    s = world.generator.styles(w_plus)
    other = s.roll(-1, 0)
    order = iter(range(len(s)))

    def mapper(codes: Tensor, condition: Tensor) -> Tensor:
        rows = [next(order) for _ in codes]
        torch.testing.assert_close(codes, s[rows])
        assert condition.shape == (len(rows), 2 * world.clip.dim)
        return (other - s)[rows] if knows else torch.zeros_like(codes)

    nets: Any = SimpleNamespace(
        generator=world.generator, clip=world.clip, device="cpu", mapper=mapper, absent=lambda name: None
    )
    pairs = inversion_quality.image_pairs(context(nets, test, inversion=Inversion(w_plus)))
    value = {name: leaf["value"] for name, leaf in pairs.items()}
    assert value["latent_explained"] == pytest.approx(float(knows), abs=1e-5)
    assert value["latent_mse_nothing"] == pytest.approx((other - s).square().mean().item(), rel=1e-4)
    if knows:
        assert value["latent_mse"] == pytest.approx(0, abs=1e-6)
    else:
        assert value["pixel_mse"] == pytest.approx(value["pixel_mse_nothing"], rel=1e-4)
        still = world.generator.synthesis(s, w_plus).clamp(-1, 1)
        expected = (still - source.image.roll(-1, 0)).square().mean().item()
        assert value["pixel_mse_nothing"] == pytest.approx(expected, rel=1e-3)
    own = world.generator.synthesis(other, w_plus).clamp(-1, 1)
    expected = (own - source.image.roll(-1, 0)).square().mean().item()
    assert value["pixel_mse_floor"] == pytest.approx(expected, rel=1e-3)


def test_only_images_without_the_value_can_reach_it(test: TestSet) -> None:
    """Images are flat greys here, dark below 0. Lightening reaches all dark samples but no inversion, being darker."""

    class Flat:
        num_ws = 2

        def styles(self, w_plus: Tensor) -> Tensor:
            return w_plus[:, 0, :1]

        def repeat(self, w: Tensor) -> Tensor:
            return w[:, None].expand(-1, 2, -1)

        def synthesis(self, s: Tensor, w_plus: Tensor, **residual: None) -> Tensor:
            return s[:, :, None, None].expand(-1, 3, 4, 4)

    class Eye:
        attributes = {"shade": ("light", "dark")}  # noqa: RUF012

        def predict(self, images: Tensor) -> dict[str, Tensor]:
            return {"shade": (images.mean(dim=(1, 2, 3)) < 0).long()}

    class Lighten:
        def fit(self, condition: Any) -> Direction:
            assert (condition.source, condition.target) == ("thing", "light thing")
            return Direction(condition, torch.zeros(1))

        def prepare(self, source: Source) -> Prepared:
            return Prepared(source)

        def edit(self, prepared: Prepared, direction: Direction, strength: float) -> Edited:
            return Edited(prepared.source.image + strength)

    prompts = (Prompt("light thing", "shade", "light"), Prompt("pale thing", "shade", "light", "heldout"))
    nets: Any = SimpleNamespace(
        generator=Flat(),
        oracle=Eye(),
        clip=SimpleNamespace(embed_images=lambda images: images[:, :, 0, 0]),
        domain=SimpleNamespace(prompts=prompts, neutral="thing"),
        device="cpu",
        absent=lambda name: None,
    )
    dark, barely = torch.full((3, 2, 2), -0.9), torch.tensor([[-0.2, 0], [-0.3, 0], [0.8, 0]])
    evaluated = context(nets, test, inversion=Inversion(dark), fakes=barely, latent_editor=(Lighten(), 0.5))
    reached = inversion_quality.reached_on_samples(evaluated)
    assert {name: metric["value"] for name, metric in reached.items()} == {
        **{"reached_inverted": 0, "reached_sampled": 1, "reached_gap": -1}
    }
    nets.absent = lambda name: "weights missing"
    assert "note" in inversion_quality.reached_on_samples(evaluated)["reached_gap"]
