"""From edits to numbers: every editor against the counterfactual truth (definitions: design.md section 9).

Only cases are scored (`pipeline.truth`): people whom a prompt concerns. Where a domain knows no truth (real photos),
edits are compared with their input and with the CLIP direction of their text instead.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline import artefacts, files, foundations, images, metrics
from pipeline import truth as truths
from pipeline.editing import UNEDITED
from pipeline.metrics import Draws
from pipeline.truth import TestSet, Truth
from pipeline.values import InputError, nearest

if TYPE_CHECKING:
    import polars as pl

    from pipeline.backbones import Backbones
    from pipeline.domains import Prompt

FRAMES = ("identity_editor", "counterfactual")  # the two rows between which every editor lies
AGAINST_TRUTH = ("reached", "kept", "identity", "psnr", "counterfactual_gain", "gain_over_input")
AGAINST_INPUT = ("psnr_input", "identity_input", "clip_direction")
PER_PROMPT = ("reached", "kept", "identity", "psnr", "counterfactual_gain", "clip_direction")
MAPPER = ("val_cos", "val_mse", "explained")
SCORES = "scores.parquet"
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
    reconstructor: str = "deltaedit_d",
    repeats: int = 1000,
    seed: int = 0,
    batch: int = 256,
) -> Evaluation:
    """Score every editor's edits, and the networks beneath.

    edits: editor name -> artefact of schema `edits`; a row without prompt tells what the editor makes of a person
    before editing; those of `reconstructor` tell how well diffusion gives back its input. mapper: val_cos, val_mse and
    explained, as training left them. w_plus [n,L,D]: inversions of the first n test people, the encoder's when None.
    repeats, seed: the bootstrap over people.
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
        "clip": {},
        "inversion": foundations.inversion_metrics(backbones, test, w_plus, batch, draws),
        "mapper": {key: metrics.leaf(mapper.get(key, math.nan)) for key in MAPPER},
        "diffusion": {"reconstruction": {}},
        "editors": {},
    }
    if truth is not None:
        found["oracle"] = foundations.oracle_metrics(backbones, test, batch, draws)
        found["clip"] = foundations.clip_metrics(backbones, test, batch, draws) | foundations.direction_metrics(
            backbones, test, truth, backbones.domain.prompts, batch, draws
        )
    frames = []
    before = _identities(backbones, test, {row_id for row_id, _ in asked}, batch)
    for name, path in edits.items():
        unedited = _unedited(path, batch)
        if name == reconstructor:
            found["diffusion"]["reconstruction"] = _reconstruction(test, unedited, draws)
        scored = _score(backbones, test, truth, before, name, path, unedited, batch)
        if scored.frame.height:
            found["editors"][name] = _editor_metrics(scored, truth, prompts, draws)
            frames.append(scored.frame)
    scores = pl.concat(frames, how="diagonal") if frames else pl.DataFrame()
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
    artefacts.write_table(layout.evaluation / SCORES, evaluation.scores, {"domain": layout.domain})
    for name, rows in evaluation.plots.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_bytes(layout.plots / f"{name}.csv", text.getvalue().encode())


# ---------------------------------------------------------------- reading edits


def _rows(
    path: Path, columns: Sequence[str], batch: int, where: artefacts.Where | None = None
) -> Iterator[dict[str, list[Any]]]:
    for part in artefacts.iterate(path, "edits", columns, batch, where):
        yield {key: part[key].tolist() if isinstance(part[key], Tensor) else list(part[key]) for key in columns}


def _asked(editor: str, path: Path, prompts: Mapping[str, Prompt]) -> set[tuple[int, str]]:
    """The (id, prompt) of every edit, refused unless its prompt is the domain's and all have one strength."""
    pairs: set[tuple[int, str]] = set()
    strengths: set[float] = set()
    for part in _rows(path, ("id", "prompt", "strength"), 4096):
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
    for part in _rows(path, ("id", "image"), batch, where={"prompt": UNEDITED}):
        for row_id, image in zip(part["id"], part["image"], strict=True):
            found[row_id] = images.to_uint8(images.decode_png(image))
    return found


def _identities(backbones: Backbones, test: TestSet, ids: set[int], batch: int) -> dict[int, Tensor]:
    """Identity embeddings [K] of the people before editing, by id."""
    rows = [row for row, row_id in enumerate(test.ids) if row_id in ids]
    found = {}
    for part in foundations.batches(len(rows), batch):
        embedded = backbones.identity(test.images[rows[part]].to(backbones.device)).cpu()
        found |= {test.ids[row]: vector for row, vector in zip(rows[part], embedded, strict=True)}
    return found


# ---------------------------------------------------------------- one editor


@dataclass(frozen=True)
class _Scored:
    """frame: one row per case. features [N,F] the oracle's, and cases [N] the numbers in the truth, of its rows."""

    frame: pl.DataFrame
    features: np.ndarray
    cases: list[int]


def _score(
    backbones: Backbones,
    test: TestSet,
    truth: Truth | None,
    before: Mapping[int, Tensor],
    editor: str,
    path: Path,
    unedited: Mapping[int, np.ndarray],
    batch: int,
) -> _Scored:
    import polars as pl

    rows = test.rows()
    prompts = {prompt.text: prompt for prompt in backbones.domain.prompts}
    frames: list[pl.DataFrame] = []
    features: list[np.ndarray] = []
    numbers: list[int] = []
    for part in _rows(path, ("id", "prompt", "strength", "image", "evaluations"), batch):
        chosen = [
            i
            for i, pair in enumerate(zip(part["id"], part["prompt"], strict=True))
            if pair[1] != UNEDITED and (pair[0] in rows if truth is None else pair in truth.index)
        ]
        if not chosen:
            continue
        ids, texts = [part["id"][i] for i in chosen], [part["prompt"][i] for i in chosen]
        edited = torch.stack([images.decode_png(part["image"][i]) for i in chosen])
        source = test.images[[rows[row_id] for row_id in ids]]
        identity = backbones.identity(edited.to(backbones.device)).cpu()
        columns: dict[str, Any] = {
            "editor": [editor] * len(ids),
            "id": ids,
            "prompt": texts,
            "attribute": [prompts[text].attribute for text in texts],
            "value": [prompts[text].value for text in texts],
            "strength": [part["strength"][i] for i in chosen],
            "evaluations": [part["evaluations"][i] for i in chosen],
            "psnr_input": metrics.psnr(edited, source),
            "identity_input": metrics.cosine(identity, torch.stack([before[row_id] for row_id in ids])),
        }
        if truth is None:
            columns["clip_direction"] = _clip_direction(backbones, edited, source, texts, batch)
        else:
            cases = [truth.index[pair] for pair in zip(ids, texts, strict=True)]
            goal = truth.images(cases)
            seen = backbones.oracle.features(edited.to(backbones.device))
            logits = backbones.oracle.logits(seen)
            read = torch.stack([logits[name].argmax(1) for name in backbones.oracle.attributes], dim=1).cpu()
            psnr = metrics.psnr(edited, goal)
            columns |= {
                "reached": metrics.reached(read.gather(1, truth.column[cases, None])[:, 0], truth.wanted[cases]),
                "kept": metrics.kept(read, truth.answers[cases], truth.counted[cases]),
                "identity": metrics.cosine(identity, truth.identity[cases]),
                "psnr": psnr,
                "counterfactual_gain": psnr - _psnr_unedited(ids, unedited, goal),
                "gain_over_input": psnr - metrics.psnr(source, goal),
            }
            features.append(seen.float().cpu().numpy())
            numbers += cases
        frames.append(
            pl.DataFrame({key: v.double().numpy() if isinstance(v, Tensor) else v for key, v in columns.items()})
        )
    return _Scored(
        pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame(),
        np.concatenate(features) if features else np.zeros((0, 1)),
        numbers,
    )


def _psnr_unedited(ids: Sequence[int], unedited: Mapping[int, np.ndarray], goal: Tensor) -> Tensor:
    """PSNR of what the editor makes at strength 0 against each goal [n,3,R,R]; NaN for whom it was not made."""
    found = torch.full((len(ids),), math.nan)
    have = [i for i, row_id in enumerate(ids) if row_id in unedited]
    if have:
        found[have] = metrics.psnr(images.from_uint8(np.stack([unedited[ids[i]] for i in have])), goal[have])
    return found


def _clip_direction(backbones: Backbones, edited: Tensor, source: Tensor, texts: Sequence[str], batch: int) -> Tensor:
    """Cosine of each edit's step in CLIP space with its prompt's text delta -> [n]."""
    domain = backbones.domain
    said = {text: backbones.clip.text_delta(domain.neutral, text, domain.templates).cpu() for text in set(texts)}
    moved = foundations.clip_units(backbones, edited, batch) - foundations.clip_units(backbones, source, batch)
    return metrics.cosine(moved, torch.stack([said[text] for text in texts]))


def _editor_metrics(
    scored: _Scored, truth: Truth | None, prompts: Mapping[str, Prompt], draws: Draws
) -> dict[str, Any]:
    """Averages over the prompts in words CLIP was taught, `heldout` over those it never saw, and every prompt."""
    frame = scored.frame
    ids, person = np.unique(frame["id"].to_numpy(), return_inverse=True)
    texts = sorted(frame["prompt"].unique().to_list())
    column = np.array([texts.index(text) for text in frame["prompt"]])

    def table(name: str) -> np.ndarray:
        cells = np.full((len(ids), len(texts)), np.nan)
        cells[person, column] = frame[name].to_numpy()
        return cells

    tables = {name: table(name) for name in (*AGAINST_TRUTH, *AGAINST_INPUT) if name in frame.columns}
    taught = np.array([prompts[text].split == "seen" for text in texts])
    found: dict[str, Any] = {name: metrics.interval(cells[:, taught], draws=draws) for name, cells in tables.items()}
    if not taught.all():
        found["heldout"] = {
            name: metrics.interval(tables[name][:, ~taught], draws=draws) for name in PER_PROMPT if name in tables
        }
    if truth is not None:
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


def _reconstruction(test: TestSet, unedited: Mapping[int, np.ndarray], draws: Draws) -> dict[str, Any]:
    """Encoded and decoded with the person's own style code against the person: psnr dB, ssim, mse on [0,1]."""
    rows = test.rows()
    ids = sorted(row_id for row_id in unedited if row_id in rows)
    if not ids:
        return {}
    source = test.images[[rows[row_id] for row_id in ids]]
    again = images.from_uint8(np.stack([unedited[row_id] for row_id in ids]))
    measures = {"psnr": metrics.psnr, "ssim": metrics.ssim, "mse": metrics.mse}
    return {name: metrics.interval(measure(again, source), draws=draws) for name, measure in measures.items()}


def _prompt_rows(editors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per editor and prompt, for `dvc plots`."""
    return [
        {"editor": name, "prompt": text} | {key: leaf["value"] for key, leaf in leaves.items()}
        for name, found in editors.items()
        for text, leaves in found["prompts"].items()
    ]
