"""Training of CLIP on pairs of renders and captions with open_clip's loss (Radford et al. 2021)."""

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
from pipeline.training import Ema, Metrics, fit
from pretrain import clip_attribute
from pretrain.augment import degrade
from pretrain.common import Training
from pretrain.datasets import FIRST_ID, Renders

EXAMINE_EVERY, EXAMINED, MIN_SKILL = 100, 512, 0.85  # steps; images; skill: 0 is chance, 1 is no mistake
BATCH = 256


@torch.no_grad()
def weak_attributes(clip: Clip, images: torch.Tensor, people: list[portraits.Portrait]) -> list[str] | None:
    """Attributes with a zero-shot skill below `MIN_SKILL`; None when there are none.

    images: [N,3,R,R].
    people: the portraits of these images.
    """
    embeddings, names = normalize(clip.embed_images(images), dim=1), []
    for name, values in portraits.ATTRIBUTES.items():
        phrases = [[portraits.noun_phrase("face", p) for p in portraits.PHRASES[name][v][0]] for v in values]
        means = torch.stack([normalize(clip.embed_texts(texts), dim=1).mean(dim=0) for texts in phrases])
        visible = [n for n, person in enumerate(people) if portraits.visible(person)[name]]
        read = (embeddings[visible] @ normalize(means, dim=1).T).argmax(dim=1)
        true = torch.tensor([values.index(portraits.attributes(people[n])[name]) for n in visible], device=read.device)
        recalls = [(read[true == k] == k).float().mean() for k in range(len(values)) if (true == k).any()]
        skill = (torch.stack(recalls).mean().item() - 1 / len(values)) / (1 - 1 / len(values))
        if skill < MIN_SKILL:
            names.append(name)
    return names or None


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
    """Yield (pairs seen, loss and batch accuracy, averaged model).

    A contrastive loss first learns colours of large areas, which separate most images, and then has almost no gradient
    left. So the captions of every second batch name only the `weak_attributes` of that time.

    numbers: that build the network.
    data: renders.
    state: file that the training goes on from when it exists.
    images: pairs to see in all; the learning rate falls as a cosine over them.
    warmup: pairs until the learning rate is `lr`.
    ema_images: half life of the weight average, in pairs.
    seconds: time limit; None for no limit.
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
    weak: list[str] | None = []  # empty: not examined yet
    first = torch.arange(min(EXAMINED, len(data)))
    examined_images, examined_people = data.images(first).to(device), list(data.people(first))

    def step(number: int) -> Metrics:
        nonlocal weak
        if weak == [] or number % EXAMINE_EVERY == 0:
            weak = weak_attributes(ema.module, examined_images, examined_people)  # type: ignore[arg-type]
        torch.manual_seed(number)
        seen = number * batch
        rate = lr * min(1.0, seen / warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, seen / images)))
        for group in adam.param_groups:
            group["lr"] = max(rate, lr * 1e-3)
        rng = np.random.default_rng([7, number])
        rows, named = torch.randint(len(data), (batch,)), None if number % 2 else weak
        texts = [portraits.caption(person, rng, "train", named) for person in data.people(rows)]
        degraded = degrade(data.images(rows).to(device))
        with lowered(device):
            image = normalize(clip.embed_images(degraded), dim=-1)
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
        return {"loss": loss.item(), "top1": hits.item(), "weak": len(weak or ())}

    parts = {"clip": clip, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=EXAMINE_EVERY, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def captions(people: int = 20_000) -> Iterator[str]:
    """One training caption of each of the first training portraits."""
    rng = np.random.default_rng(0)
    return (portraits.caption(portraits.sample(row), rng, "train") for row in range(FIRST_ID, FIRST_ID + people))


def vocabulary(people: int = 20_000) -> list[str]:
    """Words of the training captions of so many portraits, sorted."""
    return sorted({word for caption in captions(people) for word in words(caption)})


def train(job: Training) -> None:
    """Train until `images` were seen or the time is over, going on from an earlier state, and promote the result.

    After the last image the plan's `direct_attributes` are trained directly, without a time limit.
    """
    plan = job.plan
    attributes = plan.options.pop("direct_attributes", [])
    clip_attribute.check(attributes, plan.model)
    data = job.renders(plan.renders)
    state = job.state({"clip": "clip", "ema": "clip"})
    loop = steps(plan.model, data, state, plan.images, seconds=job.seconds, device=job.device, **plan.options)
    job.follow(loop, plan.images)
    finished = job.finished_steps() >= plan.images // plan.options.get("batch", BATCH)
    if not (finished and attributes):
        promote(job)
    elif _direct_attributes(job) != attributes:
        train_attributes(job, data, attributes)


def train_attributes(job: Training, data: Renders, attributes: list[str]) -> None:
    """Train attributes of the averaged network directly (`clip_attribute`), and promote the result."""
    tensors, _ = job.averaged()
    clip = Clip(job.plan.model).to(job.device)
    clip.load_state_dict(tensors)
    for name in attributes:
        loop = clip_attribute.steps(clip, data, name, clip_attribute.IMAGES)
        job.follow(loop, clip_attribute.IMAGES, f"clip, {name}")
    if training.first_process():
        _publish(job, clip.cpu().state_dict(), attributes)


def promote(job: Training) -> Path:
    """Write the averaged network to the domain's weights, unless those are the same network with direct attributes."""
    if _direct_attributes(job):
        return job.promoted()
    return _publish(job, job.averaged()[0], [])


def _publish(job: Training, tensors: Mapping[str, torch.Tensor], attributes: list[str]) -> Path:
    average, done = job.averaged()
    origin = {"taught": attributes, "of": _digest(average)} if attributes else {}
    return job.publish(tensors, job.plan.model, steps=done, vocabulary=vocabulary(), **origin)


def _direct_attributes(job: Training) -> list[str]:
    """Attributes that the domain's weights were trained on directly; [] where they are of another state."""
    path = job.promoted()
    if not path.exists():
        return []
    tensors, meta = weights.load(path)
    digest = _digest(job.averaged()[0])
    return list(meta.get("taught", [])) if digest in (meta.get("of"), _digest(tensors)) else []


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a network's tensors as float32."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
