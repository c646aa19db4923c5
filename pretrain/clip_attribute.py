"""Direct training of a CLIP on an attribute of two values that contrastive training did not teach it. Ours.

Once captions that differ only in this attribute share an embedding, the contrastive loss has no gradient that would
separate them. So images and captions of the two values get targets: either side along one direction of the embedding
space that has hardly any variance. All else is pulled to where it was. Few weights change, since git stores every
difference between two versions of a file.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline import portraits
from pipeline.models.clip import Clip
from pipeline.runtime.errors import InputError, nearest
from pipeline.training import Metrics
from pretrain.augment import degrade
from pretrain.datasets import Renders

AXES = 40  # coordinates of the embedding that the direction may use
# Trained fraction of the filters of a convolution. All norms of NORMS and of the text transformer are trained as well.
CONVOLUTIONS = {"layer2.0.conv2": 1.0, "layer3.0.conv1": 1.0, "layer3.0.conv2": 0.5}
NORMS = ("layer2", "layer3", "layer4")
CAPTION_OFFSET = 0.15  # of captions along the direction
SLOPE, KEEP_WEIGHT = 20.0, 10.0  # slope of the images' logistic loss; weight of the losses that keep all else
IMAGES, DIFFERENT_IMAGES = 240_000, 16_000  # seen in all; different ones, whose features take 74 kB each
REPORT_EVERY = 100  # steps


def check(names: Any, model: Mapping[str, Any]) -> None:
    """Raise InputError for attributes that cannot be trained directly, or a CLIP of other layers than a ResNet's.

    names: the plan's `direct_attributes`.
    model: numbers that build the CLIP.
    """
    if not isinstance(names, list):
        raise InputError(f"direct_attributes is {names!r}: a list of attributes is expected")
    for name in names:
        if name not in portraits.ATTRIBUTES:
            raise InputError(f"direct_attributes: there is no attribute '{name}'{nearest(name, portraits.ATTRIBUTES)}")
        if len(values := portraits.ATTRIBUTES[name]) != 2:
            raise InputError(f"direct_attributes: '{name}' has {len(values)} values, only two can be trained directly")
    if names and not isinstance(model["vision"].get("layers"), list):
        raise InputError("direct_attributes needs the layers of a ResNet, and the vision of this CLIP is a transformer")


def steps(
    clip: Clip,
    data: Renders,
    name: str,
    images: int = IMAGES,
    different_images: int = DIFFERENT_IMAGES,
    batch: int = 96,
    lr: float = 4e-3,
) -> Iterator[tuple[int, Metrics, nn.Module]]:
    """Train attribute `name` in place; yield (images seen, losses, clip).

    Losses: "side", logistic, of the side that images lie on; "moved", squared distance of images from where they were,
    without the direction; "texts", squared distance of captions from their targets.

    images: images to see in all.
    different_images: renders used, the first of `data`.
    """
    values = portraits.ATTRIBUTES[name]
    torch.manual_seed(0)
    clip.eval()
    before, rows = copy.deepcopy(clip).requires_grad_(False), torch.arange(min(different_images, len(data)))
    device = clip.model.logit_scale.device
    with torch.no_grad():
        lower = torch.cat([_lower(clip, degrade(data.images(part).to(device))).half() for part in rows.split(batch)])
        initial = torch.cat([_upper(clip, part.float()) for part in lower.split(batch)])
    sides = torch.tensor([values.index(portraits.attributes(person)[name]) * 2.0 - 1 for person in data.people(rows)])
    sides, along = sides.to(device), direction(initial)
    trained = select_weights(clip, name, along != 0)
    adam = torch.optim.Adam([parameter for parameter, _ in trained], lr=lr, betas=(0.9, 0.99))
    total = -(-images // batch)
    for number in range(total):
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (number + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * number / total))
        chosen = torch.from_numpy(np.random.default_rng([11, number]).integers(len(rows), size=batch)).to(device)
        image = _upper(clip, lower[chosen].float())
        moved = image - initial[chosen]
        moved = (moved - (moved @ along)[:, None] * along).square().sum(dim=1).mean()
        side = F.softplus(-SLOPE * sides[chosen] * (image @ along)).mean()
        captions, signs = _captions(data, name, number, batch // 4)
        with torch.no_grad():
            target = normalize(before.embed_texts(captions) + CAPTION_OFFSET * signs.to(device)[:, None] * along, dim=1)
        texts = (clip.embed_texts(captions) - target).square().sum(dim=1).mean()
        (side + KEEP_WEIGHT * (moved + texts)).backward()
        for parameter, mask in trained:
            if mask is not None and parameter.grad is not None:
                parameter.grad *= mask
        adam.step()
        adam.zero_grad(set_to_none=True)
        if (number + 1) % REPORT_EVERY == 0 or number + 1 == total:
            metrics = {"side": side.item(), "moved": moved.item(), "texts": texts.item()}
            yield (number + 1) * batch, metrics, clip


def direction(embeddings: Tensor) -> Tensor:
    """Unit vector [E] of small second moment over embeddings [N,E], with at most `AXES` coordinates other than 0.

    Coordinates are removed one by one: the smallest of the last eigenvector.
    """
    moments, kept = embeddings.T.double() @ embeddings.double(), list(range(embeddings.shape[1]))
    while len(kept) > AXES:
        least = torch.linalg.eigh(moments[kept][:, kept]).eigenvectors[:, 0]
        kept.pop(int(least.abs().argmin()))
    unit = torch.zeros(embeddings.shape[1], device=embeddings.device)
    unit[kept] = torch.linalg.eigh(moments[kept][:, kept]).eigenvectors[:, 0].to(unit)
    return unit


def select_weights(clip: Clip, name: str, axes: Tensor) -> list[tuple[nn.Parameter, Tensor | None]]:
    """Weights to train, each with a mask of its trained entries or None for all; only these get gradients.

    name: attribute, whose words' token embeddings are trained.
    axes: bool [E], trained coordinates of the embedding.
    """
    model: Any = clip.model
    words = [word for value in _words(name) for word in value]
    tokens = torch.zeros(len(model.token_embedding.weight), dtype=torch.bool)
    tokens[torch.cat([clip.tokenizer([word])[0] for word in words])] = True
    tokens[clip.tokenizer([""])[0]] = False  # tokens of every text: start, end, padding
    masks: dict[str, Tensor | None] = {
        "token_embedding.weight": tokens[:, None],
        "text_projection": axes,
        "visual.attnpool.c_proj.weight": axes[:, None],
        "visual.attnpool.c_proj.bias": axes,
    }
    for layer, fraction in CONVOLUTIONS.items():
        weight = model.visual.get_submodule(layer).weight
        masks[f"visual.{layer}.weight"] = (torch.arange(len(weight)) < fraction * len(weight)).reshape(-1, 1, 1, 1)
    for path, module in model.named_modules():
        trained_norm = isinstance(module, nn.BatchNorm2d) and path.split(".")[1] in NORMS
        if trained_norm or isinstance(module, nn.LayerNorm):
            masks |= {f"{path}.weight": None, f"{path}.bias": None}
    clip.requires_grad_(False)
    trained = ((model.get_parameter(path).requires_grad_(True), mask) for path, mask in masks.items())
    return [(parameter, None if mask is None else mask.to(parameter)) for parameter, mask in trained]


def _lower(clip: Clip, images: Tensor) -> Tensor:
    """Features of images [B,3,R,R] below the trained layers."""
    visual: Any = clip.model.visual
    return visual.layer1(visual.stem(clip.clip_input(images).contiguous(memory_format=torch.channels_last)))


def _upper(clip: Clip, lower: Tensor) -> Tensor:
    """Unit embeddings [B,E] of such features."""
    visual: Any = clip.model.visual
    return normalize(visual.attnpool(visual.layer4(visual.layer3(visual.layer2(lower)))), dim=1)


def _words(name: str) -> list[list[str]]:
    """Training phrases of each value, without a leading "with"."""
    return [[phrase.removeprefix("with ") for phrase in train] for train, _ in portraits.PHRASES[name].values()]


def _captions(data: Renders, name: str, number: int, count: int) -> tuple[list[str], Tensor]:
    """Captions of random training portraits for step `number`, and their signs [count].

    A third name whatever a caption names, a third only the attribute, a third it and another one. A sign is -1 for the
    first value of the attribute, 1 for the second and 0 where the caption names neither.
    """
    rng = np.random.default_rng([13, number])
    people = list(data.people(torch.from_numpy(rng.integers(len(data), size=count))))
    other = str(rng.choice(list(portraits.ATTRIBUTES)))
    named = (None, [name], [name, other])
    captions = [portraits.caption(person, rng, "train", named[n % 3]) for n, person in enumerate(people)]
    first, second = _words(name)
    signs = [sum(p in caption for p in second) - sum(p in caption for p in first) for caption in captions]
    return captions, torch.tensor(signs, dtype=torch.float32)
