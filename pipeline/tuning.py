"""Choosing an editor's settings on validation people: one setting for all prompts, never seen by a test person."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline import editing, editors, metrics, truth

if TYPE_CHECKING:
    from pipeline.backbones import Backbones
    from pipeline.values import Source


def grid(params: Any, values: Mapping[str, Sequence[float]]) -> Iterator[Any]:
    """`params` with every combination of `values` (field -> numbers to try) put in."""
    for chosen in itertools.product(*values.values()):
        yield replace(params, **dict(zip(values, chosen, strict=True)))


@torch.no_grad()
def trial(backbones: Backbones, name: str, params: Any, people: Source, goals: truth.Truth) -> dict[str, float]:
    """Mean over prompts of reached and kept, by the definitions of the evaluation, for one setting of one editor.

    `goals` must have been made for row ids 0 .. len(people) - 1. psnr is against the counterfactual, in dB.
    """
    editor = editors.load(name, backbones, params)
    table: dict[str, list[float]] = {"reached": [], "kept": [], "psnr": []}
    for condition in editing.conditions(backbones.domain):
        rows = [row for row in range(len(people)) if (row, condition.target) in goals.index]
        if not rows:
            continue
        cases = [goals.index[row, condition.target] for row in rows]
        images = editor.edit(people.select(rows), editor.fit(condition), params.strength).images.clamp(-1, 1)
        read = torch.stack([value.cpu() for value in backbones.oracle.read(images).values()], dim=1)
        reached = metrics.reached(read.gather(1, goals.column[cases, None])[:, 0], goals.wanted[cases])
        table["reached"].append(reached.mean().item())
        table["kept"].append(metrics.kept(read, goals.answers[cases], goals.counted[cases]).nanmean().item())
        table["psnr"].append(metrics.psnr(images.cpu(), goals.images(cases)).mean().item())
    return {key: sum(values) / max(1, len(values)) for key, values in table.items()}
