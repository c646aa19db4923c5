"""Trains CLIP on pairs of renders and captions with open_clip's loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import portraits
from pipeline.clip import Clip, words
from pipeline.domains import Domain
from pipeline.training import Ema, Metrics, fit
from pretrain import session
from pretrain.augment import degrade
from pretrain.renders import FIRST_ID, Renders

EASY = [
    "background",
    "clothes_color",
    "skin",
    "hair_color",
    "clothes",
    "glasses",
    "hair_style",
    "eyes",
    "eye_size",
    "face_shape",
    "age",
]
ALIKE = 3  # EASY attributes that the people of a hard batch share


def table(data: Renders) -> np.ndarray:
    """The value of every EASY attribute of every person [N,attributes], as numbers."""
    truths = (portraits.attributes(person) for person in data.people(torch.arange(len(data))))
    order = {name: {value: i for i, value in enumerate(portraits.ATTRIBUTES[name])} for name in EASY}
    return np.array([[order[name][truth[name]] for name in EASY] for truth in truths], dtype=np.int8)


def look_alikes(values: np.ndarray, batch: int, rng: np.random.Generator) -> torch.Tensor:
    """Rows [batch] of people who share ALIKE attributes, or of as few such groups as make up a batch.

    A contrastive loss learns what tells most pictures apart, colours of large areas, and then has little left to say;
    among people alike in those, the small things decide.
    """
    columns = rng.choice(len(EASY), size=ALIKE, replace=False)
    chosen: list[int] = []
    while len(chosen) < batch:
        model = values[rng.integers(len(values)), columns]
        group = np.flatnonzero((values[:, columns] == model).all(axis=1))
        chosen += rng.permutation(group)[: batch - len(chosen)].tolist()
    return torch.tensor(chosen)


def steps(
    numbers: dict[str, Any],
    data: Renders,
    state: Path,
    images: int,
    batch: int = 256,
    lr: float = 1e-3,
    warmup: int = 50_000,
    ema_images: float = 30_000,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, Clip]]:
    """Yield (pairs seen, loss and batch accuracy, averaged model); cosine schedule over `images` pairs.

    Every second batch is one of `look_alikes`.
    """
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    clip = Clip(numbers).to(device)
    ema = Ema(clip)
    decayed = [p for p in clip.parameters() if p.ndim > 1]
    plain = [p for p in clip.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    objective, values = ClipLoss(), table(data)

    def step(number: int) -> Metrics:
        torch.manual_seed(number)
        seen = number * batch
        rate = lr * min(1.0, seen / warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, seen / images)))
        for group in adam.param_groups:
            group["lr"] = max(rate, lr * 1e-3)
        rng = np.random.default_rng([7, number])
        rows = torch.randint(len(values), (batch,)) if number % 2 else look_alikes(values, batch, rng)
        captions = [portraits.caption(person, rng, "train") for person in data.people(rows)]
        pictures = degrade(data.images(rows).to(device))
        with torch.autocast(device, torch.bfloat16):
            image = torch.nn.functional.normalize(clip.embed_images(pictures), dim=-1)
            text = clip.embed_texts(captions)
        loss = objective(image, text, clip.model.logit_scale.exp())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            clip.model.logit_scale.clamp_(0, math.log(100))
            hits = ((image @ text.T).argmax(dim=1) == torch.arange(batch, device=device)).float().mean()
        ema.update(clip, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        return {"loss": loss.item(), "top1": hits.item()}

    parts = {"clip": clip, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=100, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def vocabulary(people: int = 20_000) -> list[str]:
    """Every word that a training caption can hold, as found in those of so many people."""
    rng = np.random.default_rng(0)
    captions = (portraits.caption(portraits.sample(row), rng, "train") for row in range(FIRST_ID, FIRST_ID + people))
    return sorted({word for caption in captions for word in words(caption)})


def train(
    domain: Domain,
    root: Path,
    minutes: float | None = None,
    images: int | None = None,
    resume: bool = True,
    device: str = "cpu",
) -> None:
    """Train until `images` were seen or `minutes` are over, going on from an earlier state, then promote the result."""
    plan = session.plan(domain, "clip", images)
    data = session.pictures(domain, root, plan.renders)
    state = session.state(domain, root, "clip", resume)
    loop = steps(plan.model, data, state, plan.images, seconds=session.seconds(minutes), device=device, **plan.options)
    session.follow(loop, plan.images, "clip")
    promote(domain, root)


def promote(domain: Domain, root: Path) -> Path:
    """Write the averaged network to the domain's weights."""
    tensors, done = session.averaged(domain, root, "clip")
    model = session.plan(domain, "clip").model
    return session.publish(domain, root, "clip", tensors, model, steps=done, vocabulary=vocabulary())
