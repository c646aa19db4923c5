"""Training of the attribute oracles: one classifier per attribute on shared features; hidden attributes give no loss.

The second oracle has another architecture and only checks the first: no training and no choice uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pipeline import portraits
from pipeline.models import classifiers
from pipeline.models.classifiers import AttributeClassifier
from pipeline.runtime.precision import lowered
from pipeline.training import Ema, Metrics, fit
from pretrain.augment import degrade
from pretrain.common import Training, learning_rate
from pretrain.datasets import DeviceImages, Renders
from pretrain.labels import HIDDEN


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
) -> Iterator[tuple[int, Metrics, AttributeClassifier]]:
    """Yield (images seen, loss and batch accuracy, averaged network).

    numbers: of the network, for `classifiers`.
    data: renders with their labels.
    state: file that the training goes on from when it exists.
    images: images to see in all.
    ema_images: half life of the weight average, in images.
    warmup: steps until the learning rate is `lr`, which then falls as a cosine over `images`.
    decay: weight decay.
    seconds: time limit; None for no limit.
    """
    torch.manual_seed(0)
    kind = torch.device(device).type
    oracle = classifiers.build_classifier({**numbers, "attributes": portraits.ATTRIBUTES}).to(device)
    device_images = DeviceImages(data, device)
    labels = data.labels().to(device)
    ema = Ema(oracle)
    adam = torch.optim.AdamW(oracle.parameters(), lr=lr, weight_decay=decay, fused=True)

    def step(number: int) -> Metrics:
        nonlocal labels
        torch.manual_seed(number)
        if number % 100 == 0:
            device_images.refresh()
            labels = data.labels().to(device) if len(data) > len(labels.geometry) else labels
        for group in adam.param_groups:
            group["lr"] = learning_rate(lr, images, batch, number, warmup)
        rows = torch.randint(len(labels.attributes), (batch,), device=device)
        target, degraded = labels.of_rows(rows), degrade(device_images.images(rows))
        with lowered(kind):
            logits = oracle(degraded)
        losses = [F.cross_entropy(logits[name].float(), target[name], ignore_index=HIDDEN) for name in target]
        loss = torch.stack(losses).mean()
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(oracle, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        visible = {name: target[name] != HIDDEN for name in target}
        correct = [(logits[n].argmax(1) == target[n])[visible[n]].float().mean() for n in target]
        return {"loss": loss.item(), "accuracy": torch.stack(correct).mean().item()}

    parts = {"oracle": oracle, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=100, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def train(job: Training) -> None:
    """Train the oracle `job.name` ("oracle" or "oracle2"), going on from an earlier state, and promote it.

    Option `people` of the plan: number of different persons in the renders.
    """
    plan = job.plan
    options = dict(plan.options)
    data = job.renders(plan.renders, options.pop("people", None))
    state = job.state({"oracle": job.name, "ema": job.name})
    job.follow(
        steps(plan.model, data, state, plan.images, seconds=job.seconds, device=job.device, **options), plan.images
    )
    promote(job)


def promote(job: Training) -> Path:
    """Write the averaged network to the domain's weights."""
    return job.publish_average({**job.plan.model, "attributes": portraits.ATTRIBUTES})
