"""Trains the identity network: two pictures of a person, under other hair, clothes, mood, light and pose, belong
together, and are told from those of all others in the batch."""

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
from pipeline.storage.domains import Domain
from pipeline.training import Ema, Metrics, fit
from pretrain import common
from pretrain.augment import degrade
from pretrain.pictures import Held
from pretrain.renders import Renders

SHARPEST = 64.0  # largest factor of the cosines, as in CLIP no learnt one may run away


def pairs(count: int, people: int, batch: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(person [B/2], rows [B]): people drawn by chance, then one picture of each, then another of each.

    Of `count` pictures row r shows person r % people. Raises InputError where nobody is shown twice.
    """
    if count <= people:
        raise InputError(f"{count:,} pictures of {people:,} people: some must be shown twice, so draw more renders")
    person = torch.randint(min(people, count - people), (batch // 2,), device=device)  # the first are shown most often
    shown = (count - 1 - person) // people + 1
    first = (torch.rand(batch // 2, device=device) * shown).long().clamp(max=shown - 1)
    step = 1 + (torch.rand(batch // 2, device=device) * (shown - 1)).long().clamp(max=shown - 2)
    return person, torch.cat([person + people * first, person + people * ((first + step) % shown)])


def contrast(embeddings: Tensor, person: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """unit embeddings [B,K] of `pairs`, person [B/2] -> (loss, share of pictures nearest to their own second one).

    InfoNCE (van den Oord et al. 2018) both ways; a person who was drawn twice into the batch is no stranger to
    themselves.
    """
    one, other = embeddings.chunk(2)
    cosine = one @ other.T
    own = torch.arange(len(person), device=person.device)
    again = (person[:, None] == person) & ~torch.eye(len(person), dtype=torch.bool, device=person.device)
    logits = (scale * cosine).masked_fill(again, -math.inf)
    loss = 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
    return loss, (logits.argmax(1) == own).float().mean()


def steps(
    numbers: dict[str, Any],
    data: Renders,
    state: Path,
    images: int,
    people: int,
    batch: int = 128,
    lr: float = 2e-3,
    scale: float = 16.0,
    drawn_weight: float = 1.0,
    ema_images: float = 20_000,
    warmup: int = 0,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, IdentityNet]]:
    """Yield (images seen, losses and batch accuracy, averaged network). Row r of `data` shows person r % people.

    Faces differ in little, and strangers alone teach that slowly: the features must also tell the numbers that the face
    was drawn from; drawn_weight: of that loss, in variances. scale: of the cosines at first, learnt on. warmup: steps
    until the learning rate is `lr`, which then falls as a cosine over `images`.
    """
    torch.manual_seed(0)
    kind = torch.device(device).type
    net = IdentityNet(**{**numbers, "widths": tuple(numbers["widths"])})
    net = net.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    told = Held(data, device)
    facts = data.facts().to(device)
    sharp = nn.ParameterList([nn.Parameter(torch.tensor(math.log(scale), device=device))])
    reader = nn.Sequential(
        nn.Linear(net.width, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, facts.numbers.shape[1])
    ).to(device)
    ema = Ema(net)
    learnt = [*net.parameters(), *reader.parameters(), *sharp.parameters()]
    adam = torch.optim.AdamW(learnt, lr=lr, weight_decay=0.02, fused=True)

    def step(number: int) -> Metrics:
        nonlocal facts
        torch.manual_seed(number)
        if number % 100 == 0:
            told.refresh()
            facts = data.facts().to(device) if len(data) > len(facts.numbers) else facts
        for group in adam.param_groups:
            group["lr"] = common.rate(lr, images, batch, number, warmup)
        person, rows = pairs(len(facts.numbers), people, batch, device)
        with lowered(kind):
            features = net.trunk(degrade(told.images(rows)))
        embeddings = F.normalize(net.head(features), dim=1)
        loss, right = contrast(embeddings, person, sharp[0].clamp(max=math.log(SHARPEST)).exp())
        drawn = F.mse_loss(reader(features), facts.numbers[rows])
        (loss + 12 * drawn_weight * drawn).backward()  # a number's variance is 1/12
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(net, min(0.5 ** (batch / ema_images), (1 + number) / (10 + number)))
        return {
            "loss": loss.item(),
            "geometry": 12 * drawn.item(),
            "top1": right.item(),
            "scale": sharp[0].exp().item(),
        }

    parts = {"net": net, "reader": reader, "sharp": sharp, "ema": ema, "adam": adam}
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
    plan = common.plan(domain, "identity", images)
    data = common.drawn(domain, root, plan.renders, people=plan.options["people"])
    state = common.state(domain, root, "identity", resume, {"net": "identity", "ema": "identity"})
    limit = common.seconds(minutes)
    loop = steps(plan.model, data, state, plan.images, seconds=limit, device=device, **plan.options)
    common.follow(loop, plan.images, "identity")
    promote(domain, root)


def promote(domain: Domain, root: Path) -> Path:
    """Write the averaged network to the domain's weights."""
    tensors, done = common.averaged(domain, root, "identity")
    return common.publish(domain, root, "identity", tensors, common.plan(domain, "identity").model, steps=done)
