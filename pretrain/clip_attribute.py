"""Teaches a trained CLIP an attribute of two values that its contrastive training left unlearnt.

Where captions that differ in one attribute alone have come to share an embedding, pictures have nothing to be told
apart by, nor texts anything to follow: no gradient of the contrastive loss leads out of that. So both towers are told
where such pictures and captions belong: to either side along one direction that embeddings hardly use. All else is held
where it was, and few weights may change, since git keeps whatever differs between two versions of a file.
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
from pretrain.renders import Renders

AXES = 40  # coordinates of the embedding that the direction may use
# The part of these filters that learns; so do all norms of these layers, and of the texts' transformer.
CONVOLUTIONS = {"layer2.0.conv2": 1.0, "layer3.0.conv1": 1.0, "layer3.0.conv2": 0.5}
NORMS = ("layer2", "layer3", "layer4")
SIDE, STEEP, HELD = 0.15, 20.0, 10.0  # of captions along the direction; slope of the pictures' loss; weight of the rest
IMAGES, PICTURES = 240_000, 16_000  # seen in all, and different ones: their features take 74 kB each
REPORT_EVERY = 100  # steps


def check(names: Any, model: Mapping[str, Any]) -> None:
    """InputError for what no lesson can teach to a CLIP of these numbers."""
    if not isinstance(names, list):
        raise InputError(f"taught is {names!r}: a list of attributes is expected")
    for name in names:
        if name not in portraits.ATTRIBUTES:
            raise InputError(f"taught: there is no attribute '{name}'{nearest(name, portraits.ATTRIBUTES)}")
        if len(values := portraits.ATTRIBUTES[name]) != 2:
            raise InputError(f"taught: '{name}' has {len(values)} values, a lesson is of one direction, for two")
    if names and not isinstance(model["vision"].get("layers"), list):
        raise InputError("taught: a lesson is for the layers of a ResNet, and this CLIP sees with a transformer")


def steps(
    clip: Clip,
    data: Renders,
    name: str,
    images: int = IMAGES,
    pictures: int = PICTURES,
    batch: int = 96,
    lr: float = 4e-3,
) -> Iterator[tuple[int, Metrics, nn.Module]]:
    """Yield (pictures seen, losses, clip), which learns attribute `name` in place, of `pictures` different ones.

    side: logistic loss of the side that pictures lie on. moved: squared distance from where they were, but for what
    lies along the direction. texts: that of captions from where they belong. Ours, not of a paper.
    """
    values = portraits.ATTRIBUTES[name]
    torch.manual_seed(0)
    clip.eval()
    before, rows = copy.deepcopy(clip).requires_grad_(False), torch.arange(min(pictures, len(data)))
    device = clip.model.logit_scale.device
    with torch.no_grad():
        lower = torch.cat([_lower(clip, degrade(data.images(part).to(device))).half() for part in rows.split(batch)])
        stands = torch.cat([_upper(clip, part.float()) for part in lower.split(batch)])
    sides = torch.tensor([values.index(portraits.attributes(person)[name]) * 2.0 - 1 for person in data.people(rows)])
    sides, along = sides.to(device), direction(stands)
    learning = opened(clip, name, along != 0)
    adam = torch.optim.Adam([parameter for parameter, _ in learning], lr=lr, betas=(0.9, 0.99))
    total = -(-images // batch)
    for number in range(total):
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (number + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * number / total))
        chosen = torch.from_numpy(np.random.default_rng([11, number]).integers(len(rows), size=batch)).to(device)
        image = _upper(clip, lower[chosen].float())
        moved = image - stands[chosen]
        moved = (moved - (moved @ along)[:, None] * along).square().sum(dim=1).mean()
        side = F.softplus(-STEEP * sides[chosen] * (image @ along)).mean()
        captions, told = _captions(data, name, number, batch // 4)
        with torch.no_grad():
            belong = normalize(before.embed_texts(captions) + SIDE * told.to(device)[:, None] * along, dim=1)
        texts = (clip.embed_texts(captions) - belong).square().sum(dim=1).mean()
        (side + HELD * (moved + texts)).backward()
        for parameter, mask in learning:
            if mask is not None and parameter.grad is not None:
                parameter.grad *= mask
        adam.step()
        adam.zero_grad(set_to_none=True)
        if (number + 1) % REPORT_EVERY == 0 or number + 1 == total:
            metrics = {"side": side.item(), "moved": moved.item(), "texts": texts.item()}
            yield (number + 1) * batch, metrics, clip


def direction(embeddings: Tensor) -> Tensor:
    """A unit vector [E] of at most `AXES` coordinates along which embeddings [N,E] have as little as possible."""
    spread, kept = embeddings.T.double() @ embeddings.double(), list(range(embeddings.shape[1]))
    while len(kept) > AXES:
        least = torch.linalg.eigh(spread[kept][:, kept]).eigenvectors[:, 0]
        kept.pop(int(least.abs().argmin()))
    found = torch.zeros(embeddings.shape[1], device=embeddings.device)
    found[kept] = torch.linalg.eigh(spread[kept][:, kept]).eigenvectors[:, 0].to(found)
    return found


def opened(clip: Clip, name: str, axes: Tensor) -> list[tuple[nn.Parameter, Tensor | None]]:
    """The weights that the lesson may change, the only ones with gradients, and of some the part: 1 there, else 0.

    axes: [E] bool, the coordinates of the embedding that may change.
    """
    model: Any = clip.model
    words = [word for value in _words(name) for word in value]
    tokens = torch.zeros(len(model.token_embedding.weight), dtype=torch.bool)
    tokens[torch.cat([clip.tokenizer([word])[0] for word in words])] = True
    tokens[clip.tokenizer([""])[0]] = False  # what every text has
    parts: dict[str, Tensor | None] = {
        "token_embedding.weight": tokens[:, None],
        "text_projection": axes,
        "visual.attnpool.c_proj.weight": axes[:, None],
        "visual.attnpool.c_proj.bias": axes,
    }
    for layer, share in CONVOLUTIONS.items():
        weight = model.visual.get_submodule(layer).weight
        parts[f"visual.{layer}.weight"] = (torch.arange(len(weight)) < share * len(weight)).reshape(-1, 1, 1, 1)
    for path, module in model.named_modules():
        normalises = isinstance(module, nn.BatchNorm2d) and path.split(".")[1] in NORMS
        if normalises or isinstance(module, nn.LayerNorm):
            parts |= {f"{path}.weight": None, f"{path}.bias": None}
    clip.requires_grad_(False)
    opened = ((model.get_parameter(path).requires_grad_(True), part) for path, part in parts.items())
    return [(parameter, None if part is None else part.to(parameter)) for parameter, part in opened]


def _lower(clip: Clip, images: Tensor) -> Tensor:
    """images [B,3,R,R] -> what the layers that learn are given."""
    visual: Any = clip.model.visual
    return visual.layer1(visual.stem(clip.clip_input(images).contiguous(memory_format=torch.channels_last)))


def _upper(clip: Clip, lower: Tensor) -> Tensor:
    """That -> unit embeddings [B,E]."""
    visual: Any = clip.model.visual
    return normalize(visual.attnpool(visual.layer4(visual.layer3(visual.layer2(lower)))), dim=1)


def _words(name: str) -> list[list[str]]:
    """What training captions call each value, with what stands before it in a sentence left out."""
    return [[phrase.removeprefix("with ") for phrase in taught] for taught, _ in portraits.PHRASES[name].values()]


def _captions(data: Renders, name: str, number: int, count: int) -> tuple[list[str], Tensor]:
    """Captions of training people for step `number`, many of them of `name` alone, and what each says of it: [count] of
    -1, 0 and 1 for the first value, none and the second."""
    rng = np.random.default_rng([13, number])
    people = list(data.people(torch.from_numpy(rng.integers(len(data), size=count))))
    other = str(rng.choice(list(portraits.ATTRIBUTES)))
    among = (None, [name], [name, other])
    captions = [portraits.caption(person, rng, "train", among[n % 3]) for n, person in enumerate(people)]
    first, second = _words(name)
    told = [sum(p in caption for p in second) - sum(p in caption for p in first) for caption in captions]
    return captions, torch.tensor(told, dtype=torch.float32)
