"""The discriminator of edits: what it learns from, that it tells, and what it does to an evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import known_people
import numpy as np
import pytest
import torch
from known_people import World, change, nothing

from pipeline import portraits
from pipeline.evaluation import network_quality, realism
from pipeline.evaluation.metrics import Draws
from pipeline.models.classifiers import IdentityNet
from pipeline.storage import images

world = known_people.world  # fixture
COUNT, R = 60, 16


@pytest.fixture(scope="module")
def nets() -> Any:
    """An identity network that has seen nothing."""
    torch.manual_seed(0)
    return SimpleNamespace(
        device="cpu",
        identity=IdentityNet((16, 32), 6).eval(),
        absent=lambda name: None,
    )


def renders(first: int, count: int, brighter: float = 0.0) -> torch.Tensor:
    drawn = [portraits.render(portraits.sample(first + row), R) for row in range(count)]
    return (images.from_uint8(np.stack(drawn)) + brighter).clamp(-1, 1)


def learnt(nets: Any, brighter: float, monkeypatch: pytest.MonkeyPatch) -> realism.Discriminator:
    monkeypatch.setattr(realism, "TAUGHT", 40)
    monkeypatch.setattr(realism, "TRIED", 20)
    found = realism.discriminator(nets, images.to_uint8(renders(100, COUNT + 5, brighter)), 16, Draws(50, 0))
    assert found is not None
    return found


def test_what_differs_is_told_apart_on_pictures_it_did_not_learn_from(
    nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = learnt(nets, 0.8, monkeypatch)
    assert found.told_apart["value"] > 0.9  # type: ignore[operator]
    for brighter, drawn in ((0.0, 1), (0.8, 0)):
        pictures = renders(500, 10, brighter)
        identity, looks = found.look(pictures)
        assert looks.mean() == pytest.approx(drawn, abs=0.2)
        torch.testing.assert_close(identity, nets.identity(pictures))


@pytest.mark.usefixtures("bfloat16_pays")
def test_half_precision_says_nearly_the_same_of_whom_a_picture_shows(
    nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, pictures = learnt(nets, 0.8, monkeypatch), renders(500, 10)
    (whole, _), (half, _) = (found.look(pictures, half) for half in (False, True))
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    assert torch.cosine_similarity(half, whole, dim=1).min() > 0.999


def test_what_does_not_differ_is_a_guess(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.25 < learnt(nets, 0.0, monkeypatch).told_apart["value"] < 0.75  # type: ignore[operator]


def test_nobody_it_learns_from_is_anybodys_test_person() -> None:
    assert realism.FIRST > network_quality.FRESH + 70_000  # where the people of the identity network's test are drawn


def test_without_our_identity_network_or_samples_there_is_none(nets: Any) -> None:
    stranger = SimpleNamespace(**{**vars(nets), "identity": lambda images: images})
    missing = SimpleNamespace(**{**vars(nets), "absent": lambda name: "weights missing"})
    for backbones, count in ((stranger, 10), (missing, 10), (nets, 5)):
        assert realism.discriminator(backbones, np.zeros((count, R, R, 3), np.uint8), 8, Draws()) is None  # type: ignore[arg-type]


def test_an_editors_realism_is_the_share_it_takes_for_drawn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here whoever has become red-haired looks made."""
    monkeypatch.setattr("pipeline.evaluation.benchmark.foundations.generator_metrics", lambda *_: {})

    def look(images: torch.Tensor, half: bool) -> tuple[torch.Tensor, torch.Tensor]:
        people = [world.backbones.oracle.known[world.backbones.oracle.key(row)] for row in features(images)]
        drawn = torch.tensor([person.traits.hair_color.value != "red" for person in people]).float()
        return world.backbones.identity(images), drawn

    features = world.backbones.oracle.features
    fixed = SimpleNamespace(look=look, told_apart={"value": 0.9, "low": None, "high": None})
    monkeypatch.setattr(realism, "discriminator", lambda *_: fixed)
    edits = {"a": world.edits("a", change), "b": world.edits("b", nothing)}
    monkeypatch.setattr("pipeline.evaluation.benchmark.foundations.sampled", lambda *_: None)
    evaluated = world.evaluate(edits, fakes=torch.zeros(4, 3))
    found, scores = evaluated.metrics, evaluated.scores
    assert found["generator"]["told_apart"]["value"] == 0.9
    plain = [person.traits.hair_color.value != "red" for person in world.test.people or ()]
    assert found["editors"]["a"]["realism_unedited"]["value"] == pytest.approx(sum(plain) / len(plain), abs=1e-6)
    red = scores.filter((scores["editor"] == "a") & (scores["prompt"] == "face with red hair"))
    assert red["realism"].sum() == 0
    assert found["editors"]["a"]["realism"]["value"] < found["editors"]["b"]["realism"]["value"]
