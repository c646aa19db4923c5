"""Figures of the page that networks draw: edits from weak to strong, between pictures, mixed styles, and a map of
CLIP's space (paper, figures 1 and 11 to 15)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import interpolation
from pipeline.editors import deltaedit_g
from pipeline.evaluation import counterfactuals, network_quality
from pipeline.report import edit_grid
from pipeline.runtime import files
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    from pipeline.editors._diffusion import Walker
    from pipeline.evaluation.counterfactuals import TestSet
    from pipeline.networks import Backbones
    from pipeline.storage.artefacts import Layout
    from pipeline.storage.domains import Prompt
    from pipeline.values import Direction, Source

PEOPLE, STEPS = 3, 6  # people in the figures, and pictures from one end to the other
STRENGTHS, THRESHOLDS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0), (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
THRESHOLD = 0.1  # at which STRENGTHS are shown
LARGEST = 192  # pixels of a picture on the page
MAPPED = 300  # people on the map, each as a picture and as a caption


@torch.no_grad()
def blends(walker: Walker, people: Source, directions: Sequence[Direction], strength: float) -> tuple[Tensor, Tensor]:
    """Two grids [3,H,W], of PEOPLE people or more and up to two directions.

    The first, of STEPS pictures a row: from the first person to the second, from the first to their edit, and from one
    edit of theirs to another. The second, a row per person: they, the next one, and they with each level of the next
    one's style.
    """
    ones = [people.select([row]) for row in range(PEOPLE)]
    ends = [interpolation.end(walker, one) for one in ones]
    edits = [interpolation.end(walker, ones[0], direction, strength) for direction in directions[:2]]
    weights = [step / (STEPS - 1) for step in range(STEPS)]
    pairs = [(ends[0], ends[1]), *((ends[0], edit) for edit in edits[:1]), *zip(edits, edits[1:], strict=False)]
    levels = walker.backbones.generator.layout.levels
    mixed = [
        [own.image[0], other.image[0], *(interpolation.mixed(walker, end, style, [level])[0] for level in levels)]
        for own, other, end, style in zip(ones, ones[1:] + ones[:1], ends, ends[1:] + ends[:1], strict=True)
    ]
    rows = [[*interpolation.between(walker, start, stop, weights)] for start, stop in pairs]
    return sheet(rows), sheet(mixed)


@torch.no_grad()
def swept(
    backbones: Backbones, people: Source, directions: Sequence[Direction], settings: deltaedit_g.Params
) -> tuple[Tensor, Tensor]:
    """Two grids [3,H,W] of DeltaEdit-G as published (threshold alone keeps channels back), a row per direction:
    the first person at STRENGTHS, and at THRESHOLDS."""
    one = people.select([0])

    def row(direction: Direction, tried: Iterable[tuple[float, float]]) -> list[Tensor]:
        edits = (
            deltaedit_g.build(
                backbones, replace(settings, threshold=threshold, agree=False, share=None, within=None, ridge=None)
            )
            .edit(one, direction, strength)
            .images[0]
            for strength, threshold in tried
        )
        return [edit.clamp(-1, 1) for edit in edits]

    strong = [row(direction, ((x, THRESHOLD) for x in STRENGTHS)) for direction in directions]
    kept = [row(direction, ((settings.strength, x) for x in THRESHOLDS)) for direction in directions]
    return sheet(strong), sheet(kept)


def clip_map(backbones: Backbones, test: TestSet, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Where CLIP places pictures of drawn people and their captions, by t-SNE of cosines; columns of one table.

    space: 0 for embeddings as they are, 1 for differences between each person and the next; text: whether it is of
    captions; x, y: the place, in [0,1].
    """
    from sklearn.manifold import TSNE

    count = min(MAPPED, len(test.ids))  # three or more
    captions = network_quality.captions_of(test, count, seed)
    pictures = network_quality.clip_units(backbones, test.images[:count], batch)
    with torch.no_grad():
        texts = F.normalize(backbones.clip.embed_texts(captions).float().cpu(), dim=1)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("space", "text", "x", "y")}
    for space in (0, 1):
        sides = [side.roll(-1, 0) - side if space else side for side in (pictures, texts)]
        places = TSNE(metric="cosine", init="pca", perplexity=min(30, count - 1), random_state=seed).fit_transform(
            torch.cat(sides).numpy()
        )
        places = (places - places.min(axis=0)) / np.ptp(places, axis=0)
        found["space"].append(np.full(2 * count, space))
        found["text"].append(np.repeat([0, 1], count))
        found["x"].append(places[:, 0])
        found["y"].append(places[:, 1])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def asked(test: TestSet, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first two prompts of different attributes, of those that concern the first person where that is known."""
    if test.people is not None:
        pairs = [(test.ids[0], prompt.text) for prompt in prompts]
        prompts = [
            case.prompt for case in counterfactuals.cases(test, pairs, {prompt.text: prompt for prompt in prompts})
        ]
    return edit_grid.one_each(prompts)[:2]


def sheet(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of pictures [3,R,R] as one [3,H,W], none wider than LARGEST pixels."""
    size = min(LARGEST, rows[0][0].shape[-1])
    return images.grid([[F.adaptive_avg_pool2d(picture, size) for picture in row] for row in rows])


def save(layout: Layout, grids: Mapping[str, Tensor], **told: Any) -> None:
    """Write grids by their names, and what they show (JSON-able)."""
    for name, grid in grids.items():
        images.save_png(layout.figures / f"{name}.png", grid)
    content = {"strengths": STRENGTHS, "threshold": THRESHOLD, "thresholds": THRESHOLDS, **told}
    files.write_bytes(layout.figures / "told.json", json.dumps(content, ensure_ascii=False).encode())


def save_map(layout: Layout, places: Mapping[str, np.ndarray]) -> None:
    """Write the table of `clip_map`."""
    import polars as pl

    artefacts.write_table(layout.clip_map, pl.DataFrame(places))
