"""Metrics of one editor: averages of its scores over test images and prompts, and distances of distributions.

A measure is a function (context, edits, table) -> metrics by name, registered in `EDITOR_MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.evaluation import SEPARATE_SPLITS, metrics, scoring
from pipeline.evaluation.batching import in_batches
from pipeline.evaluation.bootstrap import Bootstrap, Metric, absent, metric
from pipeline.evaluation.context import EditorResult, EvaluationContext
from pipeline.evaluation.scoring import ScoredEdits
from pipeline.storage import images

AVERAGED = (  # measures of single edits that are averaged, in the order of metrics.json
    *("reached", "kept", "identity", "psnr", "counterfactual_gain", "gain_over_input"),
    *("realism", "outside_psnr", "mask_iou", "reached_oracle2", "kept_oracle2"),
    *("psnr_input", "identity_input", "lpips_input", "clip_direction"),
)
PER_PROMPT = ("reached", "kept", "identity", "psnr", "counterfactual_gain", "clip_direction")
NEEDS = {"identity_input": "identity"}  # metric -> network without which a note stands in its place
NEEDS_OF_PHOTOGRAPHS = NEEDS | {"lpips_input": "lpips", "fid": "inception"}
NEEDS_OF_RENDERS = NEEDS | {
    **dict.fromkeys(("reached", "kept", "fid_oracle"), "oracle"),
    **dict.fromkeys(("identity", "realism", "realism_unedited"), "identity"),
    **dict.fromkeys(("reached_oracle2", "kept_oracle2"), "oracle2"),
}
FID_REPEATS = 100  # draws of a Frechet distance, which costs far more than a mean


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one editor by test image and prompt: P images, Q prompts, N rows of `scores`.

    texts: [Q]; seen: [Q] bool, prompts of the split that the averages are of
    image, column: [N], image and prompt of each row
    cells: [P,Q] by measure, NaN where an image is no case of a prompt
    """

    count: int
    texts: tuple[str, ...]
    splits: np.ndarray
    image: np.ndarray
    column: np.ndarray
    cells: dict[str, np.ndarray]

    @property
    def seen(self) -> np.ndarray:
        return self.splits == "seen"


def score_table(context: EvaluationContext, edits: ScoredEdits) -> ScoreTable:
    """Table of all averaged measures of an editor that has cases."""
    scores = edits.scores
    ids, image = np.unique(scores["id"].to_numpy(), return_inverse=True)
    texts = sorted(scores["prompt"].unique().to_list())
    column = np.array([texts.index(text) for text in scores["prompt"]])
    cells = {}
    for name in AVERAGED:
        if name in scores.columns:
            cells[name] = np.full((len(ids), len(texts)), np.nan)
            cells[name][image, column] = scores[name].to_numpy()
    splits = np.array([context.prompts[text].split for text in texts])
    return ScoreTable(len(ids), tuple(texts), splits, image, column, cells)


def averages(context: EvaluationContext, edits: ScoredEdits, table: ScoreTable) -> dict[str, Any]:
    """Averages over the prompts seen in training, and below their splits over those of new words and of several
    attributes."""
    numbers: dict[str, Any] = {
        name: context.bootstrap.mean(cells[:, table.seen]) for name, cells in table.cells.items()
    }
    for split in filter(table.splits.__contains__, SEPARATE_SPLITS):
        numbers[split] = _per_prompt(table, table.splits == split, context.bootstrap)
    return numbers


def fid(context: EvaluationContext, edits: ScoredEdits, table: ScoreTable) -> dict[str, Metric]:
    """fid: Frechet distance of edited photographs to the test images, in Inception's features; no interval, as one
    distance of 2048 x 2048 covariances takes seconds."""
    if context.inception is None:
        return {}
    return {"fid": metric(metrics.frechet(edits.inception.moments(), context.inception.moments()))}


def fid_oracle(context: EvaluationContext, edits: ScoredEdits, table: ScoreTable) -> dict[str, Metric]:
    """fid_oracle: Frechet distance of edits to their counterfactuals, in the oracle's features."""
    if context.counterfactuals is None or not len(edits.features):
        return {}
    rows = table.seen[table.column]
    features, goals = edits.features[rows], context.counterfactuals.features[edits.cases].numpy()[rows]

    def distances(weights: np.ndarray) -> np.ndarray:
        return np.array([metrics.frechet_distance(features, goals, draw[table.image[rows]]) for draw in weights])

    return {"fid_oracle": context.bootstrap.at_most(FID_REPEATS).statistic(distances, table.count, centred=True)}


def cost(context: EvaluationContext, edits: ScoredEdits, table: ScoreTable) -> dict[str, Metric]:
    """evaluations: forward passes of the drawing network per edit; images: test images with a case."""
    evaluations = float(np.mean(edits.scores["evaluations"].to_numpy()))
    return {"evaluations": metric(evaluations), "images": metric(table.count)}


def prompts(context: EvaluationContext, edits: ScoredEdits, table: ScoreTable) -> dict[str, Any]:
    """prompts: the main metrics of each prompt, and `images`, the number of test images it applies to."""
    return {
        "prompts": {
            text: _per_prompt(table, i, context.bootstrap) | {"images": metric(int((table.column == i).sum()))}
            for i, text in enumerate(table.texts)
        }
    }


def realism_unedited(context: EvaluationContext, edits: ScoredEdits, table: ScoreTable) -> dict[str, Metric]:
    """realism_unedited: share of the editor's images at strength 0 that the discriminator takes for renders."""
    discriminator = context.discriminator
    if discriminator is None or not edits.unedited:
        return {}
    renders = in_batches(
        lambda part: discriminator.look(part, context.half)[1],
        np.stack([*edits.unedited.values()]),
        context.batch,
        context.networks.device,
    )
    return {"realism_unedited": context.bootstrap.mean(renders)}


def missing(context: EvaluationContext, edits: ScoredEdits, table: ScoreTable) -> dict[str, Metric]:
    """Notes in place of what an absent network would have measured."""
    needs = NEEDS_OF_PHOTOGRAPHS if context.counterfactuals is None else NEEDS_OF_RENDERS
    notes = {name: context.networks.absent(network) for name, network in needs.items()}
    return {name: absent(note) for name, note in notes.items() if note}


EditorMeasure = Callable[[EvaluationContext, ScoredEdits, ScoreTable], dict[str, Any]]
EDITOR_MEASURES: tuple[EditorMeasure, ...] = (averages, fid, fid_oracle, cost, prompts, realism_unedited, missing)


@torch.no_grad()  # here too, since gradients are switched off per thread
def evaluate(context: EvaluationContext, editor: str) -> EditorResult:
    """Scores and metrics of one editor."""
    edits = scoring.score(context, editor)
    numbers: dict[str, Any] = {}
    if edits.scores.height:
        table = score_table(context, edits)
        for measure in EDITOR_MEASURES:
            numbers |= measure(context, edits, table)
    reconstructed = reconstruction(context, edits) if editor == context.diffusion_editor else {}
    return EditorResult(numbers, edits.scores, reconstructed)


def reconstruction(context: EvaluationContext, edits: ScoredEdits) -> dict[str, Metric]:
    """psnr (dB), ssim and mse (on [0,1]) of the editor's images at strength 0 against the test images."""
    rows = context.test.rows()
    ids = sorted(row_id for row_id in edits.unedited if row_id in rows)
    if not ids:
        return {}
    source = context.test.images[[rows[row_id] for row_id in ids]]
    unedited = images.from_uint8(np.stack([edits.unedited[row_id] for row_id in ids]))
    return {name: context.bootstrap.mean(each) for name, each in metrics.reconstruction(unedited, source).items()}


def _per_prompt(table: ScoreTable, columns: Any, bootstrap: Bootstrap) -> dict[str, Metric]:
    return {name: bootstrap.mean(table.cells[name][:, columns]) for name in PER_PROMPT if name in table.cells}
