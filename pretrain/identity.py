"""Training of the identity network: contrastive pairs of one person with other hair, clothes, mood, light and pose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.classifiers import IdentityNet
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.training import Ema, Metrics, fit
from pretrain.augment import degrade
from pretrain.common import Training, learning_rate
from pretrain.datasets import DeviceImages, Renders

MAX_SCALE = 64.0  # of the cosines; the scale is learnt and would grow without bound, as in CLIP


def pairs(count: int, people: int, batch: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Draw persons [B/2], and rows [B]: one image of each person, then another image of each.

    count: number of images; row r shows person r % people.
    people: number of persons.
    batch: B.
    Raises InputError where no person has two images.
    """
    if count <= people:
        raise InputError(f"{count:,} images of {people:,} people: some must be shown twice, so draw more renders")
    person = torch.randint(min(people, count - people), (batch // 2,), device=device)  # the first have most images
    images = (count - 1 - person) // people + 1  # per person
    first = (torch.rand(batch // 2, device=device) * images).long().clamp(max=images - 1)
    step = 1 + (torch.rand(batch // 2, device=device) * (images - 1)).long().clamp(max=images - 2)
    return person, torch.cat([person + people * first, person + people * ((first + step) % images)])


def contrast(embeddings: Tensor, person: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE loss in both directions (van den Oord et al. 2018), and the accuracy of the nearest image.

    embeddings: unit vectors [B,K] of the rows of `pairs`.
    person: [B/2]; a person drawn twice is no negative of themselves.
    scale: factor of the cosines.
    """
    first, second = embeddings.chunk(2)
    cosine = first @ second.T
    index = torch.arange(len(person), device=person.device)
    same = (person[:, None] == person) & ~torch.eye(len(person), dtype=torch.bool, device=person.device)
    logits = (scale * cosine).masked_fill(same, -math.inf)
    loss = 0.5 * (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index))
    return loss, (logits.argmax(1) == index).float().mean()


def steps(
    numbers: dict[str, Any],
    data: Renders,
    state: Path,
    images: int,
    people: int,
    batch: int = 128,
    lr: float = 2e-3,
    scale: float = 16.0,
    geometry_weight: float = 1.0,
    ema_images: float = 20_000,
    warmup: int = 0,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, IdentityNet]]:
    """Yield (images seen, losses and batch accuracy, averaged network).

    numbers: of `IdentityNet`.
    data: renders; row r shows person r % people.
    state: file that the training goes on from when it exists.
    images: images to see in all.
    people: number of persons.
    scale: initial factor of the cosines, learnt.
    geometry_weight: of the regression of the face's geometry, in variances: faces differ in small shapes, which the
        contrastive loss alone learns slowly.
    ema_images: half life of the weight average, in images.
    warmup: steps until the learning rate is `lr`, which then falls as a cosine over `images`.
    seconds: time limit; None for no limit.
    """
    torch.manual_seed(0)
    kind = torch.device(device).type
    net = IdentityNet(**{**numbers, "widths": tuple(numbers["widths"])})
    net = net.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    device_images = DeviceImages(data, device)
    labels = data.labels().to(device)
    log_scale = nn.ParameterList([nn.Parameter(torch.tensor(math.log(scale), device=device))])
    regressor = nn.Sequential(
        nn.Linear(net.width, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, labels.geometry.shape[1])
    ).to(device)
    ema = Ema(net)
    trained = [*net.parameters(), *regressor.parameters(), *log_scale.parameters()]
    adam = torch.optim.AdamW(trained, lr=lr, weight_decay=0.02, fused=True)

    def step(number: int) -> Metrics:
        nonlocal labels
        torch.manual_seed(number)
        if number % 100 == 0:
            device_images.refresh()
            labels = data.labels().to(device) if len(data) > len(labels.geometry) else labels
        for group in adam.param_groups:
            group["lr"] = learning_rate(lr, images, batch, number, warmup)
        person, rows = pairs(len(labels.geometry), people, batch, device)
        with lowered(kind):
            features = net.trunk(degrade(device_images.images(rows)))
        embeddings = F.normalize(net.head(features), dim=1)
        loss, correct = contrast(embeddings, person, log_scale[0].clamp(max=math.log(MAX_SCALE)).exp())
        geometry = F.mse_loss(regressor(features), labels.geometry[rows])
        (loss + 12 * geometry_weight * geometry).backward()  # variance of a parameter in 0..1: 1/12
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(net, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        return {
            "loss": loss.item(),
            "geometry": 12 * geometry.item(),
            "top1": correct.item(),
            "scale": log_scale[0].exp().item(),
        }

    parts = {"net": net, "regressor": regressor, "log_scale": log_scale, "ema": ema, "adam": adam}
    for done, metrics in fit(step, parts, images // batch, state, every=100, seconds=seconds):
        yield done * batch, metrics, ema.module  # type: ignore[misc]


def train(job: Training) -> None:
    """Train until `images` were seen or the time is over, going on from an earlier state, and promote the result."""
    plan = job.plan
    data = job.renders(plan.renders, people=plan.options["people"])
    state = job.state({"net": "identity", "ema": "identity"})
    loop = steps(plan.model, data, state, plan.images, seconds=job.seconds, device=job.device, **plan.options)
    job.follow(loop, plan.images)
    promote(job)


def promote(job: Training) -> Path:
    """Write the averaged network to the domain's weights."""
    return job.publish_average()
