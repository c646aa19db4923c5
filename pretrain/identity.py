"""Trains the identity network with the ArcFace loss: the same people under other hair, clothes, mood, light, pose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones import Backbones
from pipeline.domains import Domain
from pipeline.recognition import IdentityNet, Trunk
from pipeline.training import Ema, Metrics, fit
from pretrain import session
from pretrain.augment import degrade
from pretrain.renders import Renders


def arcface(cosine: Tensor, label: Tensor, margin: float, scale: float) -> Tensor:
    """cosine [B,classes], label [B] -> loss: the angle to the own class is enlarged by `margin` (radians), eq. 3."""
    own = cosine.gather(1, label[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    widened = torch.cos(torch.acos(own) + margin)
    return F.cross_entropy(scale * cosine.scatter(1, label[:, None], widened), label)


def geometry(data: Renders, people: int) -> Tensor:
    """The numbers [people, G] in 0..1 that the first `people` faces of `data` are drawn from."""
    faces = data.people(torch.arange(people))
    return torch.tensor([astuple(face.identity) for face in faces])


def steps(
    numbers: dict[str, Any],
    data: Renders,
    state: Path,
    images: int,
    people: int,
    batch: int = 128,
    lr: float = 2e-3,
    margin: float = 0.2,
    scale: float = 16.0,
    trunk: Trunk | None = None,
    seconds: float | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Metrics, IdentityNet]]:
    """Yield (images seen, losses and batch accuracy, averaged network). Row r of `data` shows person r % people.

    Faces differ in little, and classes alone teach that slowly: the features must also tell the numbers that the face
    was drawn from. `trunk`: features to start from, such as the oracle's.
    """
    torch.manual_seed(0)
    net = IdentityNet(tuple(numbers["widths"]), numbers["dim"]).to(device)
    if trunk is not None:
        net.trunk.load_state_dict(trunk.state_dict())
    truth = geometry(data, people).to(device)
    centres = nn.Linear(numbers["dim"], people, bias=False).to(device)
    reader = nn.Linear(numbers["widths"][-1], truth.shape[1]).to(device)
    ema = Ema(net)
    learnt = [*net.parameters(), *centres.parameters(), *reader.parameters()]
    adam = torch.optim.AdamW(learnt, lr=lr, weight_decay=0.02, fused=True)

    def step(number: int) -> Metrics:
        torch.manual_seed(number)
        if number % 100 == 0:
            data.refresh()
        progress = min(1.0, number * batch / images)
        for group in adam.param_groups:
            group["lr"] = lr * max(1e-3, 0.5 + 0.5 * math.cos(math.pi * progress))
        rows = torch.randint(len(data), (batch,))
        label = (rows % people).to(device)
        with torch.autocast(device, torch.bfloat16):
            features = net.trunk(degrade(data.images(rows).to(device)))
        cosine = F.normalize(net.head(features), dim=1) @ F.normalize(centres.weight, dim=1).T
        drawn = F.mse_loss(reader(features), truth[label])
        loss = arcface(cosine, label, margin * min(1.0, 2 * progress), scale)
        (loss + 20 * drawn).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(net, min(0.5 ** (batch / 20_000), (1 + number) / (10 + number)))
        return {
            "loss": loss.item(),
            "geometry": drawn.item(),
            "top1": (cosine.argmax(1) == label).float().mean().item(),
        }

    parts = {"net": net, "centres": centres, "reader": reader, "ema": ema, "adam": adam}
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
    plan = session.plan(domain, "identity", images)
    data = session.drawn(domain, root, plan.renders, people=plan.options["people"])
    state = session.state(domain, root, "identity", resume, {"net": "identity", "ema": "identity"})
    networks = Backbones(domain, root, device)
    trunk = networks.oracle.trunk if networks.path("oracle").exists() else None
    loop = steps(
        plan.model,
        data,
        state,
        plan.images,
        trunk=trunk,
        seconds=session.seconds(minutes),
        device=device,
        **plan.options,
    )
    session.follow(loop, plan.images, "identity")
    promote(domain, root)


def promote(domain: Domain, root: Path) -> Path:
    """Write the averaged network to the domain's weights."""
    tensors, done = session.averaged(domain, root, "identity")
    return session.publish(domain, root, "identity", tensors, session.plan(domain, "identity").model, steps=done)
