"""What the edit stages do: the same people and prompts for every editor, one setting for all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pipeline import portraits
from pipeline.models.feature_residual import Detail
from pipeline.storage import artefacts, images
from pipeline.values import Direction, Source, TextPair

if TYPE_CHECKING:
    from pipeline.editors import Editor
    from pipeline.networks import Backbones
    from pipeline.portraits import Portrait
    from pipeline.storage.domains import Domain

Scale = Literal["default", "full"]
PEOPLE: dict[Scale, dict[str, int]] = {  # test people by kind of editor; diffusion is hundreds of times dearer
    "default": {"latent": 200, "baseline": 200, "diffusion": 24},
    "full": {"latent": 2000, "baseline": 2000, "diffusion": 500},
}
UNEDITED = ""  # the prompt of a row of strength 0: what the editor makes of a person before editing


@dataclass(frozen=True)
class EvaluateParams:
    """scale: how many people are edited. repeats, seed: of the bootstrap over people. batch: images per pass.
    precision: of the products by which identity network and oracles look at edits; the truth they see in float32."""

    scale: Scale
    repeats: int
    seed: int
    batch: int
    precision: Literal["float32", "bfloat16"]


def people_of(params: Sequence[str | None]) -> tuple[Portrait, ...] | None:
    """Who the pictures show, from the renderer's parameters as JSON; None for photographs."""
    known = [portraits.from_dict(json.loads(text)) for text in params if text is not None]
    return tuple(known) if len(known) == len(params) else None


@torch.no_grad()
def source(
    backbones: Backbones,
    image: Tensor,
    w_plus: Tensor,
    detail: Tensor | None = None,
    people: tuple[Portrait, ...] | None = None,
) -> Source:
    """People to edit: pictures [B,3,R,R], their w_plus [B,L,D], what that lacks of them (`Detail.added`, [B,C,r,r]),
    and who they are."""
    generator, device = backbones.generator, backbones.device
    image, w_plus = image.to(device), w_plus.to(device)
    s = generator.styles(w_plus)
    known = None if detail is None else Detail.of(generator, detail.to(device), s, w_plus)
    return Source(image, w_plus, s, backbones.clip.embed_images(image), people, known)


def details(backbones: Backbones, ids: Sequence[int]) -> Tensor | None:
    """What the codes of test people lack, [N,C,r,r], `ids` being in the table's order; None where it was not sought."""
    path = backbones.layout.details
    detail = artefacts.read(path, "details", ["detail"], {"id": tuple(ids)})["detail"]
    size = artefacts.metadata(path, "details")["params"]["detail"]
    return None if detail is None else detail.unflatten(1, backbones.generator.shape(size))


def conditions(domain: Domain) -> list[TextPair]:
    """The domain's prompts, each against its neutral word."""
    return [TextPair(domain.neutral, prompt.text, prompt.asks) for prompt in domain.prompts]


NOBODY: dict[str, Any] = {  # columns of the schema `edits` without rows
    **{name: [] for name in ("id", "prompt", "strength", "image", "mask", "evaluations")},
    "s": None,
}


@torch.no_grad()
def rows(
    editor: Editor, ids: Sequence[int], people: Source, directions: Sequence[Direction], strength: float
) -> dict[str, Any]:
    """Columns of the schema `edits`: every person unedited (strength 0), then in every direction."""
    edits = [(UNEDITED, 0.0, editor.edit(people, directions[0], 0.0))]
    for direction in directions:
        assert isinstance(direction.condition, TextPair)
        edits.append((direction.condition.target, strength, editor.edit(people, direction, strength)))
    size = len(ids)
    codes = [edited.s for _, _, edited in edits if edited.s is not None]
    masks = [edited.mask for _, _, edited in edits]
    return {
        "id": [row for _ in edits for row in ids],
        "prompt": [prompt for prompt, _, _ in edits for _ in range(size)],
        "strength": [amount for _, amount, _ in edits for _ in range(size)],
        "image": [images.encode_png(image.float().cpu()) for _, _, edited in edits for image in edited.images],
        "s": torch.cat([s.half().cpu() for s in codes]) if len(codes) == len(edits) else None,
        "mask": [None if m is None else images.encode_mask(m[i].float().cpu()) for m in masks for i in range(size)],
        "evaluations": [edited.evaluations for _, _, edited in edits for _ in range(size)],
    }
