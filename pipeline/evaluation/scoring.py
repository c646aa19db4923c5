"""Scores of one editor's edits: a row per case, with the features for Frechet distances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import metrics
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.edit_measures import EDIT_MEASURES, EditBatch
from pipeline.evaluation.metrics import GaussianStats
from pipeline.runtime.errors import InputError, nearest
from pipeline.runtime.precision import lowered
from pipeline.sources import UNEDITED
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    import polars as pl

    from pipeline.storage.domains import Prompt

ORACLES = ("oracle", "oracle2")


@dataclass(frozen=True)
class ScoredEdits:
    """scores: a row per case.

    features, cases: [N,F] of the oracle, and numbers in the counterfactual set, of the rows
    inception: of photographs' edits towards prompts seen in training
    unedited: id -> uint8 [R,R,3], the editor's image at strength 0
    """

    scores: pl.DataFrame
    features: np.ndarray
    cases: list[int]
    inception: GaussianStats
    unedited: Mapping[int, np.ndarray]


def rows(
    path: Path, columns: Sequence[str], batch: int, where: artefacts.Where | None = None
) -> Iterator[dict[str, list[Any]]]:
    """Rows of an artefact of schema `edits`, a batch at a time."""
    for part in artefacts.iterate(path, "edits", columns, batch, where):
        yield {key: part[key].tolist() if isinstance(part[key], Tensor) else list(part[key]) for key in columns}


def requested(editor: str, path: Path, prompts: Mapping[str, Prompt]) -> set[tuple[int, str]]:
    """Pairs of id and prompt text that an editor edited.

    Raises InputError for a prompt that is not the domain's, or several strengths.
    """
    pairs: set[tuple[int, str]] = set()
    strengths: set[float] = set()
    for part in rows(path, ("id", "prompt", "strength"), 4096):
        for row_id, prompt, strength in zip(part["id"], part["prompt"], part["strength"], strict=True):
            if prompt == UNEDITED:
                continue
            if prompt not in prompts:
                hint = nearest(prompt, prompts)
                raise InputError(
                    f"edits of {editor}: '{prompt}' is no prompt of the domain{hint}: make the edits again"
                )
            pairs.add((row_id, prompt))
            strengths.add(strength)
    if len(strengths) > 1:
        raise InputError(
            f"edits of {editor} have strengths {sorted(strengths)}: one setting for all prompts is expected"
        )
    return pairs


def unedited_images(path: Path, batch: int) -> dict[int, np.ndarray]:
    """Images that an editor makes at strength 0: id -> uint8 [R,R,3]."""
    return {
        row_id: images.to_uint8(images.decode_png(image))
        for part in rows(path, ("id", "image"), batch, where={"prompt": UNEDITED})
        for row_id, image in zip(part["id"], part["image"], strict=True)
    }


@torch.no_grad()
def score(context: EvaluationContext, editor: str) -> ScoredEdits:
    """Score the edits of one editor, a batch at a time, by every measure that applies."""
    import polars as pl

    path, row_of, goals = context.edits[editor], context.test.rows(), context.counterfactuals
    unedited, inception = unedited_images(path, context.batch), GaussianStats()
    frames: list[pl.DataFrame] = []
    features: list[np.ndarray] = []
    cases: list[int] = []
    for part in rows(path, ("id", "prompt", "strength", "image", "mask", "evaluations"), context.batch):
        kept = [
            i
            for i, pair in enumerate(zip(part["id"], part["prompt"], strict=True))
            if (pair[1] != UNEDITED and pair[0] in row_of if goals is None else pair in goals.index)
        ]
        if not kept:
            continue
        part = {name: [values[i] for i in kept] for name, values in part.items()}
        edits = _observe(context, part, unedited)
        if goals is None:
            _add_photographs(context, edits, inception)
        cases += edits.cases
        features += [edits.features["oracle"].cpu().numpy()] if "oracle" in edits.features else []
        frames.append(_frame(context, editor, part, edits))
    return ScoredEdits(
        pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame(),
        np.concatenate(features) if features else np.zeros((0, 1)),
        cases,
        inception,
        unedited,
    )


def _observe(
    context: EvaluationContext, part: Mapping[str, list[Any]], unedited: Mapping[int, np.ndarray]
) -> EditBatch:
    """Columns of the artefact as images, and what the networks see in them."""
    networks, goals, row_of, ids = context.networks, context.counterfactuals, context.test.rows(), part["id"]
    edited = torch.stack([images.decode_png(image) for image in part["image"]])
    on_device = edited.to(networks.device)
    identity, taken_for_render = _identity(context, on_device)
    cases, features = [], {}
    if goals is not None:
        cases = [goals.index[pair] for pair in zip(ids, part["prompt"], strict=True)]
        for name in ORACLES:
            if not networks.absent(name):
                with lowered(on_device.device, context.half):
                    features[name] = getattr(networks, name).features(on_device)
    before = torch.full_like(edited, torch.nan)
    have = [i for i, row_id in enumerate(ids) if row_id in unedited]
    if have:
        before[have] = images.from_uint8(np.stack([unedited[ids[i]] for i in have]))
    goal = None if goals is None else goals.images(cases)
    return EditBatch(
        ids=tuple(ids),
        prompts=tuple(context.prompts[text] for text in part["prompt"]),
        images=edited,
        source=context.test.images[[row_of[row_id] for row_id in ids]],
        unedited=before,
        mask=None if None in part["mask"] else torch.stack([images.decode_mask(mask) for mask in part["mask"]]),
        identity=identity,
        taken_for_render=taken_for_render,
        features=features,
        cases=cases,
        goal=goal,
        psnr=None if goal is None else metrics.psnr(edited, goal),
    )


def _identity(context: EvaluationContext, edited: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Identity embeddings [n,K] of edits, and whether the discriminator takes them for renders [n]."""
    if context.discriminator is not None:
        identity, taken_for_render = context.discriminator.look(edited, context.half)
        return identity.cpu(), taken_for_render.cpu()
    if context.networks.absent("identity"):
        return None, None
    with lowered(edited.device, context.half):
        return context.networks.identity(edited).float().cpu(), None


def _add_photographs(context: EvaluationContext, edits: EditBatch, inception: GaussianStats) -> None:
    """Add Inception's features of the edits towards prompts seen in training."""
    seen = [i for i, prompt in enumerate(edits.prompts) if prompt.split == "seen"]
    if seen and not context.networks.absent("inception"):
        inception.add(context.networks.inception(edits.images[seen].to(context.networks.device)))


def _frame(context: EvaluationContext, editor: str, part: Mapping[str, list[Any]], edits: EditBatch) -> pl.DataFrame:
    import polars as pl

    columns: dict[str, Any] = {
        "editor": [editor] * len(edits.ids),
        "id": part["id"],
        "prompt": part["prompt"],
        "asked": [", ".join(f"{name}={value}" for name, value in prompt.asks.items()) for prompt in edits.prompts],
        "strength": part["strength"],
        "evaluations": part["evaluations"],
    }
    measured = {name: measure(context, edits) for name, measure in EDIT_MEASURES.items()}
    columns |= {name: values.double().numpy() for name, values in measured.items() if values is not None}
    return pl.DataFrame(columns)
