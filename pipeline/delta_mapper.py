"""The Delta Mapper (DeltaEdit section 3.2): (s, i, delta_i) -> delta_s, trained on pairs of images only.

Nine small stacks of equalised linear layers: per level one for s, one for the condition, one for both together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.clip import delta
from pipeline.models.stylegan2 import EqualLinear, PixelNorm
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.storage import artefacts
from pipeline.training import Metrics, batch_rows, generator_for

RISE = 50  # steps


@dataclass(frozen=True)
class MapperParams:
    """Section `mapper` of params.yaml. loss: "code" (mean squared error, the released training) or "paper" (the L2
    norm per sample). source: the codes to learn from: "fake", "real" or "both". fade: the last part of the steps, in
    which the rate falls to zero, after it rose in the first 50; 0: constant from the first, as published. precision: of
    the products in a step; weights, moments and losses are float32. siblings: the part of the pairs that are fakes with
    most of their noise in common, who differ in little, as an edit and its source do; 0: none, as published. Ours."""

    steps: int
    batch: int
    lr: float
    fade: float
    loss: str
    source: Literal["fake", "real", "both"]
    rows: int | None
    seed: int
    precision: Literal["float32", "bfloat16"] = "float32"
    siblings: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fade <= 1:
            raise ValueError(f"fade is {self.fade:g}: a part of the steps, from 0 to 1, is expected")
        if not 0 <= self.siblings <= 1:
            raise ValueError(f"siblings is {self.siblings:g}: a part of the pairs, from 0 to 1, is expected")
        if self.siblings and self.source == "real":
            raise ValueError(f"siblings is {self.siblings:g}, but source is 'real': only fakes have siblings")

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose codes these are, by the names that codes have."""
        return ("fake", "real") if self.source == "both" else (self.source,)

    def rate(self, number: int) -> float:
        """The learning rate of step `number`."""
        if not self.fade:
            return self.lr
        return self.lr * min(1.0, (number + 1) / RISE, (1 - number / self.steps) / self.fade)


class Stack(nn.Module):
    """Four equalised linear layers, the last one activated as well, behind an optional PixelNorm over axis 1.

    Parameters are `mapping.1` to `.4` with the norm, `mapping.0` to `.3` without, as in the released files.
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
        """s [B,S] as it is, condition [B,2E] = (unit i, unit delta) -> delta_s [B,S]."""
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
    """clip_source [B,E] raw, delta_unit [E] or [B,E] -> [B,2E], what the mapper is told."""
    return torch.cat([F.normalize(clip_source, dim=-1), delta_unit.expand(len(clip_source), -1)], dim=1)


def losses(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Both readings of the reconstruction loss, and the cosine loss (eq. 6): predicted, target [B,S] -> scalars."""
    error = predicted - target
    return {
        "code": error.square().mean(),
        "paper": error.norm(dim=1).mean(),
        "cosine": 1 - F.cosine_similarity(predicted, target, dim=1).mean(),
    }


def pairs(
    s: Tensor, clip: Tensor, first: Tensor, second: Tensor, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `first` and `second` of the codes -> s of the first, the condition, and delta_s to reach the second."""
    s_first, s_second, one, other = (codes[rows].to(device) for codes in (s, clip) for rows in (first, second))
    s_first, s_second = s_first.float(), s_second.float()
    return s_first, condition(one, delta(one, other)), s_second - s_first


def siblings(codes: Path, params: MapperParams, redrawn: float) -> Tensor | None:
    """The training rows of any two siblings among those that `params` name, in either order: [M,2]; None if not asked.

    codes: the table, whose fakes come by rising ids; redrawn: of section `sample`. InputError where nobody is related.
    """
    if not params.siblings:
        return None
    if redrawn == 1:
        raise InputError(
            f"mapper.siblings is {params.siblings:g}, but sample.redrawn is 1, so that no fakes are siblings"
        )
    table = artefacts.read(codes, "codes", ["id", "source"], {"source": params.sources, "split": "train"})
    ids = table["id"][: params.rows]
    fakes = torch.tensor([name == "fake" for name in table["source"][: params.rows]]).nonzero()[:, 0]
    first = (ids[fakes][1:] == artefacts.sibling(ids[fakes][:-1])).nonzero()[:, 0]
    if not len(first):
        raise InputError(f"mapper.siblings is {params.siblings:g}, but no two of {len(ids)} codes are of siblings")
    both = torch.stack([fakes[first], fakes[first + 1]], dim=1)
    return torch.cat([both, both.flip(1)])


class Trainer:
    """One step of the training: Adam, random pairs; see `pipeline.training.fit`."""

    def __init__(
        self,
        s: Tensor,
        clip: Tensor,
        layout: StyleLayout,
        params: MapperParams,
        device: str = "cpu",
        siblings: Tensor | None = None,
    ) -> None:
        """s [N,S] float16 and clip [N,E] of the training rows, which stay where they lie; the first `params.rows` are
        learnt from. siblings [M,2]: see `siblings`. The mapper is on `device`."""
        if params.loss not in ("code", "paper"):
            raise ValueError(f"mapper.loss is '{params.loss}': 'code' or 'paper' is expected")
        torch.manual_seed(params.seed)
        self.params, self.device = params, torch.device(device)
        self.s, self.clip = s[: params.rows], clip[: params.rows]
        self.siblings = torch.empty(0, 2, dtype=torch.long) if siblings is None else siblings
        self.mapper = DeltaMapper(layout, clip.shape[1]).to(device)
        self.adam = torch.optim.Adam(self.mapper.parameters(), lr=params.lr, fused=True)
        self.parts = {"mapper": self.mapper, "adam": self.adam}

    def drawn(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows of the first and of the second of every pair of step `number`, [B] each."""
        generator = generator_for(self.params.seed, number)
        first, second = (batch_rows(len(self.s), self.params.batch, generator) for _ in range(2))
        if count := math.ceil(self.params.siblings * self.params.batch):
            known = self.siblings[batch_rows(len(self.siblings), count, generator)]
            first[:count], second[:count] = known.T
        return first, second

    def step(self, number: int) -> Metrics:
        first, second = self.drawn(number)
        s, told, target = pairs(self.s, self.clip, first, second, self.device)
        with lowered(self.device, self.params.precision == "bfloat16"):
            predicted = self.mapper(s, told)
        values = losses(predicted.float(), target)
        (values[self.params.loss] + values["cosine"]).backward()
        self.adam.param_groups[0]["lr"] = self.params.rate(number)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return {name: value.item() for name, value in values.items()}


@torch.no_grad()
def validate(mapper: DeltaMapper, s: Tensor, clip: Tensor, count: int = 2048, seed: int = 0) -> Metrics:
    """On `count` fixed pairs of unseen codes: cosine, mean squared error, share of delta_s's variance explained."""
    generator = generator_for(seed, -1)
    first, second = (batch_rows(len(s), count, generator) for _ in range(2))
    style, told, target = pairs(s, clip, first, second, next(mapper.parameters()).device)
    predicted = torch.cat([mapper(a, b) for a, b in zip(style.split(256), told.split(256), strict=True)])
    mse = (predicted - target).square().mean()
    return {
        "val_cos": F.cosine_similarity(predicted, target, dim=1).mean().item(),
        "val_mse": mse.item(),
        "explained": 1 - (mse / target.square().mean()).item(),
    }


def numbers(layout: StyleLayout, clip_dim: int) -> dict[str, Any]:
    """What `build` needs, for the metadata of a weights file."""
    return {"dims": list(layout.dims), "split": list(layout.split), "clip_dim": clip_dim}


def build(meta: dict[str, Any]) -> DeltaMapper:
    """A mapper from the numbers in its file."""
    return DeltaMapper(StyleLayout(tuple(meta["dims"]), tuple(meta["split"])), meta["clip_dim"])
