"""What codes hold: numbers of inversion in s, of steps led by pictures, and of edits of people made of codes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import edited_world
import pytest
import torch
from torch import Tensor

from pipeline import inversion
from pipeline.evaluation import inversion_quality, metrics
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.evaluation.metrics import Draws
from pipeline.networks import Backbones
from pipeline.storage.domains import Prompt
from pipeline.values import Direction, Edited, Source

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures
DRAWS = Draws(50, 0)


@pytest.fixture
def test(source: Source) -> TestSet:
    return TestSet(tuple(range(len(source))), source.image, source.people)


def test_inversion_in_s_is_scored_on_what_the_found_codes_draw(world: Backbones, source: Source, test: TestSet) -> None:
    none = inversion_quality.inversion_in_s(world, test, source.w_plus, 0, DRAWS)
    some = inversion_quality.inversion_in_s(world, test, source.w_plus, 20, DRAWS)
    guess = world.encoder(source.image)
    again = world.generator.synthesis(world.generator.styles(guess), guess).clamp(-1, 1)
    assert none["mse"]["value"] == pytest.approx(metrics.mse(again, source.image).mean().item(), abs=1e-5)
    assert some["mse"]["value"] < none["mse"]["value"]  # type: ignore[operator]
    assert none["ssim_over_w_plus"]["value"] == pytest.approx(0, abs=1e-5)  # w_plus are the encoder's own
    assert some["identity"]["value"] is not None


def test_the_round_trip_is_of_pictures_that_the_generator_made_and_better_with_descent(world: Backbones) -> None:
    w = world.generator.mapping(torch.randn(4, 12, generator=torch.Generator().manual_seed(1)))
    none, some = (inversion_quality.round_trip(world, w, steps, DRAWS) for steps in (0, 20))
    made = world.generator(world.generator.repeat(w)).clamp(-1, 1)
    again = world.generator(world.encoder(made)).clamp(-1, 1)
    assert none["mse"]["value"] == pytest.approx(metrics.mse(again, made).mean().item(), abs=1e-5)
    assert none["identity"]["value"] == pytest.approx(
        metrics.cosine(world.identity(again), world.identity(made)).mean().item(), abs=1e-4
    )
    assert some["mse"]["value"] < none["mse"]["value"]  # type: ignore[operator]


def test_descent_in_s_lowers_the_error_and_treats_every_picture_alone(world: Backbones, source: Source) -> None:
    generator, unit = world.generator, world.s_std

    def descend(rows: list[int]) -> Tensor:
        images = source.image[rows]
        return inversion.refine_s(world.encoder, generator, images, source.w_plus[rows], unit, 15)

    def error(s: Tensor) -> Tensor:
        return (generator.synthesis(s, source.w_plus) - source.image).square().mean(dim=(1, 2, 3))

    together = descend([0, 1, 2, 3, 4])
    assert (error(together) < error(source.s)).all()
    torch.testing.assert_close(error(descend([4, 2, 1, 3, 0])[[4, 2, 1, 3, 0]]), error(together), atol=0, rtol=0.02)


@pytest.mark.parametrize("knows", [True, False])
def test_a_mapper_that_knows_the_step_leaves_no_error_and_one_that_stays_explains_nothing(
    knows: bool, world: Backbones, source: Source, test: TestSet
) -> None:
    w_plus = source.w_plus + torch.randn(source.w_plus.shape, generator=torch.Generator().manual_seed(0))
    s = world.generator.styles(w_plus)
    other = s.roll(-1, 0)
    order = iter(range(len(s)))

    def mapper(codes: Tensor, told: Tensor) -> Tensor:
        rows = [next(order) for _ in codes]
        torch.testing.assert_close(codes, s[rows])
        assert told.shape == (len(rows), 2 * world.clip.dim)
        return (other - s)[rows] if knows else torch.zeros_like(codes)

    nets: Any = SimpleNamespace(
        generator=world.generator, clip=world.clip, device="cpu", mapper=mapper, absent=lambda name: None
    )
    found = inversion_quality.pair_metrics(nets, test, w_plus, DRAWS)
    value = {name: leaf["value"] for name, leaf in found.items()}
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


def test_only_those_in_whom_the_value_was_not_seen_can_reach_it() -> None:
    """Pictures are flat greys here: a code below 0 is dark. Lightening reaches every dark one of the samples, and of
    the inverted ones nobody, who are too dark for it."""

    class Flat:
        num_ws = 2

        def styles(self, w_plus: Tensor) -> Tensor:
            return w_plus[:, 0, :1]

        def repeat(self, w: Tensor) -> Tensor:
            return w[:, None].expand(-1, 2, -1)

        def synthesis(self, s: Tensor, w_plus: Tensor) -> Tensor:
            return s[:, :, None, None].expand(-1, 3, 4, 4)

    class Eye:
        attributes = {"shade": ("light", "dark")}  # noqa: RUF012

        def read(self, images: Tensor) -> dict[str, Tensor]:
            return {"shade": (images.mean(dim=(1, 2, 3)) < 0).long()}

    class Lighten:
        def fit(self, condition: Any) -> Direction:
            assert (condition.source, condition.target) == ("thing", "light thing")
            return Direction(condition, torch.zeros(1))

        def edit(self, people: Source, direction: Direction, strength: float) -> Edited:
            return Edited(people.image + strength)

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
    found = inversion_quality.reached_on_samples(nets, Lighten(), 0.5, dark, None, barely, DRAWS)
    assert [found[name]["value"] for name in (*inversion_quality.REACHED, "reached_gap")] == [0, 1, -1]
    nets.absent = lambda name: "weights missing"
    assert (
        "note" in inversion_quality.reached_on_samples(nets, Lighten(), 0.5, dark, None, barely, DRAWS)["reached_gap"]
    )
