"""Trains CLIP on pairs of renders and captions with open_clip's loss."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from pipeline import portraits, training
from pipeline.models.clip import Clip, words
from pipeline.runtime.precision import lowered
from pipeline.storage import weights
from pipeline.storage.domains import Domain
from pipeline.training import Ema, Metrics, fit
from pretrain import clip_attribute, common
from pretrain.augment import degrade
from pretrain.renders import FIRST_ID, Renders

EXAMINE_EVERY, EXAMINED, LEARNT = 100, 512, 0.85  # steps, pictures, skill: 0 is chance, 1 no mistake
BATCH = 256


@torch.no_grad()
def unlearnt(clip: Clip, images: torch.Tensor, people: list[portraits.Portrait]) -> list[str] | None:
    """The attributes that the nearest text does not read well from images [N,3,R,R] of people; None when all are."""
    seen, found = normalize(clip.embed_images(images), dim=1), []
    for name, values in portraits.ATTRIBUTES.items():
        phrases = [[portraits.in_a_phrase("face", p) for p in portraits.PHRASES[name][v][0]] for v in values]
        means = torch.stack([normalize(clip.embed_texts(texts), dim=1).mean(dim=0) for texts in phrases])
        shown = [n for n, person in enumerate(people) if portraits.visible(person)[name]]
        read = (seen[shown] @ normalize(means, dim=1).T).argmax(dim=1)
        truth = torch.tensor([values.index(portraits.attributes(people[n])[name]) for n in shown], device=read.device)
        right = [(read[truth == k] == k).float().mean() for k in range(len(values)) if (truth == k).any()]
        skill = (torch.stack(right).mean().item() - 1 / len(values)) / (1 - 1 / len(values))
        if skill < LEARNT:
            found.append(name)
    return found or None


def steps(
    numbers: dict[str, Any],
    data: Renders,
    state: Path,
    images: int,
    batch: int = BATCH,
    lr: float = 1e-3,
    warmup: int = 50_000,
    ema_images: float = 30_000,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, Clip]]:
    """Yield (pairs seen, loss and batch accuracy, averaged model); cosine schedule over `images` pairs.

    A contrastive loss learns what tells most pictures apart, colours of large areas, and then has little left to say:
    the captions of every second batch name only what is `unlearnt` by then.
    """
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    clip = Clip(numbers).to(device)
    ema = Ema(clip)
    decayed = [p for p in clip.parameters() if p.ndim > 1]
    plain = [p for p in clip.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    objective = ClipLoss()
    hard: list[str] | None = []  # not looked at yet
    first = torch.arange(min(EXAMINED, len(data)))
    examined, examples = data.images(first).to(device), list(data.people(first))

    def step(number: int) -> Metrics:
        nonlocal hard
        if hard == [] or number % EXAMINE_EVERY == 0:
            hard = unlearnt(ema.module, examined, examples)  # type: ignore[arg-type]
        torch.manual_seed(number)
        seen = number * batch
        rate = lr * min(1.0, seen / warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, seen / images)))
        for group in adam.param_groups:
            group["lr"] = max(rate, lr * 1e-3)
        rng = np.random.default_rng([7, number])
        rows, among = torch.randint(len(data), (batch,)), None if number % 2 else hard
        texts = [portraits.caption(person, rng, "train", among) for person in data.people(rows)]
        pictures = degrade(data.images(rows).to(device))
        with lowered(device):
            image = normalize(clip.embed_images(pictures), dim=-1)
            text = clip.embed_texts(texts)
        loss = objective(image, text, clip.model.logit_scale.exp())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            clip.model.logit_scale.clamp_(0, math.log(100))
            hits = ((image @ text.T).argmax(dim=1) == torch.arange(batch, device=device)).float().mean()
        ema.update(clip, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        return {"loss": loss.item(), "top1": hits.item(), "unlearnt": len(hard or ())}

    parts = {"clip": clip, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=EXAMINE_EVERY, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def captions(people: int = 20_000) -> Iterator[str]:
    """Captions as in training, one of each of so many people."""
    rng = np.random.default_rng(0)
    return (portraits.caption(portraits.sample(row), rng, "train") for row in range(FIRST_ID, FIRST_ID + people))


def vocabulary(people: int = 20_000) -> list[str]:
    """Every word that a training caption can hold, as found in those of so many people."""
    return sorted({word for caption in captions(people) for word in words(caption)})


def train(
    domain: Domain,
    root: Path,
    minutes: float | None = None,
    images: int | None = None,
    resume: bool = True,
    device: str = "cpu",
) -> None:
    """Train until `images` were seen or `minutes` are over, going on from an earlier state, then promote the result.

    Once it has seen them all, it gets a lesson of each attribute in `taught` of the plan, whole, whatever the time.
    """
    plan = common.plan(domain, "clip", images)
    lessons = plan.options.pop("taught", [])
    clip_attribute.check(lessons, plan.model)
    data = common.drawn(domain, root, plan.renders)
    state = common.state(domain, root, "clip", resume, {"clip": "clip", "ema": "clip"})
    loop = steps(plan.model, data, state, plan.images, seconds=common.seconds(minutes), device=device, **plan.options)
    common.follow(loop, plan.images, "clip")
    finished = common.progress_of(state) >= plan.images // plan.options.get("batch", BATCH)
    if not (finished and lessons):
        promote(domain, root)
    elif _lessons(domain, root) != lessons:
        teach(domain, root, plan.model, data, lessons, device)


def teach(domain: Domain, root: Path, model: dict[str, Any], data: Renders, lessons: list[str], device: str) -> None:
    """Give the averaged network its lessons, and write what they make of it to the domain's weights."""
    tensors, _ = common.averaged(domain, root, "clip")
    clip = Clip(model).to(device)
    clip.load_state_dict(tensors)
    for name in lessons:
        common.follow(
            clip_attribute.steps(clip, data, name, clip_attribute.IMAGES), clip_attribute.IMAGES, f"clip, {name}"
        )
    if training.first_process():
        _publish(domain, root, clip.cpu().state_dict(), lessons)


def promote(domain: Domain, root: Path) -> Path:
    """Write the averaged network to the domain's weights, unless they are what lessons made of it."""
    if _lessons(domain, root):
        return common.promoted(domain, root, "clip")
    return _publish(domain, root, common.averaged(domain, root, "clip")[0], [])


def _publish(domain: Domain, root: Path, tensors: Mapping[str, torch.Tensor], lessons: list[str]) -> Path:
    before, done = common.averaged(domain, root, "clip")
    told = {"taught": lessons, "of": _digest(before)} if lessons else {}
    model = common.plan(domain, "clip").model
    return common.publish(domain, root, "clip", tensors, model, steps=done, vocabulary=vocabulary(), **told)


def _lessons(domain: Domain, root: Path) -> list[str]:
    """What the averaged network was taught: the domain's weights are it after these lessons, or it was made of them."""
    path = common.promoted(domain, root, "clip")
    if not path.exists():
        return []
    tensors, meta = weights.load(path)
    own = _digest(common.averaged(domain, root, "clip")[0])
    return list(meta.get("taught", [])) if own in (meta.get("of"), _digest(tensors)) else []


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of a network, as float32."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
