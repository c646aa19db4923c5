"""Metrics of the networks that editors build on, on portraits whose every number is known."""

from __future__ import annotations

import hashlib

import known_people
import numpy as np
import pytest
import torch
from known_people import PEOPLE, PROMPTS, SIZE, HashClip, PerfectOracle, World, change, unit

from pipeline import denoiser_training, portraits
from pipeline.evaluation import benchmark, network_quality
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.models import ode_solvers
from pipeline.storage import images
from pipeline.values import Inversion

world = known_people.world  # fixture


class NearestOracle(PerfectOracle):
    """Oracle that reads the nearest render it knows."""

    def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        keys = torch.tensor(list(self.known)) / 1000
        return super().logits(keys[torch.cdist(features, keys).argmin(dim=1)])


class StyleDenoiser:
    """Denoiser that draws the image its style spells; or, if `ignores_style`, returns the noise."""

    objective, space = "eps", "s"

    def __init__(self, ignores_style: bool) -> None:
        self.ignores_style = ignores_style

    def __call__(self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        signal = ode_solvers.schedulers()[0].alphas_cumprod[t].sqrt()[:, None, None, None]
        noise = (1 - signal.square()).sqrt()
        return torch.zeros_like(x) if self.ignores_style else (x - signal * s.view_as(x)) / noise


class CodesAreImages:
    """Generator whose codes are images."""

    def repeat(self, w: torch.Tensor) -> torch.Tensor:
        return w[:, None].expand(-1, 2, -1)

    def __call__(self, w_plus: torch.Tensor) -> torch.Tensor:
        flat = w_plus[:, 0] if w_plus.shape[2] == 3 * SIZE * SIZE else w_plus.flatten(1)
        return flat.unflatten(1, (3, SIZE, SIZE))


@pytest.mark.parametrize(("ignores_style", "expected"), [(False, 1), (True, 0)])
def test_style_matters_where_the_other_style_is_drawn(
    world: World, ignores_style: bool, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = world.test.images.flatten(1)
    nets = world.networks
    nets.denoiser = StyleDenoiser(ignores_style)
    nets.generator.styles = lambda w_plus: w_plus.flatten(1)
    monkeypatch.setattr(denoiser_training, "condition", lambda networks, w_plus: w_plus.flatten(1))
    drawn, nets.oracle = nets.oracle.known, NearestOracle()
    nets.oracle.known = drawn
    trajectory = ode_solvers.Trajectory(20, "ddim")
    edits = {"deltaedit_d": world.edits("d", change)}
    numbers = world.evaluate(edits, inversion=Inversion(pixels[:, None]), trajectory=trajectory).metrics["diffusion"]
    assert numbers["style_matters"]["value"] == pytest.approx(expected, abs=0.02)
    assert numbers["evaluations_per_edit"]["value"] == 3
    assert (numbers["ddim"]["mse"] == numbers["ddim_mean_style"]["mse"]) is ignores_style
    nets.denoiser = None
    without = world.evaluate(edits, inversion=Inversion(pixels[:, None]), trajectory=trajectory).metrics["diffusion"][
        "style_matters"
    ]
    assert "weights missing" in without["note"]


def test_perfect_networks_score_full_marks(world: World) -> None:
    numbers = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics
    assert numbers["oracle"]["mean"]["value"] == numbers["oracle"]["min"]["value"] == 1
    assert 0 < numbers["oracle"]["chance"]["value"] < 0.6
    assert numbers["inversion"]["psnr"]["value"] == 60
    assert numbers["inversion"]["ssim"]["value"] == pytest.approx(1)
    assert numbers["inversion"]["identity"]["value"] == pytest.approx(1)


def test_inversions_are_measured_beside_the_encoder_alone(world: World) -> None:
    codes = 0.5 * world.networks.encoder(world.test.images)
    edits = {"counterfactual": world.edits("counterfactual", change)}
    numbers = world.evaluate(edits, inversion=Inversion(codes)).metrics["inversion"]
    assert numbers["encoder_psnr"]["value"] == 60
    expected = -10 * torch.log10((world.test.images / 4).square().mean(dim=(1, 2, 3)))
    assert numbers["psnr"]["value"] == pytest.approx(expected.mean().item(), abs=1e-3)
    numbers = world.evaluate(edits, inversion=Inversion(codes[:3])).metrics["inversion"]  # of the first images alone
    assert numbers["psnr"]["value"] == pytest.approx(expected[:3].mean().item(), abs=1e-3)


def test_samples_equal_to_the_test_images_have_no_error(world: World) -> None:
    world.networks.generator = CodesAreImages()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    numbers = world.evaluate(edits, fakes=world.test.images.flatten(1)).metrics["generator"]
    assert numbers["precision"]["value"] == numbers["recall"]["value"] == 1
    assert numbers["fid_oracle"]["value"] == pytest.approx(0, abs=1e-6) and numbers["fid_floor"]["value"] > 0
    assert numbers["attribute_share_error"]["value"] == 0


def test_samples_that_are_all_alike_have_low_recall(world: World) -> None:
    world.networks.generator = CodesAreImages()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    alike = world.test.images[:1].flatten(1).expand(PEOPLE, -1)
    numbers = world.evaluate(edits, fakes=alike).metrics["generator"]
    assert numbers["precision"]["value"] == 1 and numbers["recall"]["value"] < 0.5
    assert numbers["fid_oracle"]["value"] > 0
    assert numbers["attribute_share_error"]["value"] >= 1  # a value that only they have, or that none of them has


def test_attribute_shares_are_of_all_samples_and_of_training_images_too(world: World) -> None:
    world.networks.generator = CodesAreImages()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    first, second = world.test.images[0], world.test.images[1]
    samples = torch.stack([first] * PEOPLE + [second] * PEOPLE + list(world.test.images)).flatten(1)
    drawn = [images.encode_png(image) for image in [first, second] * PEOPLE]
    alike = world.evaluate(edits, fakes=samples, train_images=drawn).metrics["generator"]["attribute_share_error"]
    assert alike["value"] == pytest.approx(0, abs=1e-6)
    for fewer in (drawn[:PEOPLE], []):
        other = world.evaluate(edits, fakes=samples, train_images=fewer).metrics["generator"]["attribute_share_error"]
        assert other["value"] > 0.1


def test_few_samples_are_compared_with_as_many_test_images(world: World) -> None:
    world.networks.generator = CodesAreImages()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    numbers = world.evaluate(edits, fakes=world.test.images[:5].flatten(1)).metrics["generator"]
    assert numbers["precision"]["value"] == numbers["recall"]["value"] == 1
    few = world.evaluate(edits, fakes=world.test.images[:2].flatten(1)).metrics["generator"]
    assert few["precision"]["value"] is None


def test_a_network_that_sees_identity_alone_verifies_every_portrait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_quality, "VERIFIED_COUNT", 5)
    edits = {"counterfactual": world.edits("counterfactual", change)}
    blind = world.evaluate(edits).metrics["identity"]["auc"]["value"]
    assert 0 <= blind <= 1
    rendered, original = [], portraits.render

    def kept(person: portraits.Portrait, size: int) -> np.ndarray:
        rendered.append((person.identity, original(person, size)))
        return rendered[-1][1]

    monkeypatch.setattr(portraits, "render", kept)
    assert world.test.people is not None
    rendered += [(p.identity, images.to_uint8(x)) for p, x in zip(world.test.people, world.test.images, strict=True)]

    def embed(batch: torch.Tensor) -> torch.Tensor:
        encoded = [images.to_uint8(image) for image in batch]
        names = [next(str(identity) for identity, seen in rendered if np.array_equal(seen, one)) for one in encoded]
        seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") for name in names]
        return torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    world.networks.identity = embed
    assert network_quality.identity(benchmark.prepare(world.inputs({})))["auc"]["value"] == 1


def test_a_single_portrait_cannot_be_verified(world: World) -> None:
    assert world.test.people is not None
    world.test = TestSet(world.test.ids[:1], world.test.images[:1], world.test.people[:1])
    assert network_quality.identity(benchmark.prepare(world.inputs({})))["auc"]["value"] is None


def test_zero_shot_has_the_worst_attribute_and_held_out_words_beside_the_mean(world: World) -> None:
    clip = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics["clip"]
    of_each = [leaf["value"] for leaf in clip["attributes"].values()]
    assert clip["zero_shot_min"]["value"] == pytest.approx(min(of_each), abs=1e-5)
    assert 0 <= clip["zero_shot_heldout"]["value"] <= 1
    assert 0 <= clip["zero_shot_literal"]["value"] <= 1
    assert clip["zero_shot_literal"] != clip["zero_shot_heldout"]


def test_a_clip_without_meaning_scores_chance(world: World) -> None:
    clip = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics["clip"]
    assert abs(clip["zero_shot"]["value"] - clip["chance"]["value"]) < 0.15
    assert abs(clip["delta_cos_paired"]["value"]) < 0.3
    assert set(clip["directions"]) == {prompt.text for prompt in PROMPTS}


def test_a_clip_whose_texts_are_images_is_perfectly_aligned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caption embeds as its own image does: paired cosine and retrieval are one."""
    assert world.test.people is not None
    captions = {str(i): image for i, image in enumerate(world.test.images)}
    rows = {id(person): str(i) for i, person in enumerate(world.test.people)}
    monkeypatch.setattr(portraits, "caption", lambda person, rng, split: rows[id(person)])
    clip = HashClip()
    embed = clip.embed_texts
    clip.embed_texts = lambda texts: torch.cat(  # type: ignore[method-assign]
        [unit(clip.embed_images(captions[t][None])) if t in captions else embed([t]) for t in texts]
    )
    world.networks.clip = clip
    numbers = network_quality.clip(benchmark.prepare(world.inputs({}, batch=8)))
    assert numbers["delta_cos_paired"]["value"] == pytest.approx(1)
    assert numbers["retrieval_raw"]["value"] == numbers["retrieval_delta"]["value"] == 1
    assert numbers["delta_cos_mismatched"]["value"] < 0.2


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("with red hair", "face with red hair"), ("bald", "bald face"), ("clean-shaven", "clean-shaven face")],
)
def test_values_are_phrased_as_in_captions(phrase: str, text: str) -> None:
    assert portraits.noun_phrase("face", phrase) == text
