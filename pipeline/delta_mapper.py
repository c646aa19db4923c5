"""The Delta Mapper (DeltaEdit section 3.2): (s, i, delta_i) -> delta_s, trained on pairs of images only.

Nine small stacks of equalised linear layers make it up: per level of s one for s, one for the condition, and one for
both together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import sampling
from pipeline.models.clip import delta
from pipeline.models.stylegan2 import EqualLinear, PixelNorm
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.storage import artefacts
from pipeline.training import Metrics, batch_rows, generator_for

WARM_UP = 50  # steps


@dataclass(frozen=True)
class MapperParams:
    """Section `mapper` of params.yaml.

    steps, batch: optimiser steps, and pairs in each.
    lr: Adam's learning rate.
    lr_decay: last part of the steps, in which the rate falls to zero after a rise in the first 50; 0: constant from the
        first, as published.
    loss: "code" (mean squared error, as in the released training) or "paper" (L2 norm per sample).
    source: codes to train on: "fake", "real" or "both".
    rows: the first codes that are used; None for all.
    seed: fixes the initial weights and the pairs.
    precision: of the products in a step; weights, moments and losses are float32.
    sibling_share: part of the pairs that are sibling fakes, which share most of their noise and so differ in little, as
        an edit and its source do; 0: none, as published.
    """

    steps: int
    batch: int
    lr: float
    lr_decay: float
    loss: str
    source: Literal["fake", "real", "both"]
    rows: int | None
    seed: int
    precision: Literal["float32", "bfloat16"] = "float32"
    sibling_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lr_decay <= 1:
            raise ValueError(f"lr_decay is {self.lr_decay:g}: a part of the steps, from 0 to 1, is expected")
        if not 0 <= self.sibling_share <= 1:
            raise ValueError(f"sibling_share is {self.sibling_share:g}: a part of the pairs, from 0 to 1, is expected")
        if self.sibling_share and self.source == "real":
            raise ValueError(f"sibling_share is {self.sibling_share:g}, but source is 'real': only fakes have siblings")

    @property
    def sources(self) -> tuple[str, ...]:
        """Values of the column `source` of the codes to train on."""
        return ("fake", "real") if self.source == "both" else (self.source,)

    def rate(self, number: int) -> float:
        """Learning rate of step `number`."""
        if not self.lr_decay:
            return self.lr
        return self.lr * min(1.0, (number + 1) / WARM_UP, (1 - number / self.steps) / self.lr_decay)


class Stack(nn.Module):
    """Four equalised linear layers, all activated, after an optional PixelNorm over axis 1.

    Parameters are named `mapping.1` to `.4` with the norm and `mapping.0` to `.3` without, as in the released files.
    """

    def __init__(self, inputs: int, outputs: int, norm: bool) -> None:
        super().__init__()
        widths = [inputs, outputs, outputs, outputs, outputs]
        layers = [EqualLinear(a, b, lr_mul=0.01, activate=True) for a, b in zip(widths, widths[1:], strict=False)]
        self.mapping = nn.Sequential(*([PixelNorm()] if norm else []), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mapping(x)


class DeltaMapper(nn.Module):
    """The published architecture for any style layout.

    layout: widths and levels of the style layers. clip_dim: E.

    A level whose layers are equally wide is treated layer by layer, [B,layers,width], with shared stacks; PixelNorm
    then runs over the layers, a quirk that released weights depend on. `fine`, and any level of unequal widths, is one
    flat vector. A level without layers has no stacks.
    """

    def __init__(self, layout: StyleLayout, clip_dim: int) -> None:
        super().__init__()
        self.slices = layout.levels
        self.layers: dict[str, int] = {}  # layers that share a stack; 1 for a flat level
        for level, dims in layout.level_dims().items():
            shared = level != "fine" and len(set(dims)) == 1
            width, self.layers[level] = (dims[0], len(dims)) if shared else (sum(dims), 1)
            setattr(self, f"sm_{level}", Stack(width, width, norm=True))
            setattr(self, f"cm_{level}", Stack(2 * clip_dim, width, norm=True))
            setattr(self, f"fm_{level}", Stack(2 * width, width, norm=False))

    def forward(self, s: Tensor, condition: Tensor) -> Tensor:
        """s [B,S], not standardised, and condition [B,2E] = (unit i, unit delta) -> delta_s [B,S]."""
        parts = []
        for level, channels in self.slices.items():
            style, text, fuse = (getattr(self, f"{kind}_{level}") for kind in ("sm", "cm", "fm"))
            x, c = s[:, channels], text(condition)
            if (count := self.layers[level]) > 1:
                x = style(x.reshape(len(x), count, -1))
                x = fuse(torch.cat([x, c[:, None].expand(-1, count, -1)], dim=2)).flatten(1)
            else:
                x = fuse(torch.cat([style(x), c], dim=1))
            parts.append(x)
        return torch.cat(parts, dim=1)


def condition(clip_source: Tensor, delta_unit: Tensor) -> Tensor:
    """Condition [B,2E] of the mapper.

    clip_source: CLIP embeddings of the source images [B,E], not normalised.
    delta_unit: unit CLIP difference, [E] for all images or [B,E].
    """
    return torch.cat([F.normalize(clip_source, dim=-1), delta_unit.expand(len(clip_source), -1)], dim=1)


def losses(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Both readings of the reconstruction loss, and the cosine loss (eq. 6): predicted and target [B,S] -> scalars."""
    error = predicted - target
    return {
        "code": error.square().mean(),
        "paper": error.norm(dim=1).mean(),
        "cosine": 1 - F.cosine_similarity(predicted, target, dim=1).mean(),
    }


def pairs(
    s: Tensor, clip: Tensor, first: Tensor, second: Tensor, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Training samples: s [B,S] of the first of each pair, condition [B,2E], and delta_s [B,S] to the second.

    s, clip: all codes [N,S] and [N,E].
    first, second: row numbers [B].
    """
    s_first, s_second, clip_first, clip_second = (
        codes[rows].to(device) for codes in (s, clip) for rows in (first, second)
    )
    s_first, s_second = s_first.float(), s_second.float()
    return s_first, condition(clip_first, delta(clip_first, clip_second)), s_second - s_first


def siblings(codes: Path, params: MapperParams, redrawn: float) -> Tensor | None:
    """Rows of all sibling pairs among the training codes that `params` selects, in either order: [M,2].

    codes: the artefact, whose fakes come in the order of their ids.
    redrawn: setting of section `sample`.
    None if `params.sibling_share` is 0. Raises InputError if there are no siblings.
    """
    if not params.sibling_share:
        return None
    if redrawn == 1:
        raise InputError(
            f"mapper.sibling_share is {params.sibling_share:g}, but sample.redrawn is 1, so that no fakes are siblings"
        )
    table = artefacts.read(codes, "codes", ["id", "source"], {"source": params.sources, "split": "train"})
    ids = table["id"][: params.rows]
    fakes = torch.tensor([name == "fake" for name in table["source"][: params.rows]]).nonzero()[:, 0]
    first = (ids[fakes][1:] == sampling.sibling(ids[fakes][:-1])).nonzero()[:, 0]
    if not len(first):
        raise InputError(
            f"mapper.sibling_share is {params.sibling_share:g}, but no two of {len(ids)} codes are of siblings"
        )
    rows = torch.stack([fakes[first], fakes[first + 1]], dim=1)
    return torch.cat([rows, rows.flip(1)])


class Trainer:
    """Training of a mapper with Adam on random pairs; `pipeline.training.fit` calls `step` and saves `parts`."""

    def __init__(
        self,
        s: Tensor,
        clip: Tensor,
        layout: StyleLayout,
        params: MapperParams,
        device: str = "cpu",
        siblings: Tensor | None = None,
    ) -> None:
        """Initialise the mapper on `device`.

        s, clip: float16 style codes [N,S] and CLIP embeddings [N,E] of the training rows; they stay on their device.
        siblings: see the function of that name [M,2].
        """
        if params.loss not in ("code", "paper"):
            raise ValueError(f"mapper.loss is '{params.loss}': 'code' or 'paper' is expected")
        torch.manual_seed(params.seed)
        self.params, self.device = params, torch.device(device)
        self.s, self.clip = s[: params.rows], clip[: params.rows]
        self.siblings = torch.empty(0, 2, dtype=torch.long) if siblings is None else siblings
        self.mapper = DeltaMapper(layout, clip.shape[1]).to(device)
        self.adam = torch.optim.Adam(self.mapper.parameters(), lr=params.lr, fused=True)
        self.parts = {"mapper": self.mapper, "adam": self.adam}

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows of the first and of the second of every pair of step `number`, [B] each."""
        generator = generator_for(self.params.seed, number)
        first, second = (batch_rows(len(self.s), self.params.batch, generator) for _ in range(2))
        if count := math.ceil(self.params.sibling_share * self.params.batch):
            first[:count], second[:count] = self.siblings[batch_rows(len(self.siblings), count, generator)].T
        return first, second

    def step(self, number: int) -> Metrics:
        """One optimiser step; returns all `losses`."""
        s, condition, target = pairs(self.s, self.clip, *self.draw(number), self.device)
        with lowered(self.device, self.params.precision == "bfloat16"):
            predicted = self.mapper(s, condition)
        values = losses(predicted.float(), target)
        (values[self.params.loss] + values["cosine"]).backward()
        self.adam.param_groups[0]["lr"] = self.params.rate(number)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return {name: value.item() for name, value in values.items()}


@torch.no_grad()
def validate(mapper: DeltaMapper, s: Tensor, clip: Tensor, count: int = 2048, seed: int = 0) -> Metrics:
    """Validation on `count` fixed pairs of codes s [N,S], clip [N,E] that were not trained on.

    count, seed: number of pairs, and the seed that they are drawn with.

    Returns the cosine similarity, the mean squared error, and the explained part of the variance of delta_s.
    """
    generator = generator_for(seed, -1)
    first, second = (batch_rows(len(s), count, generator) for _ in range(2))
    style, conditions, target = pairs(s, clip, first, second, next(mapper.parameters()).device)
    predicted = torch.cat([mapper(a, b) for a, b in zip(style.split(256), conditions.split(256), strict=True)])
    mse = (predicted - target).square().mean()
    return {
        "val_cos": F.cosine_similarity(predicted, target, dim=1).mean().item(),
        "val_mse": mse.item(),
        "explained": 1 - (mse / target.square().mean()).item(),
    }


def numbers(layout: StyleLayout, clip_dim: int) -> dict[str, Any]:
    """Arguments of `build`, for the metadata of a weights file."""
    return {"dims": list(layout.dims), "split": list(layout.split), "clip_dim": clip_dim}


def build(meta: dict[str, Any]) -> DeltaMapper:
    """Mapper from the metadata of its file."""
    return DeltaMapper(StyleLayout(tuple(meta["dims"]), tuple(meta["split"])), meta["clip_dim"])
