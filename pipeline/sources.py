"""Images to edit, with their inversions, and the table of their edits: the same for every editor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from pipeline import portraits, sampling
from pipeline.models.feature_residual import FeatureResidual
from pipeline.storage import artefacts, images
from pipeline.values import Direction, Inversion, Source, TextPair

if TYPE_CHECKING:
    from pipeline.editors import Editor
    from pipeline.networks import Networks
    from pipeline.portraits import Portrait
    from pipeline.storage.artefacts import DomainPaths
    from pipeline.storage.domains import Domain

Scale = Literal["default", "full"]
TEST_IMAGES: dict[Scale, dict[str, int]] = {  # by kind of editor; an edit by diffusion takes hundreds of times longer
    "default": {"latent": 200, "baseline": 200, "diffusion": 24},
    "full": {"latent": 2000, "baseline": 2000, "diffusion": 500},
}
UNEDITED = ""  # prompt of the rows of strength 0


@dataclass(frozen=True)
class EvaluateParams:
    """Section `evaluate` of params.yaml.

    scale: how many test images are edited, see TEST_IMAGES. repeats, seed: of the bootstrap over images. batch: images
    per pass. precision: of the identity network and the oracles on edits; they see counterfactuals in float32.
    """

    scale: Scale
    repeats: int
    seed: int
    batch: int
    precision: Literal["float32", "bfloat16"]


class Block(NamedTuple):
    """Test images that are edited together: row ids of one shard of images and of its shard of inversions."""

    images: Path
    inversions: Path
    ids: tuple[int, ...]


@torch.no_grad()
def source(
    networks: Networks, image: Tensor, inversion: Inversion, people: tuple[Portrait, ...] | None = None
) -> Source:
    """Source of images and their inversion, on the networks' device; style codes and CLIP are computed.

    image: [B,3,R,R] in [-1,1].
    people: parameters that the portraits were drawn with, one per image; None for photographs and samples.
    """
    generator, image, inversion = networks.generator, image.to(networks.device), inversion.to(networks.device)
    s, residual = generator.styles(inversion.w_plus), None
    if inversion.detail is not None:
        residual = FeatureResidual.of(generator, inversion.detail, s, inversion.w_plus)
    return Source(image, inversion, s, networks.clip.embed_images(image), people, residual)


def inversions(networks: Networks, ids: Sequence[int], reals: Path | None = None) -> Inversion:
    """Inversions of the test images `ids`, as the stage `invert` wrote them, in the order of its table.

    reals: the shard of its table that has them; None: any.
    """
    chosen, generator, files = {"id": tuple(ids)}, networks.generator, networks.paths
    w_plus = artefacts.read(reals or files.reals, "reals", ["w_plus"], chosen)["w_plus"]
    settings = artefacts.metadata(files.details, "details")["params"]
    detail = artefacts.read(files.details, "details", ["detail"], chosen)["detail"]
    if detail is not None:
        detail = detail.unflatten(1, generator.feature_shape(settings["detail"]))
    return Inversion(w_plus.unflatten(1, (generator.num_ws, -1)), detail, settings["refine"])


def read(networks: Networks, block: Block) -> Source:
    """Source of a block of test images."""
    table = artefacts.read(block.images, "images", ["image", "params"], {"id": block.ids})
    inversion = inversions(networks, block.ids, block.inversions)
    return source(networks, sampling.decode_images(table["image"]), inversion, portraits_of(table["params"]))


def blocks(files: DomainPaths, count: int, size: int) -> list[Block]:
    """The first `count` test images in blocks of at most `size`, each within one shard."""
    result: list[Block] = []
    for image_shard, code_shard in zip(artefacts.shards(files.images), artefacts.shards(files.reals), strict=True):
        ids = artefacts.read(image_shard, "images", ["id"], {"split": "test"})["id"].tolist()[:count]
        count -= len(ids)
        result += [
            Block(image_shard, code_shard, tuple(ids[start : start + size])) for start in range(0, len(ids), size)
        ]
    return result


def portraits_of(params: Sequence[str | None]) -> tuple[Portrait, ...] | None:
    """Portraits from the renderer's parameters as JSON; None for photographs, which have none."""
    known = [portraits.from_dict(json.loads(text)) for text in params if text is not None]
    return tuple(known) if len(known) == len(params) else None


def conditions(domain: Domain) -> list[TextPair]:
    """The domain's prompts, each against its neutral word."""
    return [TextPair(domain.neutral, prompt.text, prompt.asks) for prompt in domain.prompts]


NO_EDITS: dict[str, Any] = {  # columns of the schema `edits` without rows
    **{name: [] for name in ("id", "prompt", "strength", "image", "mask", "evaluations")},
    "s": None,
}


@torch.no_grad()
def edit(
    editor: Editor, ids: Sequence[int], source: Source, directions: Sequence[Direction], strength: float
) -> dict[str, Any]:
    """Columns of the schema `edits`: all images of a source with strength 0, then along every direction.

    ids: row ids of the images [B].
    directions: of text pairs; their target texts become the column `prompt`.
    strength: of all edits along them.
    """
    prepared = editor.prepare(source)
    edits = [(UNEDITED, 0.0, editor.edit(prepared, directions[0], 0.0))]
    for direction in directions:
        assert isinstance(direction.condition, TextPair)
        edits.append((direction.condition.target, strength, editor.edit(prepared, direction, strength)))
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
