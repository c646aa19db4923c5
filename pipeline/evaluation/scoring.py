"""One editor's edits, each judged by every network that is here: a row per case, features for the distances."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import metrics, network_quality
from pipeline.evaluation.counterfactuals import TestSet, Truth
from pipeline.evaluation.metrics import Cloud
from pipeline.runtime.precision import lowered
from pipeline.sources import UNEDITED
from pipeline.storage import artefacts, images

if TYPE_CHECKING:
    import polars as pl

    from pipeline.evaluation.realism import Discriminator
    from pipeline.models.classifiers import Reader
    from pipeline.networks import Backbones

READERS = {"oracle": ("reached", "kept"), "oracle2": ("reached_oracle2", "kept_oracle2")}  # what each is asked


def rows(
    path: Path, columns: Sequence[str], batch: int, where: artefacts.Where | None = None
) -> Iterator[dict[str, list[Any]]]:
    """The rows of an artefact of schema `edits`, a batch at a time."""
    for part in artefacts.iterate(path, "edits", columns, batch, where):
        yield {key: part[key].tolist() if isinstance(part[key], Tensor) else list(part[key]) for key in columns}


def identities(backbones: Backbones, test: TestSet, ids: set[int], batch: int) -> dict[int, Tensor]:
    """Identity embeddings [K] of the people before editing, by id; none without the network."""
    if backbones.absent("identity"):
        return {}
    chosen = [row for row, row_id in enumerate(test.ids) if row_id in ids]
    found = {}
    for part in network_quality.batches(len(chosen), batch):
        embedded = backbones.identity(test.images[chosen[part]].to(backbones.device)).cpu()
        found |= {test.ids[row]: vector for row, vector in zip(chosen[part], embedded, strict=True)}
    return found


def photographs(backbones: Backbones, test: TestSet, batch: int) -> Cloud:
    """The test pictures as Inception sees them."""
    found = Cloud()
    for part in network_quality.batches(len(test.ids), batch):
        found.add(backbones.inception(test.images[part].to(backbones.device)))
    return found


@dataclass(frozen=True)
class Scored:
    """frame: one row per case. features [N,F] the oracle's, and cases [N] the numbers in the truth, of its rows.

    cloud: without truth, the edits towards words that CLIP was taught, as Inception sees them.
    """

    frame: pl.DataFrame
    features: np.ndarray
    cases: list[int]
    cloud: Cloud


@torch.no_grad()
def score(
    backbones: Backbones,
    test: TestSet,
    truth: Truth | None,
    before: Mapping[int, Tensor],
    editor: str,
    path: Path,
    unedited: Mapping[int, np.ndarray],
    batch: int,
    discriminator: Discriminator | None = None,
    half: bool = False,
) -> Scored:
    """Judge the edits of `editor` at `path`; before: identities of the people; unedited: what it makes of them at 0.

    half: in bfloat16, where that pays.
    """
    import polars as pl

    place = test.rows()
    prompts = {prompt.text: prompt for prompt in backbones.domain.prompts}
    frames: list[pl.DataFrame] = []
    features: list[np.ndarray] = []
    numbers: list[int] = []
    cloud = Cloud()
    have = {name for name in ("identity", "oracle", "oracle2", "lpips", "inception") if not backbones.absent(name)}
    for part in rows(path, ("id", "prompt", "strength", "image", "mask", "evaluations"), batch):
        chosen = [
            i
            for i, pair in enumerate(zip(part["id"], part["prompt"], strict=True))
            if pair[1] != UNEDITED and (pair[0] in place if truth is None else pair in truth.index)
        ]
        if not chosen:
            continue
        ids, texts = [part["id"][i] for i in chosen], [part["prompt"][i] for i in chosen]
        edited = torch.stack([images.decode_png(part["image"][i]) for i in chosen])
        source = test.images[[place[row_id] for row_id in ids]]
        onto = edited.to(backbones.device)
        identity = realism = None
        if discriminator is not None:
            identity, realism = (seen.cpu() for seen in discriminator.look(onto, half))
        elif "identity" in have:
            with lowered(onto.device, half):
                identity = backbones.identity(onto).float().cpu()
        columns: dict[str, Any] = {
            "editor": [editor] * len(ids),
            "id": ids,
            "prompt": texts,
            "asked": [", ".join(f"{name}={value}" for name, value in prompts[text].asks.items()) for text in texts],
            "strength": [part["strength"][i] for i in chosen],
            "evaluations": [part["evaluations"][i] for i in chosen],
            "psnr_input": metrics.psnr(edited, source),
        }
        if realism is not None:
            columns["realism"] = realism
        if identity is not None:
            columns["identity_input"] = metrics.cosine(identity, torch.stack([before[row_id] for row_id in ids]))
        if truth is None or "oracle" not in have:
            columns["clip_direction"] = _clip_direction(backbones, edited, source, texts, batch)
        if truth is None:
            taught = [i for i, text in enumerate(texts) if prompts[text].split == "seen"]
            if "inception" in have and taught:
                cloud.add(backbones.inception(onto[taught]))
            if "lpips" in have:
                columns["lpips_input"] = backbones.lpips(onto, source.to(backbones.device)).cpu()
        else:
            cases = [truth.index[pair] for pair in zip(ids, texts, strict=True)]
            goal = truth.images(cases)
            psnr = metrics.psnr(edited, goal)
            for name in filter(have.__contains__, READERS):
                reader: Reader = getattr(backbones, name)
                with lowered(onto.device, half):
                    seen = reader.features(onto)
                columns |= zip(READERS[name], read(reader, seen, truth, cases), strict=True)
                if name == "oracle":
                    features.append(seen.cpu().numpy())
            if identity is not None:
                columns["identity"] = metrics.cosine(identity, truth.identity[cases])
            columns |= {
                "psnr": psnr,
                "counterfactual_gain": psnr - _psnr_unedited(ids, unedited, goal),
                "gain_over_input": psnr - metrics.psnr(source, goal),
            }
            region = metrics.changed(source, goal)
            columns["outside_psnr"] = metrics.psnr_outside(edited, source, region)
            masks = [part["mask"][i] for i in chosen]
            if None not in masks:
                columns["mask_iou"] = metrics.overlap(torch.stack([images.decode_mask(m) for m in masks]), region)
            numbers += cases
        frames.append(
            pl.DataFrame({key: v.double().numpy() if isinstance(v, Tensor) else v for key, v in columns.items()})
        )
    return Scored(
        pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame(),
        np.concatenate(features) if features else np.zeros((0, 1)),
        numbers,
        cloud,
    )


def read(reader: Reader, seen: Tensor, truth: Truth, cases: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(reached, kept) [n] each, of edits whose features a reader has seen [n,F]; cases: their numbers in the truth."""
    logits = reader.logits(seen)
    values = torch.stack([logits[name].argmax(1) for name in truth.attributes], dim=1).cpu()
    answers = truth.answers[cases]
    return metrics.reached(values, answers, truth.asked[cases]), metrics.kept(values, answers, truth.counted[cases])


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
    moved = network_quality.clip_units(backbones, edited, batch) - network_quality.clip_units(backbones, source, batch)
    return metrics.cosine(moved, torch.stack([said[text] for text in texts]))
