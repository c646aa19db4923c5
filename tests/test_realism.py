"""The discriminator of edits: what it learns from, that it tells, and what it does to an evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import known_people
import pytest
import torch
from known_people import World, change, nothing

from pipeline import realism
from pipeline.metrics import Draws
from pipeline.recognition import IdentityNet
from pipeline.truth import TestSet

world = known_people.world  # fixture
COUNT, R = 60, 16


@pytest.fixture(scope="module")
def nets() -> Any:
    """A generator that makes brighter pictures than there are, and an identity network that saw neither."""
    torch.manual_seed(0)
    return SimpleNamespace(
        device="cpu",
        identity=IdentityNet((16, 32), 6).eval(),
        generator=SimpleNamespace(repeat=lambda w: w[:, None]),
        absent=lambda name: None,
    )


def pictures(count: int, brighter: float, seed: int) -> torch.Tensor:
    noise = torch.randn(count, 3, R, R, generator=torch.Generator().manual_seed(seed))
    return (0.3 * noise + brighter).clamp(-1, 1)


def learnt(nets: Any, brighter: float, monkeypatch: pytest.MonkeyPatch) -> realism.Discriminator:
    monkeypatch.setattr(realism, "TAUGHT", 40)
    monkeypatch.setattr(realism, "TRIED", 20)
    made = pictures(COUNT, brighter, 1)
    shown = []

    class Makes:
        def repeat(self, w: torch.Tensor) -> torch.Tensor:
            return w[:, None]

        def __call__(self, w_plus: torch.Tensor) -> torch.Tensor:
            shown.extend(w_plus[:, 0, 0].tolist())
            return made[w_plus[:, 0, 0].long()]

    nets.generator = Makes()
    test = TestSet(tuple(range(COUNT)), pictures(COUNT, 0.0, 2), None)
    codes = torch.arange(COUNT)[:, None].float()
    found = realism.discriminator(nets, test, codes, 16, Draws(50, 0))
    assert found is not None and sorted(shown) == list(range(COUNT))
    return found


def test_what_differs_is_told_apart_on_pictures_it_did_not_learn_from(
    nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = learnt(nets, 0.8, monkeypatch)
    assert found.told_apart["value"] > 0.95  # type: ignore[operator]
    for brighter, drawn in ((0.0, 1), (0.8, 0)):
        identity, looks = found.look(pictures(10, brighter, 3))
        assert looks.mean() == pytest.approx(drawn, abs=0.2)
        torch.testing.assert_close(identity, nets.identity(pictures(10, brighter, 3)))


def test_what_does_not_differ_is_a_guess(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.3 < learnt(nets, 0.0, monkeypatch).told_apart["value"] < 0.7  # type: ignore[operator]


def test_without_our_identity_network_there_is_none(nets: Any) -> None:
    test = TestSet((0,), torch.zeros(1, 3, R, R), None)
    stranger = SimpleNamespace(**{**vars(nets), "identity": lambda images: images})
    missing = SimpleNamespace(**{**vars(nets), "absent": lambda name: "weights missing"})
    for backbones in (stranger, missing):
        assert realism.discriminator(backbones, test, torch.zeros(1, 1), 8, Draws()) is None  # type: ignore[arg-type]


def test_an_editors_realism_is_the_share_it_takes_for_drawn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here whoever has become red-haired looks made."""
    monkeypatch.setattr("pipeline.evaluation.foundations.generator_metrics", lambda *_: {})

    def look(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        people = [world.backbones.oracle.known[world.backbones.oracle.key(row)] for row in features(images)]
        drawn = torch.tensor([person.traits.hair_color.value != "red" for person in people]).float()
        return world.backbones.identity(images), drawn

    features = world.backbones.oracle.features
    fixed = SimpleNamespace(look=look, told_apart={"value": 0.9, "low": None, "high": None})
    monkeypatch.setattr(realism, "discriminator", lambda *_: fixed)
    edits = {"a": world.edits("a", change), "b": world.edits("b", nothing)}
    evaluated = world.evaluate(edits, fakes=torch.zeros(4, 3))
    found, scores = evaluated.metrics, evaluated.scores
    assert found["generator"]["told_apart"]["value"] == 0.9
    red = scores.filter((scores["editor"] == "a") & (scores["prompt"] == "face with red hair"))
    assert red["realism"].sum() == 0
    assert found["editors"]["a"]["realism"]["value"] < found["editors"]["b"]["realism"]["value"]
