"""Trains the attribute oracle: one classifier per attribute on shared features; what is hidden teaches nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import portraits
from pipeline.domains import Domain
from pipeline.recognition import Oracle
from pipeline.training import Ema, Metrics, fit
from pretrain import session
from pretrain.augment import degrade
from pretrain.renders import Renders

HIDDEN = -100  # cross entropy's own sign for "no label"


def labels(people: list[portraits.Portrait]) -> dict[str, Tensor]:
    """attribute -> index of the value [B], HIDDEN where the picture cannot show it."""
    truths = [portraits.attributes(person) for person in people]
    seen = [portraits.visible(person) for person in people]
    return {
        name: torch.tensor([values.index(t[name]) if v[name] else HIDDEN for t, v in zip(truths, seen, strict=True)])
        for name, values in portraits.ATTRIBUTES.items()
    }


def steps(
    numbers: dict[str, Any],
    data: Renders,
    state: Path,
    images: int,
    batch: int = 128,
    lr: float = 2e-3,
    ema_images: float = 20_000,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, Oracle]]:
    """Yield (images seen, loss and batch accuracy, averaged network); cosine schedule over `images`."""
    torch.manual_seed(0)
    oracle = Oracle(tuple(numbers["widths"]), portraits.ATTRIBUTES).to(device)
    ema = Ema(oracle)
    adam = torch.optim.AdamW(oracle.parameters(), lr=lr, weight_decay=0.02, fused=True)

    def step(number: int) -> Metrics:
        torch.manual_seed(number)
        if number % 100 == 0:
            data.refresh()
        for group in adam.param_groups:
            group["lr"] = lr * max(1e-3, 0.5 + 0.5 * math.cos(math.pi * min(1.0, number * batch / images)))
        rows = torch.randint(len(data), (batch,))
        truth = {name: value.to(device) for name, value in labels(list(data.people(rows))).items()}
        pictures = degrade(data.images(rows).to(device))
        with torch.autocast(device, torch.bfloat16):
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
) -> None:
    """Train until `images` were seen or `minutes` are over, going on from an earlier state, then promote the result."""
    plan = session.plan(domain, "oracle", images)
    data = session.drawn(domain, root, plan.renders)
    state = session.state(domain, root, "oracle", resume, {"oracle": "oracle", "ema": "oracle"})
    loop = steps(plan.model, data, state, plan.images, seconds=session.seconds(minutes), device=device, **plan.options)
    session.follow(loop, plan.images, "oracle")
    promote(domain, root)


def promote(domain: Domain, root: Path) -> Path:
    """Write the averaged network to the domain's weights."""
    tensors, done = session.averaged(domain, root, "oracle")
    model = {**session.plan(domain, "oracle").model, "attributes": portraits.ATTRIBUTES}
    return session.publish(domain, root, "oracle", tensors, model, steps=done)
