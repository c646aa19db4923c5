"""The benchmark: every measure of the networks and of each editor's edits -> metrics.json (docs/metrics.md).

A measure is a function (context) -> metrics by name, registered in `MEASURES` under its section of metrics.json. Where
attributes are unknown (photographs), edits are compared with their input and with the CLIP direction of their text.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.evaluation import (
    REFERENCES,
    counterfactuals,
    denoiser_quality,
    editor_metrics,
    inversion_quality,
    network_quality,
    paper_claims,
    realism,
    scoring,
)
from pipeline.evaluation.bootstrap import Metric, metric
from pipeline.evaluation.context import EvaluationContext, EvaluationInputs
from pipeline.runtime import files, processes
from pipeline.storage import artefacts

if TYPE_CHECKING:
    import polars as pl

Measure = Callable[[EvaluationContext], dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """metrics: nested, every leaf a `Metric`; summary: about ten flat numbers; scores: a row per editor and case;
    plots: name -> rows, for `dvc plots`."""

    metrics: dict[str, Any]
    summary: dict[str, float | None]
    scores: pl.DataFrame
    plots: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


# ---------------------------------------------------------------- measures of metrics.json


def mapper_validation(context: EvaluationContext) -> dict[str, Metric]:
    """Validation metrics at the end of the mapper's training."""
    validation = context.mapper_validation
    return {name: metric(validation.get(name, math.nan)) for name in ("val_cos", "val_mse", "explained")}


def reconstruction(context: EvaluationContext) -> dict[str, Any]:
    """reconstruction: the diffusion editor's images at strength 0 against the test images."""
    result = context.results.get(context.diffusion_editor or "")
    return {"reconstruction": result.reconstruction if result else {}}


def evaluations_per_edit(context: EvaluationContext) -> dict[str, Metric]:
    """evaluations_per_edit: passes of the denoiser per edit of the diffusion editor."""
    result = context.results.get(context.diffusion_editor or "")
    return {"evaluations_per_edit": result.metrics["evaluations"]} if result and result.metrics else {}


def editors(context: EvaluationContext) -> dict[str, Any]:
    """Metrics of every editor that has cases, by its name."""
    return {name: result.metrics for name, result in context.results.items() if result.metrics}


def oracle_difference(context: EvaluationContext) -> dict[str, Metric]:
    """largest_difference: of the two oracles, over reached and kept of all editors."""
    pairs = [
        (result.metrics.get(name, {}).get("value"), result.metrics.get(f"{name}_oracle2", {}).get("value"))
        for result in context.results.values()
        for name in ("reached", "kept")
    ]
    differences = [abs(one - other) for one, other in pairs if one is not None and other is not None]
    return {"largest_difference": metric(max(differences))} if differences else {}


MEASURES: dict[str, tuple[Measure, ...]] = {
    "oracle": (network_quality.oracle,),
    "oracle2": (partial(network_quality.oracle, name="oracle2"), oracle_difference),
    "generator": (network_quality.generator, realism.discriminator_accuracy),
    "clip": (network_quality.clip, network_quality.clip_directions),
    "identity": (network_quality.identity,),
    "inversion": (
        inversion_quality.inversion,
        inversion_quality.inversion_in_s,
        inversion_quality.round_trip,
        inversion_quality.reached_on_samples,
    ),
    "mapper": (mapper_validation, inversion_quality.image_pairs),
    "diffusion": (
        reconstruction,
        denoiser_quality.ddim_reconstruction,
        denoiser_quality.style_matters,
        evaluations_per_edit,
    ),
    "editors": (editors,),
}


# ---------------------------------------------------------------- running them


@torch.no_grad()
def run(inputs: EvaluationInputs) -> Evaluation:
    """Compute every measure. Raises InputError for edits of other prompts than the domain's, or several strengths."""
    import polars as pl

    context = prepare(inputs)
    numbers: dict[str, Any] = {"domain": context.networks.domain.name}
    for section, measures in MEASURES.items():
        numbers[section] = {}
        for measure in measures:
            numbers[section] |= measure(context)
    frames = [result.scores for result in context.results.values() if result.metrics]
    scores = pl.concat(frames, how="diagonal") if frames else pl.DataFrame()
    splits = {text: prompt.split for text, prompt in context.prompts.items()}
    numbers["claims"] = paper_claims.differences(numbers, scores, splits, context.bootstrap)
    return Evaluation(numbers, summarise(numbers), scores, {"prompts": _prompt_rows(numbers["editors"])})


@torch.no_grad()
def prepare(inputs: EvaluationInputs) -> EvaluationContext:
    """Compute what several measures need: counterfactuals, samples, discriminator, and each editor's scores."""
    networks, test = inputs.networks, inputs.test
    prompts = {prompt.text: prompt for prompt in networks.domain.prompts}
    requested_pairs = sorted(
        set().union(*(scoring.requested(name, path, prompts) for name, path in inputs.edits.items()))
    )
    context = EvaluationContext(
        **vars(inputs),
        prompts=prompts,
        identities=network_quality.identities(networks, test, {row_id for row_id, _ in requested_pairs}, inputs.batch),
    )
    if test.people is None:
        context = replace(context, inception=network_quality.inception_stats(networks, test, inputs.batch))
    else:
        cases = counterfactuals.cases(test, requested_pairs, prompts)
        goals = counterfactuals.counterfactual_set(networks, cases, test.images.shape[-1], inputs.batch)
        context = replace(context, counterfactuals=goals)
        if inputs.fakes is not None:
            samples = network_quality.render_samples(networks, inputs.fakes, inputs.batch)
            context = replace(context, samples=samples, discriminator=realism.train(context, samples))
    # Threads: torch, numpy and the decoding of images release the GIL. Inception, which judges photographs, is not
    # safe to call from several.
    count = processes.count() if test.people is not None else 1
    with ThreadPoolExecutor(count) as pool:
        results = pool.map(lambda name: editor_metrics.evaluate(context, name), inputs.edits)
        return replace(context, results=dict(zip(inputs.edits, results, strict=True)))


# ---------------------------------------------------------------- what is written


def summarise(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    """About ten numbers for `dvc exp show`: quality of the networks, and each editor's reached and kept."""

    def value(*path: str) -> float | None:
        node: Any = numbers
        for key in path:
            node = node.get(key, {})
        return node.get("value")

    flat = {
        "oracle": value("oracle", "mean"),
        "clip_zero_shot": value("clip", "zero_shot"),
        "clip_delta_cos": value("clip", "delta_cos_paired"),
        "inversion_psnr": value("inversion", "psnr"),
        "mapper_val_cos": value("mapper", "val_cos"),
        "diffusion_psnr": value("diffusion", "reconstruction", "psnr"),
    }
    for name in numbers["editors"]:
        if name not in REFERENCES:
            flat |= {f"{name}_{key}": value("editors", name, key) for key in ("reached", "kept")}
    return flat


def _prompt_rows(editors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per editor and prompt."""
    return [
        {"editor": name, "prompt": text} | {key: leaf["value"] for key, leaf in leaves.items()}
        for name, numbers in editors.items()
        for text, leaves in numbers["prompts"].items()
    ]


def save(evaluation: Evaluation, paths: artefacts.DomainPaths) -> None:
    """Write metrics.json, summary.json, evaluation/scores.parquet and plots/<name>.csv, each whole or not at all."""
    for path, content in ((paths.metrics, evaluation.metrics), (paths.summary, evaluation.summary)):
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        files.write_bytes(path, f"{text}\n".encode())
    artefacts.write_table(paths.scores, evaluation.scores, {"domain": paths.domain})
    for name, rows in evaluation.plots.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_bytes(paths.plots / f"{name}.csv", text.getvalue().encode())
