"""Portraits whose edits and metrics are known beforehand, with stand-ins for every network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import portraits
from pipeline.evaluation import benchmark
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.context import EvaluationInputs
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.storage import artefacts, images
from pipeline.storage.domains import Prompt

SIZE, PEOPLE, FIRST = 12, 24, 70_000
PROMPTS = (
    Prompt("face with red hair", "hair_color", "red"),
    Prompt("face with sunglasses", "glasses", "sunglasses"),
    Prompt("face with bangs", "bangs", "yes"),
)
MISSING = "not computed: weights missing at data/pretrained/portraits/{}.safetensors"
Draw = Callable[[portraits.Portrait, Prompt], portraits.Portrait]


class PerfectOracle:
    """Oracle that is always right: it looks up renders by their 4 x 4 colours, its features."""

    attributes = portraits.ATTRIBUTES

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], portraits.Portrait] = {}

    def draw(self, person: portraits.Portrait) -> torch.Tensor:
        picture = images.from_uint8(portraits.render(person, SIZE))
        self.known[self.key(self.features(picture[None])[0])] = person
        return picture

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pictures, SIZE // 4).flatten(1)

    def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        people = [portraits.attributes(self.known[self.key(row)]) for row in features]
        return {
            name: torch.stack([torch.tensor([value == person[name] for value in values]) for person in people]).float()
            for name, values in self.attributes.items()
        }

    def predict(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: logits.argmax(1) for name, logits in self.logits(self.features(pictures)).items()}

    @staticmethod
    def key(features: torch.Tensor) -> tuple[int, ...]:
        return tuple((features * 1000).round().int().tolist())


class HashClip:
    """CLIP without meaning: images are projected at random, texts are hashed."""

    dim = 7

    def embed_images(self, pictures: torch.Tensor) -> torch.Tensor:
        matrix = torch.randn(pictures[0].numel(), self.dim, generator=torch.Generator().manual_seed(0))
        return pictures.flatten(1) @ matrix

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def text_feature(self, text: str, templates: tuple[str, ...]) -> torch.Tensor:
        return self.embed_texts([templates[0].format(text)])[0]

    def without_synonyms(self) -> HashClip:
        return LiteralClip()

    def text_delta(self, source: str, target: str, templates: tuple[str, ...]) -> torch.Tensor:
        return self.text_feature(target, templates) - self.text_feature(source, templates)


class LiteralClip(HashClip):
    """The same with other hashes, for texts without synonyms."""

    def text_feature(self, text: str, templates: tuple[str, ...]) -> torch.Tensor:
        return super().text_feature(f"{text}, to the letter", templates)


def unit(pictures: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(pictures.flatten(1), dim=1)


@dataclass
class World:
    """Stand-ins for the networks, the test set, and a folder for edits."""

    networks: Any
    test: TestSet
    folder: Path

    def edits(self, name: str, edit: Draw, strength: float = 1.0, **options: Any) -> Path:
        return write_edits(self, name, edit, strength, **options)

    def evaluate(self, edits: dict[str, Path], **options: Any) -> benchmark.Evaluation:
        return benchmark.run(self.inputs(edits, **options))

    def inputs(self, edits: dict[str, Path], **options: Any) -> EvaluationInputs:
        defaults = {"diffusion_editor": "deltaedit_d", "bootstrap": Bootstrap(20), "batch": 7}
        return EvaluationInputs(networks=self.networks, test=self.test, edits=edits, **{**defaults, **options})


@pytest.fixture
def world(tmp_path: Path) -> World:
    reader = PerfectOracle()
    people = tuple(portraits.sample(FIRST + i) for i in range(PEOPLE))
    for person in people:
        for prompt in PROMPTS:
            reader.draw(change(person, prompt))
    pictures = torch.stack([reader.draw(person) for person in people])
    shape = (3, SIZE, SIZE)
    networks = SimpleNamespace(
        domain=SimpleNamespace(name="portraits", prompts=PROMPTS, neutral="face", templates=("{}",)),
        oracle=reader,
        identity=unit,
        clip=HashClip(),
        encoder=lambda batch: batch.flatten(1).unflatten(1, (2, -1)),
        generator=lambda w: w.flatten(1).unflatten(1, shape),
        device="cpu",
        absent=lambda name: MISSING.format(name) if getattr(networks, name, None) is None else None,
    )
    return World(networks, TestSet(tuple(range(FIRST, FIRST + PEOPLE)), pictures, people), tmp_path)


def change(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
    return portraits.counterfactual(person, prompt.asks)


def unchanged(person: portraits.Portrait, prompt: Prompt) -> portraits.Portrait:
    return person


def write_edits(
    world: World,
    name: str,
    edit: Draw,
    strength: float,
    shuffled: bool = False,
    people: int = PEOPLE,
    prompts: tuple[Prompt, ...] = PROMPTS,
    mask: torch.Tensor | None = None,
) -> Path:
    assert world.test.people is not None
    draw = world.networks.oracle.draw
    rows = []
    for row_id, person in list(zip(world.test.ids, world.test.people, strict=True))[:people]:
        rows.append((row_id, "", 0.0, images.encode_png(draw(person))))
        rows += [(row_id, p.text, strength, images.encode_png(draw(edit(person, p)))) for p in prompts]
    if shuffled:
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    ids, prompts, strengths, pictures = (list(column) for column in zip(*rows, strict=True))
    columns = {
        "id": ids,
        "prompt": prompts,
        "strength": strengths,
        "image": pictures,
        "s": None,
        "mask": None if mask is None else [images.encode_mask(mask)] * len(rows),
        "evaluations": [3] * len(rows),
    }
    write(world.folder / name, columns)
    return world.folder / name


def write(path: Path, columns: dict[str, Any]) -> None:
    artefacts.write_shard(path / artefacts.shard_name(0), "edits", columns, {"domain": "portraits"})


def stored(path: Path) -> dict[str, Any]:
    columns = ("id", "prompt", "strength", "image", "evaluations")
    return artefacts.read(path, "edits", columns) | {"s": None, "mask": None}


def applicable(world: World, prompt: Prompt) -> list[int]:
    """Ids of the portraits that a prompt applies to, by hand: without the value, and able to show it."""
    assert world.test.people is not None
    bald, plain = ("bald",), ("short", "long", "curly")
    found = []
    for row_id, person in zip(world.test.ids, world.test.people, strict=True):
        has = portraits.attributes(person)
        hidden = {
            "hair_color": has["hair_style"] in bald,
            "bangs": has["hair_style"] not in plain,
            "glasses": False,
        }
        if has[str(prompt.attribute)] != prompt.value and not hidden[str(prompt.attribute)]:
            found.append(row_id)
    return found
