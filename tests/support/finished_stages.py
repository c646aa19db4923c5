"""Outputs of the stages that page and grid read, made by hand, with numbers that are easy to recognise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline import portraits
from pipeline.evaluation import bootstrap
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.storage import artefacts, images
from pipeline.storage.domains import Prompt

SIZE, PEOPLE, FIRST = 16, 12, 70_000
PROMPTS = (
    Prompt("face with red hair", "hair_color", "red"),
    Prompt("face with <b>sunglasses</b>", "glasses", "sunglasses"),
    Prompt("face with grey hair", "hair_color", "grey"),
    Prompt("face with ginger hair", "hair_color", "red", "heldout"),
)
EDITORS = ("deltaedit_g", "identity_editor", "counterfactual")
WORKFLOW = {
    "stages": {
        "prepare": {"matrix": {"domain": "${domains}"}, "outs": ["data/${item.domain}/images"]},
        "sample": {"foreach": "${domains}", "do": {"outs": ["data/${item}/fakes"]}},
        "cache": {
            "deps": ["pipeline/models/clip.py", "data/${item.domain}/images", "data/${item.domain}/fakes"],
            "outs": [{"data/${item.domain}/codes": {"cache": True}}],
        },
        "edit_latent": {
            "deps": ["data/${item.domain}/codes", "data/${item.domain}/images"],
            "outs": ["data/${item.domain}/edits/${item.editor}"],
        },
        "evaluate": {
            "deps": ["data/${item.domain}/edits", "data/${item.domain}/images"],
            "metrics": [{"reports/${item.domain}/metrics.json": {"cache": False}}],
        },
    }
}


def test_people() -> TestSet:
    people = tuple(portraits.sample(FIRST + i) for i in range(PEOPLE))
    pictures = torch.stack([images.from_uint8(portraits.render(person, SIZE)) for person in people])
    return TestSet(tuple(range(FIRST, FIRST + PEOPLE)), pictures, people)


test_people.__test__ = False  # type: ignore[attr-defined]


def write_edits(path: Path, test: TestSet, ids: tuple[int, ...] | None = None) -> None:
    """Edits of one flat colour each, which identifies image and prompt."""
    rows = [(row_id, i) for row_id in ids or test.ids for i in range(-1, len(PROMPTS))]
    columns: dict[str, Any] = {
        "id": [row_id for row_id, _ in rows],
        "prompt": ["" if i < 0 else PROMPTS[i].text for _, i in rows],
        "strength": [0.0 if i < 0 else 1.0 for _, i in rows],
        "image": [images.encode_png(colour(row_id, i)) for row_id, i in rows],
        "s": None,
        "mask": None,
        "evaluations": [1] * len(rows),
    }
    artefacts.write_shard(path / artefacts.shard_name(0), "edits", columns, {})


def colour(row_id: int, prompt: int) -> torch.Tensor:
    levels = torch.tensor([(row_id - FIRST) * 20, 40 + prompt * 50, 128]).float()
    return (levels / 127.5 - 1)[:, None, None].expand(3, SIZE, SIZE)


def numbers() -> dict[str, Any]:
    def interval(value: float) -> bootstrap.Metric:
        return bootstrap.metric(value, value - 0.01, value + 0.01)

    def editor(reached: float) -> dict[str, Any]:
        row = {
            "reached": interval(reached),
            "kept": interval(0.875),
            "identity": interval(0.5),
            "images": bootstrap.metric(12),
        }
        each = {"reached": interval(reached), "kept": interval(0.9), "images": bootstrap.metric(7)}
        return row | {"heldout": {"reached": interval(0.123)}, "prompts": {prompt.text: each for prompt in PROMPTS}}

    return {
        "domain": "portraits",
        "oracle": {
            "mean": interval(0.98),
            "min": interval(0.91),
            "chance": interval(0.4),
            "attributes": {"hair_color": interval(0.97)},
        },
        "clip": {"zero_shot": interval(0.86), "attributes": {"hair_color": interval(0.77)}},
        "inversion": {"psnr": interval(21.5)},
        "mapper": {"val_cos": bootstrap.metric(0.654), "val_mse": bootstrap.metric(float("nan"))},
        "diffusion": {"reconstruction": {}},
        "editors": {"deltaedit_g": editor(0.444), "counterfactual": editor(0.999), "identity_editor": editor(0.011)},
    }
