"""From edits to numbers: every editor against the counterfactual truth (definitions: design.md section 9).

Only cases are scored (`pipeline.evaluation.counterfactuals`): people whom a prompt concerns. Where a domain knows no truth (real photos),
edits are compared with their input and with the CLIP direction of their text instead, and all of them with all test
pictures. What needs a network that is not here says so in place of a number.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import counterfactuals as truths
from pipeline.evaluation import (
    denoiser_quality,
    inversion_quality,
    metrics,
    network_quality,
    paper_claims,
    realism,
    scoring,
)
from pipeline.evaluation.counterfactuals import TestSet, Truth
from pipeline.evaluation.metrics import Cloud, Draws, Leaf
from pipeline.evaluation.scoring import Scored
from pipeline.report.edit_grid import APART, FRAMES
from pipeline.runtime import files, processes
from pipeline.runtime.errors import InputError, nearest
from pipeline.sources import UNEDITED
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    import polars as pl

    from pipeline.models.ode_solvers import Walk
    from pipeline.networks import Backbones
    from pipeline.storage.domains import Prompt

AGAINST_TRUTH = (
    *("reached", "kept", "identity", "psnr", "counterfactual_gain", "gain_over_input"),
    *("realism", "outside_psnr", "mask_iou", "reached_oracle2", "kept_oracle2"),
)
AGAINST_INPUT = ("psnr_input", "identity_input", "lpips_input", "clip_direction")
NEEDS_TRUTH = {"reached": "oracle", "kept": "oracle", "fid_oracle": "oracle", "identity": "identity"}  # which network
NEEDS_TRUTH |= {"realism": "identity", "realism_unedited": "identity"}
NEEDS_TRUTH |= {"reached_oracle2": "oracle2", "kept_oracle2": "oracle2"}
NEEDS = {"identity_input": "identity"}
NEEDS_PHOTOGRAPHS = {"lpips_input": "lpips", "fid": "inception"}
PER_PROMPT = ("reached", "kept", "identity", "psnr", "counterfactual_gain", "clip_direction")
MAPPER = ("val_cos", "val_mse", "explained")
FID_REPEATS = 100  # resamples; one of a distance costs far more than one of a mean


@dataclass(frozen=True)
class Evaluation:
    """metrics: nested, every leaf {value, low, high}. summary: about ten flat numbers. scores: one row per editor and
    case (or, without truth, per edit). plots: name -> rows, for `dvc plots`.
    """

    metrics: dict[str, Any]
    summary: dict[str, float | None]
    scores: pl.DataFrame
    plots: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    backbones: Backbones,
    test: TestSet,
    edits: Mapping[str, Path],
    mapper: Mapping[str, Any] | None = None,
    *,
    w_plus: Tensor | None = None,
    detail: Tensor | None = None,
    refine: int = 0,
    fakes: Tensor | None = None,
    drawn: Sequence[bytes] = (),
    reconstructor: str | None = "deltaedit_d",
    walk: Walk | None = None,
    repeats: int = 1000,
    seed: int = 0,
    batch: int = 256,
    half: bool = False,
) -> Evaluation:
    """Score every editor's edits, and the networks beneath.

    edits: editor name -> artefact of schema `edits`; a row without prompt tells what the editor makes of a person
    before editing; those of `reconstructor` tell how well diffusion gives back its input, and by its `walk` is tried
    whether styles matter to it. mapper: val_cos, val_mse and explained, as training left them. w_plus [n,L,D]:
    inversions of the first n test people, the encoder's when None; detail [n,...]: what they lack; refine: the steps of
    descent that made them, tried in s and on samples too. fakes [n,D]: codes w of samples, by which the generator is
    judged; drawn: pictures, encoded, beside those of test people, to compare shares with. repeats, seed: the bootstrap
    over people. half: identity network and oracles look at edits in bfloat16.
    Raises InputError when edits do not belong to this domain's prompts, or one editor has several strengths.
    """
    import polars as pl

    draws = Draws(repeats, seed)
    prompts = {prompt.text: prompt for prompt in backbones.domain.prompts}
    asked = sorted(set().union(*(_asked(name, path, prompts) for name, path in edits.items())))
    truth = None
    if test.people is not None:
        truth = truths.see(backbones, truths.cases(test, asked, prompts), test.images.shape[-1], batch)

    mapper = mapper or {}
    found: dict[str, Any] = {
        "domain": backbones.domain.name,
        "oracle": {},
        "oracle2": {},
        "generator": {},
        "clip": {},
        "identity": {},
        "inversion": inversion_quality.inversion_metrics(backbones, test, w_plus, detail, batch, draws),
        "mapper": {key: metrics.leaf(mapper.get(key, math.nan)) for key in MAPPER},
        "diffusion": {"reconstruction": {}},
        "editors": {},
    }
    if w_plus is not None:
        found["mapper"] |= inversion_quality.pair_metrics(backbones, test, w_plus, draws)
    if refine and w_plus is not None:
        found["inversion"]["in_s"] = inversion_quality.inversion_in_s(backbones, test, w_plus, refine, draws)
        if fakes is not None:
            found["inversion"]["round_trip"] = inversion_quality.round_trip(backbones, fakes, refine, draws)
    if walk is not None and w_plus is not None:
        found["diffusion"] |= denoiser_quality.given_back(backbones, test, w_plus, draws)
    if truth is not None and walk is not None and w_plus is not None:
        found["diffusion"]["style_matters"] = denoiser_quality.style_matters(backbones, test, w_plus, walk, draws)
    discriminator = None
    if truth is not None:
        for name in ("oracle", "oracle2"):
            found[name] = network_quality.oracle_metrics(backbones, test, batch, draws, name)
        found["identity"] = network_quality.identity_metrics(backbones, test, batch, draws)
        if fakes is not None:
            samples = network_quality.sampled(backbones, fakes, batch)
            found["generator"] = network_quality.generator_metrics(backbones, test, samples, drawn, batch, draws)
            discriminator = realism.discriminator(backbones, samples, batch, draws)
            note = backbones.absent("identity") or "not computed: it needs our identity network, and samples"
            found["generator"]["told_apart"] = discriminator.told_apart if discriminator else metrics.absent(note)
        found["clip"] = network_quality.clip_metrics(backbones, test, batch, draws) | network_quality.direction_metrics(
            backbones, test, truth, backbones.domain.prompts, batch, draws
        )
    frames = []
    real = None if truth is not None or backbones.absent("inception") else scoring.photographs(backbones, test, batch)
    before = scoring.identities(backbones, test, {row_id for row_id, _ in asked}, batch)

    def judge(name: str) -> tuple[Scored, dict[str, Any], dict[str, Any]]:
        unedited = _unedited(edits[name], batch)
        again = _reconstruction(test, unedited, draws) if name == reconstructor else {}
        scored = scoring.score(backbones, test, truth, before, name, edits[name], unedited, batch, discriminator, half)
        numbers = _editor_metrics(scored, truth, prompts, real, draws) if scored.frame.height else {}
        if numbers and discriminator and unedited:
            pictures = images.from_uint8(np.stack([*unedited.values()])).to(backbones.device)
            parts = (pictures[part] for part in network_quality.batches(len(pictures), batch))
            looks = torch.cat([discriminator.look(part, half)[1].cpu() for part in parts])
            numbers["realism_unedited"] = metrics.interval(looks, draws=draws)
        return scored, numbers, again

    # Threads: most of it is torch, numpy and the decoding of pictures, which let one another run. Inception, which
    # judges photographs, is not made for several.
    together = processes.count() if truth is not None else 1
    with ThreadPoolExecutor(together) as pool:
        for name, (scored, numbers, again) in zip(edits, pool.map(judge, edits), strict=True):
            found["diffusion"]["reconstruction"] |= again
            if numbers:
                found["editors"][name] = numbers | _missing(backbones, truth)
                if name == reconstructor:
                    found["diffusion"]["evaluations_per_edit"] = numbers["evaluations"]
                frames.append(scored.frame)
    if differences := _differences(found["editors"]):
        found["oracle2"]["largest_difference"] = metrics.leaf(max(differences))
    scores = pl.concat(frames, how="diagonal") if frames else pl.DataFrame()
    found["claims"] = paper_claims.tested(
        found, scores, {text: prompt.split for text, prompt in prompts.items()}, draws
    )
    return Evaluation(found, summarise(found), scores, {"prompts": _prompt_rows(found["editors"])})


def summarise(found: Mapping[str, Any]) -> dict[str, float | None]:
    """About ten numbers for `dvc exp show`: how good the networks are, and what each editor reached and kept."""

    def value(*path: str) -> float | None:
        node: Any = found
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
    for name in found["editors"]:
        if name not in FRAMES:
            flat |= {f"{name}_{key}": value("editors", name, key) for key in ("reached", "kept")}
    return flat


def save(evaluation: Evaluation, layout: artefacts.Layout) -> None:
    """metrics.json, summary.json, evaluation/scores.parquet and plots/<name>.csv, each written whole or not at all."""
    for path, content in ((layout.metrics, evaluation.metrics), (layout.summary, evaluation.summary)):
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        files.write_bytes(path, f"{text}\n".encode())
    artefacts.write_table(layout.scores, evaluation.scores, {"domain": layout.domain})
    for name, rows in evaluation.plots.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_bytes(layout.plots / f"{name}.csv", text.getvalue().encode())


# ---------------------------------------------------------------- reading edits


def _asked(editor: str, path: Path, prompts: Mapping[str, Prompt]) -> set[tuple[int, str]]:
    """The (id, prompt) of every edit, refused unless its prompt is the domain's and all have one strength."""
    pairs: set[tuple[int, str]] = set()
    strengths: set[float] = set()
    for part in scoring.rows(path, ("id", "prompt", "strength"), 4096):
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


def _unedited(path: Path, batch: int) -> dict[int, np.ndarray]:
    """What the editor makes of people before editing: id -> uint8 [R,R,3]."""
    found = {}
    for part in scoring.rows(path, ("id", "image"), batch, where={"prompt": UNEDITED}):
        for row_id, image in zip(part["id"], part["image"], strict=True):
            found[row_id] = images.to_uint8(images.decode_png(image))
    return found


# ---------------------------------------------------------------- one editor


def _missing(backbones: Backbones, truth: Truth | None) -> dict[str, Leaf]:
    """The entries of what could not be computed, each with its reason."""
    needs = NEEDS | (NEEDS_PHOTOGRAPHS if truth is None else NEEDS_TRUTH)
    notes = {name: backbones.absent(network) for name, network in needs.items()}
    return {name: metrics.absent(note) for name, note in notes.items() if note}


def _editor_metrics(
    scored: Scored, truth: Truth | None, prompts: Mapping[str, Prompt], real: Cloud | None, draws: Draws
) -> dict[str, Any]:
    """Averages over the prompts in words CLIP was taught, `heldout` over those it never saw, `combined` over those that
    ask for several attributes, and every prompt."""
    frame = scored.frame
    ids, person = np.unique(frame["id"].to_numpy(), return_inverse=True)
    texts = sorted(frame["prompt"].unique().to_list())
    column = np.array([texts.index(text) for text in frame["prompt"]])

    def table(name: str) -> np.ndarray:
        cells = np.full((len(ids), len(texts)), np.nan)
        cells[person, column] = frame[name].to_numpy()
        return cells

    tables = {name: table(name) for name in (*AGAINST_TRUTH, *AGAINST_INPUT) if name in frame.columns}
    splits = np.array([prompts[text].split for text in texts])
    taught = splits == "seen"
    found: dict[str, Any] = {name: metrics.interval(cells[:, taught], draws=draws) for name, cells in tables.items()}
    for split in filter(splits.__contains__, APART):
        among = {name: tables[name][:, splits == split] for name in PER_PROMPT if name in tables}
        found[split] = {name: metrics.interval(cells, draws=draws) for name, cells in among.items()}
    if real is not None:  # without an interval: a distance of 2048 x 2048 covariances takes seconds
        found["fid"] = metrics.leaf(metrics.frechet(scored.cloud.moments(), real.moments()))
    if truth is not None and len(scored.features):
        rows = taught[column]
        edits, goals = scored.features[rows], truth.features[scored.cases].numpy()[rows]

        def distances(weights: np.ndarray) -> np.ndarray:
            return np.array([metrics.frechet_distance(edits, goals, draw[person[rows]]) for draw in weights])

        fewer = replace(draws, repeats=min(draws.repeats, FID_REPEATS))
        found["fid_oracle"] = metrics.bootstrap(distances, len(ids), fewer, centred=True)
    found["evaluations"] = metrics.leaf(float(np.mean(frame["evaluations"].to_numpy())))
    found["people"] = metrics.leaf(len(ids))
    found["prompts"] = {
        text: {name: metrics.interval(tables[name][:, i], draws=draws) for name in PER_PROMPT if name in tables}
        | {"people": metrics.leaf(int((column == i).sum()))}
        for i, text in enumerate(texts)
    }
    return found


def _differences(editors: Mapping[str, Any]) -> list[float]:
    """How far the second oracle's shares reached and kept are from the first's: two numbers per editor."""
    found = []
    for row in editors.values():
        for first, second in zip(*scoring.READERS.values(), strict=True):
            one, other = (row.get(name, {}).get("value") for name in (first, second))
            found += [abs(one - other)] if one is not None and other is not None else []
    return found


def _reconstruction(test: TestSet, unedited: Mapping[int, np.ndarray], draws: Draws) -> dict[str, Any]:
    """Encoded and decoded with the person's own style code against the person: psnr dB, ssim, mse on [0,1]."""
    rows = test.rows()
    ids = sorted(row_id for row_id in unedited if row_id in rows)
    if not ids:
        return {}
    source = test.images[[rows[row_id] for row_id in ids]]
    again = images.from_uint8(np.stack([unedited[row_id] for row_id in ids]))
    return {name: metrics.interval(each, draws=draws) for name, each in metrics.closeness(again, source).items()}


def _prompt_rows(editors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per editor and prompt, for `dvc plots`."""
    return [
        {"editor": name, "prompt": text} | {key: leaf["value"] for key, leaf in leaves.items()}
        for name, found in editors.items()
        for text, leaves in found["prompts"].items()
    ]
