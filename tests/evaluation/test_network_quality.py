"""What evaluation says of the networks beneath the editors, on people whose every number is known."""

from __future__ import annotations

import hashlib

import known_people
import numpy as np
import pytest
import torch
from known_people import PEOPLE, PROMPTS, SIZE, Reader, Words, World, change, unit

from pipeline import portraits
from pipeline.evaluation import network_quality
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.evaluation.metrics import Draws
from pipeline.models import ode_solvers
from pipeline.storage import images

world = known_people.world  # a fixture


class Nearest(Reader):
    """Takes a picture that is nearly a render it knows for that one."""

    def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        known = torch.tensor(list(self.known)) / 1000
        return super().logits(known[torch.cdist(features, known).argmin(dim=1)])


class Listening:
    """Draws what the style's first channels spell, whatever the noise; or keeps the noise, whatever the style."""

    objective, space = "eps", "s"

    def __init__(self, deaf: bool) -> None:
        self.deaf = deaf

    def __call__(self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        signal = ode_solvers.schedulers()[0].alphas_cumprod[t].sqrt()[:, None, None, None]
        noise = (1 - signal.square()).sqrt()
        return torch.zeros_like(x) if self.deaf else (x - signal * s.view_as(x)) / noise


class Painter:
    """A generator whose codes are pictures."""

    def repeat(self, w: torch.Tensor) -> torch.Tensor:
        return w[:, None].expand(-1, 2, -1)

    def __call__(self, w_plus: torch.Tensor) -> torch.Tensor:
        flat = w_plus[:, 0] if w_plus.shape[2] == 3 * SIZE * SIZE else w_plus.flatten(1)
        return flat.unflatten(1, (3, SIZE, SIZE))


@pytest.mark.parametrize(("deaf", "expected"), [(False, 1), (True, 0)])
def test_style_matters_as_far_as_another_s_style_is_drawn(world: World, deaf: bool, expected: float) -> None:
    pixels = world.test.images.flatten(1)
    nets = world.backbones
    nets.denoiser = Listening(deaf)
    nets.generator.styles = nets.told = lambda w_plus: w_plus.flatten(1)
    known, nets.oracle = nets.oracle.known, Nearest()
    nets.oracle.known = known
    walk = ode_solvers.Walk(20, "ddim")
    edits = {"deltaedit_d": world.edits("d", change)}
    found = world.evaluate(edits, w_plus=pixels[:, None], walk=walk).metrics["diffusion"]
    assert found["style_matters"]["value"] == pytest.approx(expected, abs=0.02)
    assert found["evaluations_per_edit"]["value"] == 3
    assert (found["ddim"]["mse"] == found["ddim_mean_style"]["mse"]) is deaf
    nets.denoiser = None
    without = world.evaluate(edits, w_plus=pixels[:, None], walk=walk).metrics["diffusion"]["style_matters"]
    assert "weights missing" in without["note"]


def test_networks_that_cannot_err_score_full_marks(world: World) -> None:
    found = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics
    assert found["oracle"]["mean"]["value"] == found["oracle"]["min"]["value"] == 1
    assert 0 < found["oracle"]["chance"]["value"] < 0.6
    assert found["inversion"]["psnr"]["value"] == 60
    assert found["inversion"]["ssim"]["value"] == pytest.approx(1)
    assert found["inversion"]["identity"]["value"] == pytest.approx(1)


def test_inversions_are_judged_as_they_are_edited_with_the_encoder_alone_beside_them(world: World) -> None:
    codes = 0.5 * world.backbones.encoder(world.test.images)
    edits = {"counterfactual": world.edits("counterfactual", change)}
    found = world.evaluate(edits, w_plus=codes).metrics["inversion"]
    assert found["encoder_psnr"]["value"] == 60
    expected = -10 * torch.log10((world.test.images / 4).square().mean(dim=(1, 2, 3)))
    assert found["psnr"]["value"] == pytest.approx(expected.mean().item(), abs=1e-3)
    found = world.evaluate(edits, w_plus=codes[:3]).metrics["inversion"]  # of the first people alone
    assert found["psnr"]["value"] == pytest.approx(expected[:3].mean().item(), abs=1e-3)


def test_samples_that_are_the_drawn_pictures_cannot_be_told_from_them(world: World) -> None:
    world.backbones.generator = Painter()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    found = world.evaluate(edits, fakes=world.test.images.flatten(1)).metrics["generator"]
    assert found["precision"]["value"] == found["recall"]["value"] == 1
    assert found["fid_oracle"]["value"] == pytest.approx(0, abs=1e-6) and found["fid_floor"]["value"] > 0
    assert found["attribute_share_error"]["value"] == 0


def test_samples_that_are_all_alike_are_found_out(world: World) -> None:
    world.backbones.generator = Painter()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    alike = world.test.images[:1].flatten(1).expand(PEOPLE, -1)
    found = world.evaluate(edits, fakes=alike).metrics["generator"]
    assert found["precision"]["value"] == 1 and found["recall"]["value"] < 0.5
    assert found["fid_oracle"]["value"] > 0
    assert found["attribute_share_error"]["value"] >= 1  # a value that nobody else has, or that nobody has any more


def test_shares_are_those_of_all_samples_and_of_further_drawn_pictures(world: World) -> None:
    world.backbones.generator = Painter()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    first, second = world.test.images[0], world.test.images[1]
    samples = torch.stack([first] * PEOPLE + [second] * PEOPLE + list(world.test.images)).flatten(1)
    drawn = [images.encode_png(picture) for picture in [first, second] * PEOPLE]
    alike = world.evaluate(edits, fakes=samples, drawn=drawn).metrics["generator"]["attribute_share_error"]
    assert alike["value"] == pytest.approx(0, abs=1e-6)
    for fewer in (drawn[:PEOPLE], []):
        other = world.evaluate(edits, fakes=samples, drawn=fewer).metrics["generator"]["attribute_share_error"]
        assert other["value"] > 0.1


def test_fewer_samples_than_people_are_compared_with_as_many(world: World) -> None:
    world.backbones.generator = Painter()
    edits = {"counterfactual": world.edits("counterfactual", change)}
    found = world.evaluate(edits, fakes=world.test.images[:5].flatten(1)).metrics["generator"]
    assert found["precision"]["value"] == found["recall"]["value"] == 1
    few = world.evaluate(edits, fakes=world.test.images[:2].flatten(1)).metrics["generator"]
    assert few["precision"]["value"] is None


def test_a_face_is_known_again_by_a_network_that_sees_only_who_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_quality, "VERIFIED_PEOPLE", 5)
    edits = {"counterfactual": world.edits("counterfactual", change)}
    blind = world.evaluate(edits).metrics["identity"]["auc"]["value"]
    assert 0 <= blind <= 1
    pictures, original = [], portraits.render

    def kept(person: portraits.Portrait, size: int) -> np.ndarray:
        pictures.append((person.identity, original(person, size)))
        return pictures[-1][1]

    monkeypatch.setattr(portraits, "render", kept)
    assert world.test.people is not None
    pictures += [(p.identity, images.to_uint8(x)) for p, x in zip(world.test.people, world.test.images, strict=True)]

    def who(batch: torch.Tensor) -> torch.Tensor:
        shown = [images.to_uint8(picture) for picture in batch]
        names = [next(str(who) for who, seen in pictures if np.array_equal(seen, one)) for one in shown]
        seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") for name in names]
        return torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    world.backbones.identity = who
    assert network_quality.identity_metrics(world.backbones, world.test, 7, Draws(20))["auc"]["value"] == 1


def test_one_person_alone_cannot_be_verified(world: World) -> None:
    assert world.test.people is not None
    alone = TestSet(world.test.ids[:1], world.test.images[:1], world.test.people[:1])
    assert network_quality.identity_metrics(world.backbones, alone, 7, Draws(20))["auc"]["value"] is None


def test_the_worst_attribute_and_the_words_kept_out_of_training_stand_beside_the_mean(world: World) -> None:
    clip = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics["clip"]
    of_each = [leaf["value"] for leaf in clip["attributes"].values()]
    assert clip["zero_shot_min"]["value"] == pytest.approx(min(of_each), abs=1e-5)
    assert 0 <= clip["zero_shot_heldout"]["value"] <= 1
    assert 0 <= clip["zero_shot_literal"]["value"] <= 1
    assert clip["zero_shot_literal"] != clip["zero_shot_heldout"]


def test_a_clip_without_sense_is_found_out(world: World) -> None:
    clip = world.evaluate({"counterfactual": world.edits("counterfactual", change)}).metrics["clip"]
    assert abs(clip["zero_shot"]["value"] - clip["chance"]["value"]) < 0.15
    assert abs(clip["delta_cos_paired"]["value"]) < 0.3
    assert set(clip["directions"]) == {prompt.text for prompt in PROMPTS}


def test_a_clip_whose_words_are_pictures_is_perfectly_aligned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caption embeds as its own picture does: paired cosine and retrieval are one."""
    assert world.test.people is not None
    captions = {str(i): picture for i, picture in enumerate(world.test.images)}
    rows = {id(person): str(i) for i, person in enumerate(world.test.people)}
    monkeypatch.setattr(portraits, "caption", lambda person, rng, split: rows[id(person)])
    clip = Words()
    embed = clip.embed_texts
    clip.embed_texts = lambda texts: torch.cat(  # type: ignore[method-assign]
        [unit(clip.embed_images(captions[t][None])) if t in captions else embed([t]) for t in texts]
    )
    world.backbones.clip = clip
    found = network_quality.clip_metrics(world.backbones, world.test, 8, Draws(20))
    assert found["delta_cos_paired"]["value"] == pytest.approx(1)
    assert found["retrieval_raw"]["value"] == found["retrieval_delta"]["value"] == 1
    assert found["delta_cos_mismatched"]["value"] < 0.2


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("with red hair", "face with red hair"), ("bald", "bald face"), ("clean-shaven", "clean-shaven face")],
)
def test_a_value_is_said_as_captions_say_it(phrase: str, text: str) -> None:
    assert portraits.in_a_phrase("face", phrase) == text
