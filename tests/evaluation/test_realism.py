"""The discriminator of rendered and generated images, and realism in an evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import known_people
import numpy as np
import pytest
import torch
from known_people import World, change, unchanged

from pipeline import portraits
from pipeline.evaluation import network_quality, realism
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.models.classifiers import IdentityNet
from pipeline.storage import images

world = known_people.world  # fixture
COUNT, R = 60, 16


@pytest.fixture(scope="module")
def nets() -> Any:
    """An untrained identity network."""
    torch.manual_seed(0)
    return SimpleNamespace(
        device="cpu",
        identity=IdentityNet((16, 32), 6).eval(),
        absent=lambda name: None,
    )


def renders(first: int, count: int, brighter: float = 0.0) -> torch.Tensor:
    drawn = [portraits.render(portraits.sample(first + row), R) for row in range(count)]
    return (images.from_uint8(np.stack(drawn)) + brighter).clamp(-1, 1)


def context(networks: Any) -> EvaluationContext:
    return EvaluationContext(
        networks=networks,
        test=TestSet((), torch.zeros(0, 3, R, R), None),
        edits={},
        prompts={},
        bootstrap=Bootstrap(50, 0),
        batch=16,
    )


def trained(nets: Any, brighter: float, monkeypatch: pytest.MonkeyPatch) -> realism.Discriminator:
    monkeypatch.setattr(realism, "TRAINED_COUNT", 40)
    monkeypatch.setattr(realism, "TESTED_COUNT", 20)
    discriminator = realism.train(context(nets), images.to_uint8(renders(100, COUNT + 5, brighter)))
    assert discriminator is not None
    return discriminator


def test_the_discriminator_separates_different_held_out_images(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    discriminator = trained(nets, 0.8, monkeypatch)
    assert discriminator.accuracy["value"] > 0.9  # type: ignore[operator]
    for brighter, drawn in ((0.0, 1), (0.8, 0)):
        rendered = renders(500, 10, brighter)
        identity, looks = discriminator.look(rendered)
        assert looks.mean() == pytest.approx(drawn, abs=0.2)
        torch.testing.assert_close(identity, nets.identity(rendered))


@pytest.mark.usefixtures("bfloat16_pays")
def test_half_precision_gives_nearly_the_same_identities(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    discriminator, rendered = trained(nets, 0.8, monkeypatch), renders(500, 10)
    (full, _), (half, _) = (discriminator.look(rendered, half) for half in (False, True))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert torch.cosine_similarity(half, full, dim=1).min() > 0.999


def test_the_discriminator_separates_equal_images_by_chance_alone(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.25 < trained(nets, 0.0, monkeypatch).accuracy["value"] < 0.75  # type: ignore[operator]


def test_the_discriminator_is_trained_on_portraits_that_no_test_uses() -> None:
    assert realism.FIRST > network_quality.FRESH + 70_000  # ids of the identity network's verification


def test_train_returns_none_without_our_identity_network_or_samples(nets: Any) -> None:
    stranger = SimpleNamespace(**{**vars(nets), "identity": lambda images: images})
    missing = SimpleNamespace(**{**vars(nets), "absent": lambda name: "weights missing"})
    for networks, count in ((stranger, 10), (missing, 10), (nets, 5)):
        assert realism.train(context(networks), np.zeros((count, R, R, 3), np.uint8)) is None


def test_realism_of_an_editor_is_the_share_taken_for_renders(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in takes images with red hair for generated ones."""

    def look(images: torch.Tensor, half: bool) -> tuple[torch.Tensor, torch.Tensor]:
        people = [world.networks.oracle.known[world.networks.oracle.key(row)] for row in features(images)]
        drawn = torch.tensor([person.traits.hair_color.value != "red" for person in people]).float()
        return world.networks.identity(images), drawn

    features = world.networks.oracle.features
    fixed = SimpleNamespace(look=look, accuracy={"value": 0.9, "low": None, "high": None})
    monkeypatch.setattr(realism, "train", lambda *_: fixed)
    edits = {"a": world.edits("a", change), "b": world.edits("b", unchanged)}
    samples = images.to_uint8(world.test.images[:3])  # too few for the generator's own metrics
    monkeypatch.setattr(network_quality, "render_samples", lambda *_: samples)
    evaluated = world.evaluate(edits, fakes=torch.zeros(4, 3))
    numbers, scores = evaluated.metrics, evaluated.scores
    assert numbers["generator"]["discriminator_accuracy"]["value"] == 0.9
    plain = [person.traits.hair_color.value != "red" for person in world.test.people or ()]
    assert numbers["editors"]["a"]["realism_unedited"]["value"] == pytest.approx(sum(plain) / len(plain), abs=1e-6)
    red = scores.filter((scores["editor"] == "a") & (scores["prompt"] == "face with red hair"))
    assert red["realism"].sum() == 0
    assert numbers["editors"]["a"]["realism"]["value"] < numbers["editors"]["b"]["realism"]["value"]
