"""Figures drawn by networks: the places of their images, and the prompts they use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import edited_world
import numpy as np
import pytest
import torch

from pipeline import interpolation, portraits
from pipeline.evaluation import figures
from pipeline.evaluation.counterfactuals import TestSet
from pipeline.networks import Networks
from pipeline.report import charts, edit_grid
from pipeline.storage import artefacts, images
from pipeline.storage.domains import Prompt
from pipeline.values import Source, TextPair

project, world, source = edited_world.project, edited_world.world, edited_world.source  # fixtures
PROMPTS = (
    Prompt("face with red hair", "hair_color", "red"),
    Prompt("face with grey hair", "hair_color", "grey"),
    Prompt("happy face", "expression", "smile"),
    Prompt("face with eyeglasses", "glasses", "eyeglasses"),
    Prompt("sad face", "expression", "sad"),
)


def test_interpolations_begin_and_end_at_their_images_and_edits(world: Networks, source: Source, tmp_path: Any) -> None:
    editor = edited_world.editor_of("deltaedit_d", world)
    pairs = [TextPair("face", text) for text in ("face with red hair", "happy face")]
    between, mixed = figures.interpolations(editor, source, pairs, 1.0)
    size, levels = world.domain.resolution, list(world.generator.layout.levels)

    def tile(grid: torch.Tensor, row: int, column: int) -> torch.Tensor:
        top, left = 2 + row * (size + 2), 2 + column * (size + 2)
        return grid[:, top : top + size, left : left + size]

    prepared = [editor.prepare(source.select([row])) for row in range(figures.IMAGES)]
    own, second = (interpolation.endpoint(editor, one) for one in prepared[:2])
    red, happy = (interpolation.endpoint(editor, prepared[0], editor.fit(pair), 1.0) for pair in pairs)
    ends = [(own, second), (own, red), (red, happy)]
    for row, pair in enumerate(ends):
        drawn = interpolation.between(editor, *pair, [0.0, 1.0])
        torch.testing.assert_close(tile(between, row, 0), drawn[0])
        torch.testing.assert_close(tile(between, row, figures.STEPS - 1), drawn[1])
    for row in range(figures.IMAGES):
        other = (row + 1) % figures.IMAGES
        assert torch.equal(tile(mixed, row, 0), source.image[row])
        assert torch.equal(tile(mixed, row, 1), source.image[other])
        one, style = (interpolation.endpoint(editor, prepared[index]) for index in (row, other))
        drawn = interpolation.mixed(editor, one, style, [levels[-1]])[0]
        torch.testing.assert_close(tile(mixed, row, 1 + len(levels)), drawn)
    layout = artefacts.DomainPaths("tiny", tmp_path)
    assert edit_grid.page_figures(layout) == {}
    figures.save(layout, {"between": between, "mixed": mixed}, prompts=["face with red hair"], levels=levels)
    page = edit_grid.page_figures(layout)
    assert page["prompts"] == ["face with red hair"] and page["levels"] == levels
    assert images.decode_png((layout.figures / "between.png").read_bytes()).shape == between.shape
    assert page["between"].startswith("data:image/png;base64,") and page["mixed"] != page["between"]


@pytest.mark.parametrize("count", [0, 1])
def test_with_fewer_prompts_there_are_fewer_rows(count: int, world: Networks, source: Source) -> None:
    editor = edited_world.editor_of("deltaedit_d", world)
    between, _ = figures.interpolations(editor, source, [TextPair("face", "happy face")] * count, 1.0)
    assert between.shape[1] == (1 + count) * (world.domain.resolution + 2) + 2


def test_large_images_are_shrunk() -> None:
    large = torch.arange(4.0).view(1, 2, 2).repeat_interleave(200, 1).repeat_interleave(200, 2).expand(3, -1, -1)
    grid = figures.image_grid([[large, large]])
    assert grid.shape == (3, figures.LARGEST + 4, 2 * figures.LARGEST + 6)
    assert grid[0, 2, 2] == 0 and grid[0, -3, -3] == 3


def test_edits_grow_with_the_strength_and_shrink_with_the_threshold(world: Networks, source: Source) -> None:
    settings = edited_world.settings_of("deltaedit_g", world)
    editor = edited_world.editor_of("deltaedit_g", world)
    pairs = [TextPair("face", text) for text in ("face with red hair", "happy face")]
    strong, kept = figures.sweeps(world, source, pairs, settings)
    size = world.domain.resolution
    for grid, count in ((strong, len(figures.STRENGTHS)), (kept, len(figures.THRESHOLDS))):
        assert grid.shape == (3, 2 * (size + 2) + 2, count * (size + 2) + 2)
    tiles = [strong[:, 2 : 2 + size, 2 + i * (size + 2) :][:, :, :size] for i in range(len(figures.STRENGTHS))]
    still = editor.edit(editor.prepare(source.select([0])), editor.fit(pairs[0]), 0.0).images[0].clamp(-1, 1)
    torch.testing.assert_close(tiles[0], still)
    far = [(tile - still).abs().mean().item() for tile in tiles]
    assert far == sorted(far) and far[-1] > 0
    fewer = [kept[:, 2 : 2 + size, 2 + i * (size + 2) :][:, :, :size] for i in (0, -1 + len(figures.THRESHOLDS))]
    assert (fewer[0] - still).abs().mean() > (fewer[1] - still).abs().mean()


def test_prompts_differ_in_attribute_and_apply_to_the_first_image() -> None:
    person = portraits.counterfactual(
        portraits.sample(5), {"hair_color": "red", "hair_style": "short", "expression": "neutral", "glasses": "none"}
    )
    drawn = TestSet((5,), torch.zeros(1, 3, 4, 4), (person,))
    assert [prompt.text for prompt in figures.choose_prompts(drawn, PROMPTS)] == ["face with grey hair", "happy face"]
    photographs = TestSet((5,), torch.zeros(1, 3, 4, 4), None)
    assert [prompt.text for prompt in figures.choose_prompts(photographs, PROMPTS)] == [
        "face with red hair",
        "happy face",
    ]


def test_the_map_has_every_image_and_caption_in_both_spaces_and_keeps_clusters(tmp_path: Any) -> None:
    people = tuple(portraits.sample(row) for row in range(40))
    centres = torch.eye(4)

    class Two:
        """CLIP whose images and texts form two clusters."""

        def embed_images(self, images: torch.Tensor) -> torch.Tensor:
            return centres[0] + 0.1 * torch.randn(len(images), 4, generator=torch.Generator().manual_seed(1))

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            return centres[1] + 0.1 * torch.randn(len(texts), 4, generator=torch.Generator().manual_seed(2))

    nets: Any = SimpleNamespace(clip=Two(), device="cpu")
    columns = figures.clip_map(nets, TestSet(tuple(range(40)), torch.zeros(40, 3, 4, 4), people), 16, 0)
    assert {name: len(column) for name, column in columns.items()} == dict.fromkeys(("space", "text", "x", "y"), 160)
    points = np.stack([columns["x"], columns["y"]], axis=1)
    assert points.min() == 0 and points.max() == pytest.approx(1)
    raw = columns["space"] == 0
    images, texts = (points[raw & (columns["text"] == kind)] for kind in (0, 1))
    apart = np.linalg.norm(images.mean(0) - texts.mean(0))
    assert apart > 2 * max(np.linalg.norm(cluster - cluster.mean(0), axis=1).mean() for cluster in (images, texts))
    layout = artefacts.DomainPaths("tiny", tmp_path)
    assert charts.clip_maps(layout.clip_map) == []
    figures.save_map(layout, columns)
    maps = charts.clip_maps(layout.clip_map)
    assert [[len(line.get_xdata()) for line in figure.axes[0].lines] for _, figure in maps] == [[40, 40], [40, 40]]
