"""Measures of single edits: the columns of evaluation/scores.parquet.

A measure is a function (context, edits) -> [n], or None where it does not apply. A new one is such a function, its line
in `EDIT_MEASURES` and, to enter metrics.json, its name in `editor_metrics.AVERAGED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.evaluation import metrics
from pipeline.evaluation.batching import clip_units

if TYPE_CHECKING:
    from pipeline.evaluation.context import EvaluationContext
    from pipeline.storage.domains import Prompt


@dataclass(frozen=True)
class EditBatch:
    """n edits, and what the networks see in them.

    images, source, unedited: edits, test images and the editor's images at strength 0 (NaN where there is none),
    [n,3,R,R] in [-1,1]
    mask: [n,1,R,R], None unless every edit has one
    identity: embeddings [n,K], None without the network
    taken_for_render: [n] of 0 and 1, by the discriminator, None without it
    features: oracle -> [n,F]
    cases: numbers in the counterfactual set; goal, psnr: counterfactuals [n,3,R,R], and PSNR of the edits to them [n],
    dB; None for photographs
    """

    ids: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    images: Tensor
    source: Tensor
    unedited: Tensor
    mask: Tensor | None
    identity: Tensor | None
    taken_for_render: Tensor | None
    features: Mapping[str, Tensor]
    cases: list[int]
    goal: Tensor | None
    psnr: Tensor | None


EditMeasure = Callable[["EvaluationContext", EditBatch], Tensor | None]


def psnr_input(context: EvaluationContext, edits: EditBatch) -> Tensor:
    """PSNR to the test image, dB."""
    return metrics.psnr(edits.images, edits.source)


def realism(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """1 where the discriminator takes the edit for a render (paper, table II)."""
    return edits.taken_for_render


def identity_input(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """Identity similarity to the test image."""
    if edits.identity is None:
        return None
    return metrics.cosine(edits.identity, torch.stack([context.identities[row_id] for row_id in edits.ids]))


def clip_direction(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """Cosine of the edit's step in CLIP space with the text delta of its prompt; only where no oracle reads edits."""
    networks, domain, texts = context.networks, context.networks.domain, [prompt.text for prompt in edits.prompts]
    if "oracle" in edits.features:
        return None
    deltas = {text: networks.clip.text_delta(domain.neutral, text, domain.templates).cpu() for text in set(texts)}
    step = clip_units(networks, edits.images, context.batch) - clip_units(networks, edits.source, context.batch)
    return metrics.cosine(step, torch.stack([deltas[text] for text in texts]))


def lpips_input(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """LPIPS distance of a photograph's edit to the photograph."""
    networks = context.networks
    if edits.goal is not None or networks.absent("lpips"):
        return None
    return networks.lpips(edits.images.to(networks.device), edits.source.to(networks.device)).cpu()


def reached(context: EvaluationContext, edits: EditBatch, oracle: str) -> Tensor | None:
    """1 where the oracle reads every value that was asked for."""
    goals, read = context.counterfactuals, _read(context, edits, oracle)
    if goals is None or read is None:
        return None
    return metrics.reached(read, goals.values[edits.cases], goals.asked[edits.cases])


def kept(context: EvaluationContext, edits: EditBatch, oracle: str) -> Tensor | None:
    """Share of the other visible attributes in which the oracle reads the counterfactual's value."""
    goals, read = context.counterfactuals, _read(context, edits, oracle)
    if goals is None or read is None:
        return None
    return metrics.kept(read, goals.values[edits.cases], goals.counted[edits.cases])


def _read(context: EvaluationContext, edits: EditBatch, oracle: str) -> Tensor | None:
    """Indices [n,A] of the values that an oracle reads, None without the network."""
    if context.counterfactuals is None or oracle not in edits.features:
        return None
    logits = getattr(context.networks, oracle).logits(edits.features[oracle])
    return torch.stack([logits[name].argmax(1) for name in context.counterfactuals.attributes], dim=1).cpu()


def identity(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """Identity similarity to the counterfactual."""
    if context.counterfactuals is None or edits.identity is None:
        return None
    return metrics.cosine(edits.identity, context.counterfactuals.identity[edits.cases])


def psnr(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """PSNR to the counterfactual, dB."""
    return edits.psnr


def counterfactual_gain(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """PSNR to the counterfactual, less that of the same editor at strength 0, dB."""
    if edits.goal is None or edits.psnr is None:
        return None
    return edits.psnr - metrics.psnr(edits.unedited, edits.goal)


def gain_over_input(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """PSNR to the counterfactual, less that of the test image, dB."""
    if edits.goal is None or edits.psnr is None:
        return None
    return edits.psnr - metrics.psnr(edits.source, edits.goal)


def outside_psnr(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """PSNR to the test image outside the region that the counterfactual changes, dB."""
    if edits.goal is None:
        return None
    return metrics.psnr_outside(edits.images, edits.source, metrics.changed(edits.source, edits.goal))


def mask_iou(context: EvaluationContext, edits: EditBatch) -> Tensor | None:
    """Intersection over union of the editor's mask and the region that the counterfactual changes."""
    if edits.goal is None or edits.mask is None:
        return None
    return metrics.overlap(edits.mask, metrics.changed(edits.source, edits.goal))


EDIT_MEASURES: dict[str, EditMeasure] = {  # in the order of the columns
    **{measure.__name__: measure for measure in (psnr_input, realism, identity_input, clip_direction, lpips_input)},
    "reached": partial(reached, oracle="oracle"),
    "kept": partial(kept, oracle="oracle"),
    "reached_oracle2": partial(reached, oracle="oracle2"),
    "kept_oracle2": partial(kept, oracle="oracle2"),
    **{measure.__name__: measure for measure in (identity, psnr, counterfactual_gain, gain_over_input)},
    **{measure.__name__: measure for measure in (outside_psnr, mask_iou)},
}
