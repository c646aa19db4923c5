"""Figures that need networks: strength sweeps, interpolations, style mixing and a map of CLIP's space.

They follow the paper's figures 1 and 11 to 15. `pipeline.report` shows what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import interpolation, sources
from pipeline.editors import deltaedit_d, deltaedit_g
from pipeline.evaluation import counterfactuals, network_quality
from pipeline.evaluation.batching import clip_units
from pipeline.runtime import files
from pipeline.storage import artefacts, images
from pipeline.values import Inversion, TextPair

if TYPE_CHECKING:
    from pipeline.editors._diffusion import WholeImageEditor
    from pipeline.evaluation.counterfactuals import TestSet
    from pipeline.networks import Networks
    from pipeline.storage.artefacts import DomainPaths
    from pipeline.storage.domains import Prompt
    from pipeline.values import Direction, Inversion, Source

IMAGES, STEPS = 3, 6  # test images in the figures; images from one end of an interpolation to the other
STRENGTHS, THRESHOLDS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0), (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
THRESHOLD = 0.1  # of the figure over STRENGTHS
LARGEST = 192  # pixels of an image in a figure
MAPPED = 300  # test images on the map, each with its caption


def draw(
    networks: Networks,
    test: TestSet,
    inversion: Inversion,
    settings: Mapping[str, Any],
    layout: DomainPaths,
) -> None:
    """Draw and save the figures of the editors in `settings`, on the first IMAGES test images and two prompts.

    inversion: of the first n >= IMAGES test images
    settings: editor name -> the Params that its edits were made with
    """
    first = slice(IMAGES)
    source = sources.source(networks, test.images[first], inversion.select(first))
    prompts = choose_prompts(test, [prompt for prompt in networks.domain.prompts if prompt.split == "seen"])
    pairs = [TextPair(networks.domain.neutral, prompt.text) for prompt in prompts]
    grids: dict[str, Tensor] = {}
    if prompts and "deltaedit_g" in settings:
        grids["strong"], grids["kept"] = sweeps(networks, source, pairs, settings["deltaedit_g"])
    if "deltaedit_d" in settings:
        params = settings["deltaedit_d"]
        editor = deltaedit_d.build(networks, params)
        grids["between"], grids["mixed"] = interpolations(editor, source, pairs, params.strength)
    levels = list(networks.generator.layout.levels)
    save(layout, grids, prompts=[prompt.text for prompt in prompts], levels=levels)


@torch.no_grad()
def interpolations(
    editor: WholeImageEditor, source: Source, pairs: Sequence[TextPair], strength: float
) -> tuple[Tensor, Tensor]:
    """Interpolation and style mixing by DeltaEdit-D as two grids [3,H,W] (paper, section 5.3).

    The first has STEPS images a row: from the first image to the second, from the first to its edit, and from that
    edit to another. The second has a row per image: the image, the next one, and the image with each level of the next
    one's style.

    source: IMAGES images or more
    pairs: texts of the edits; the first two are used
    """
    ones = [source.select([row]) for row in range(IMAGES)]
    prepared = [editor.prepare(one) for one in ones]
    ends = [interpolation.endpoint(editor, one) for one in prepared]
    edits = [interpolation.endpoint(editor, prepared[0], editor.fit(pair), strength) for pair in pairs[:2]]
    weights = [step / (STEPS - 1) for step in range(STEPS)]
    strips = [(ends[0], ends[1]), *((ends[0], edit) for edit in edits[:1]), *zip(edits, edits[1:], strict=False)]
    levels = editor.networks.generator.layout.levels
    mixed = [
        [own.image[0], other.image[0], *(interpolation.mixed(editor, end, style, [level])[0] for level in levels)]
        for own, other, end, style in zip(ones, ones[1:] + ones[:1], ends, ends[1:] + ends[:1], strict=True)
    ]
    rows = [[*interpolation.between(editor, start, stop, weights)] for start, stop in strips]
    return image_grid(rows), image_grid(mixed)


@torch.no_grad()
def sweeps(
    networks: Networks, source: Source, pairs: Sequence[TextPair], settings: deltaedit_g.Params
) -> tuple[Tensor, Tensor]:
    """The first image edited at STRENGTHS and at THRESHOLDS, as two grids [3,H,W] with a row per text.

    DeltaEdit-G as published: a threshold alone masks channels (paper, figures 11 and 12).
    """
    plain = replace(settings, same_sign=False, top_share=None, max_sigma=None, delta_ridge=None)
    one = source.select([0])

    def row(direction: Direction, steps: Iterable[tuple[float, float]]) -> list[Tensor]:
        edits = []
        for strength, threshold in steps:
            editor = deltaedit_g.build(networks, replace(plain, threshold=threshold))
            edits.append(editor.edit(editor.prepare(one), direction, strength).images[0].clamp(-1, 1))
        return edits

    directions = [deltaedit_g.build(networks, plain).fit(pair) for pair in pairs]
    strong = [row(direction, ((x, THRESHOLD) for x in STRENGTHS)) for direction in directions]
    kept = [row(direction, ((settings.strength, x) for x in THRESHOLDS)) for direction in directions]
    return image_grid(strong), image_grid(kept)


def clip_map(networks: Networks, test: TestSet, batch: int, seed: int) -> dict[str, np.ndarray]:
    """t-SNE, by cosine, of CLIP's embeddings of test images and their captions (paper, figure 1).

    Returns the columns of one table. space: 0 for the embeddings, 1 for differences between consecutive images (or
    captions); text: 1 for captions; x, y: the position in [0,1]. Needs three test images or more.
    """
    from sklearn.manifold import TSNE

    count = min(MAPPED, len(test.ids))
    captions = network_quality.captions_of(test, count, seed)
    image_units = clip_units(networks, test.images[:count], batch)
    with torch.no_grad():
        text_units = F.normalize(networks.clip.embed_texts(captions).float().cpu(), dim=1)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("space", "text", "x", "y")}
    for space in (0, 1):
        sides = [side.roll(-1, 0) - side if space else side for side in (image_units, text_units)]
        xy = TSNE(metric="cosine", init="pca", perplexity=min(30, count - 1), random_state=seed).fit_transform(
            torch.cat(sides).numpy()
        )
        xy = (xy - xy.min(axis=0)) / np.ptp(xy, axis=0)
        columns["space"].append(np.full(2 * count, space))
        columns["text"].append(np.repeat([0, 1], count))
        columns["x"].append(xy[:, 0])
        columns["y"].append(xy[:, 1])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def choose_prompts(test: TestSet, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first two prompts of different attributes; of a drawn portrait, those that change the first image."""
    if test.people is not None:
        pairs = [(test.ids[0], prompt.text) for prompt in prompts]
        prompts = [
            case.prompt for case in counterfactuals.cases(test, pairs, {prompt.text: prompt for prompt in prompts})
        ]
    return counterfactuals.one_per_attribute(prompts)[:2]


def image_grid(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of images [3,R,R] as one [3,H,W]; each is shrunk to LARGEST pixels at most."""
    size = min(LARGEST, rows[0][0].shape[-1])
    return images.grid([[F.adaptive_avg_pool2d(image, size) for image in row] for row in rows])


def save(layout: DomainPaths, grids: Mapping[str, Tensor], **captions: Any) -> None:
    """Write grids as NAME.png, and what their captions need (JSON-able) as captions.json."""
    for name, grid in grids.items():
        images.save_png(layout.figures / f"{name}.png", grid)
    content = {"strengths": STRENGTHS, "threshold": THRESHOLD, "thresholds": THRESHOLDS, **captions}
    files.write_bytes(layout.figures / "captions.json", json.dumps(content, ensure_ascii=False).encode())


def save_map(layout: DomainPaths, columns: Mapping[str, np.ndarray]) -> None:
    """Write the table of `clip_map`."""
    import polars as pl

    artefacts.write_table(layout.clip_map, pl.DataFrame(columns))
