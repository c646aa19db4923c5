"""Trains the attribute oracle: one classifier per attribute on shared features; what is hidden teaches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pipeline import portraits
from pipeline.models import classifiers
from pipeline.models.classifiers import Reader
from pipeline.runtime.precision import lowered
from pipeline.storage.domains import Domain
from pipeline.training import Ema, Metrics, fit
from pretrain import common
from pretrain.augment import degrade
from pretrain.labels import HIDDEN
from pretrain.pictures import Held
from pretrain.renders import Renders


def steps(
    numbers: dict[str, Any],
    data: Renders,
    state: Path,
    images: int,
    batch: int = 128,
    lr: float = 2e-3,
    ema_images: float = 20_000,
    warmup: int = 0,
    decay: float = 0.02,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, Reader]]:
    """Yield (images seen, loss and batch accuracy, averaged network).

    warmup: steps until the learning rate is `lr`, which then falls as a cosine over `images`. decay: of weights.
    """
    torch.manual_seed(0)
    kind = torch.device(device).type
    oracle = classifiers.reader({**numbers, "attributes": portraits.ATTRIBUTES}).to(device)
    told = Held(data, device)
    facts = data.facts().to(device)
    ema = Ema(oracle)
    adam = torch.optim.AdamW(oracle.parameters(), lr=lr, weight_decay=decay, fused=True)

    def step(number: int) -> Metrics:
        nonlocal facts
        torch.manual_seed(number)
        if number % 100 == 0:
            told.refresh()
            facts = data.facts().to(device) if len(data) > len(facts.numbers) else facts
        for group in adam.param_groups:
            group["lr"] = common.rate(lr, images, batch, number, warmup)
        rows = torch.randint(len(facts.values), (batch,), device=device)
        truth, pictures = facts.labels(rows), degrade(told.images(rows))
        with lowered(kind):
            logits = oracle(pictures)
        losses = [F.cross_entropy(logits[name].float(), truth[name], ignore_index=HIDDEN) for name in truth]
        loss = torch.stack(losses).mean()
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(oracle, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        shown = {name: truth[name] != HIDDEN for name in truth}
        right = [(logits[n].argmax(1) == truth[n])[shown[n]].float().mean() for n in truth]
        return {"loss": loss.item(), "accuracy": torch.stack(right).mean().item()}

    parts = {"oracle": oracle, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=100, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def train(
    domain: Domain,
    root: Path,
    minutes: float | None = None,
    images: int | None = None,
    resume: bool = True,
    device: str = "cpu",
    name: str = "oracle",
) -> None:
    """Train until `images` were seen or `minutes` are over, going on from an earlier state, then promote the result.

    name: which of a domain's oracles. `people` among its options: learn from the same pictures as the identity network.
    """
    plan = common.plan(domain, name, images)
    options = dict(plan.options)
    data = common.drawn(domain, root, plan.renders, options.pop("people", None))
    state = common.state(domain, root, name, resume, {"oracle": name, "ema": name})
    loop = steps(plan.model, data, state, plan.images, seconds=common.seconds(minutes), device=device, **options)
    common.follow(loop, plan.images, name)
    promote(domain, root, name)


def promote(domain: Domain, root: Path, name: str = "oracle") -> Path:
    """Write the averaged network to the domain's weights."""
    tensors, done = common.averaged(domain, root, name)
    model = {**common.plan(domain, name).model, "attributes": portraits.ATTRIBUTES}
    return common.publish(domain, root, name, tensors, model, steps=done)
