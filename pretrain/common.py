"""What all trainings share: where states lie, the plan of a domain, progress, and the file that a training ends in."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import training
from pipeline.models.stylegan2 import Generator
from pipeline.runtime import files, progress, tracking
from pipeline.runtime.errors import InputError
from pipeline.storage import images, weights
from pipeline.storage.domains import NETWORKS, OF_TRUTH, Domain
from pipeline.training import Metrics
from pretrain import photographs, renders
from pretrain.photographs import Photographs
from pretrain.pictures import Pictures
from pretrain.renders import Renders

TOLD = ("clip", "identity", "oracle", "oracle2")  # networks that learn from what a renderer tells of its pictures
REPORT_EVERY, GRID_EVERY = 8_192, 32_000  # images
REPORTS = 200  # lines at most


@dataclass(frozen=True)
class Plan:
    """`defaults.pretrain.<name>` of a domain file. model: the network's own numbers. images: to see in all. renders:
    different ones to draw for it. options: what else the training's `steps` takes."""

    model: dict[str, Any]
    images: int
    renders: int
    options: dict[str, Any]


def plan(domain: Domain, name: str, images: int | None = None) -> Plan:
    """How a network of the domain is trained; `images` overrules the file."""
    section = dict(domain.defaults.get("pretrain", {}).get(name) or {})
    if not section:
        raise InputError(f"domains/{domain.name}.yaml has no defaults.pretrain.{name}: say there how large it shall be")
    model, total, count = section.pop("model"), section.pop("images"), section.pop("renders", 0)
    if name in ("generator", "encoder"):  # the two that are built level by level
        model = {**model, "split": list(domain.level_split)}
    return Plan(model, images or total, count, section)


def rate(lr: float, images: int, batch: int, number: int, warmup: int) -> float:
    """The learning rate of step `number`: `lr` after `warmup` steps, falling as a cosine until `images` were seen."""
    progress = min(1.0, number * batch / images)
    return lr * max(1e-3, 0.5 + 0.5 * math.cos(math.pi * progress)) * min(1.0, (number + 1) / (warmup + 1))


def seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def state_file(domain: Domain, root: Path, name: str) -> Path:
    return Path(root) / "data" / "pretraining" / domain.name / f"{name}.pt"


def state(
    domain: Domain, root: Path, name: str, resume: bool = True, networks: Mapping[str, str] | None = None
) -> Path:
    """The git-ignored file a training goes on from; without `resume`, an old one is put aside.

    networks: part of the state -> file of weights. Where the state is lost, it is made of these: optimisers start
    anew, at the step that the weights were promoted at.
    """
    path = state_file(domain, root, name)
    if training.first_process():
        if not resume and path.exists():
            os.replace(path, path.with_suffix(".pt.old"))
        if resume and networks and not path.exists():
            adopt(domain, root, name, networks, path)
    training.wait_for_first()
    return path


def left_out(domain: Domain, root: Path, name: str) -> str | None:
    """Why a network is not trained when all that a domain lacks are asked for; None where it is."""
    path = promoted(domain, root, name)
    if domain.renderer is not None:
        return None
    if path.exists() and "steps" not in weights.read_meta(path):
        return f"imported before, in {domain.weights(name).path}"
    if name not in TOLD:
        return None
    instead = "" if name in OF_TRUTH else f"; for photographs: deltaspace import-{name} FILE --domain {domain.name}"
    return f"learnt from drawn pictures only{instead}"


def promoted(domain: Domain, root: Path, name: str) -> Path:
    """The file of weights of a network; those that only trainings read lie beside the generator's."""
    if name in NETWORKS:
        return Path(root) / domain.weights(name).path
    return Path(root) / Path(domain.generator.path).with_name(f"{name}.safetensors")


def adopt(domain: Domain, root: Path, name: str, networks: Mapping[str, str], path: Path) -> None:
    """Make a training state of promoted weights; nothing where one is missing or has other numbers than the plan."""
    numbers, content = json.loads(json.dumps(plan(domain, name).model)), {}
    for part, network in networks.items():
        file = promoted(domain, root, network)
        if not file.exists():
            return
        tensors, meta = weights.load(file)
        own = meta.get("model", {})
        if "steps" not in meta or any(own[key] != value for key, value in numbers.items() if key in own):
            print(f"{file} was made with other numbers than domains/{domain.name}.yaml asks for: {name} starts anew")
            return
        tensors.pop("w_mean", None)  # no key of the published generators
        content |= {part: tensors, "step": meta["steps"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        torch.save({**content, "whole": False}, partial)
    print(f"{name}: no training state, going on from the weights of step {content['step']}")


def progress_of(path: Path) -> int:
    """Finished steps of a training state; 0 when there is none."""
    return int(torch.load(path, weights_only=True, map_location="cpu")["step"]) if path.exists() else 0


def pictures(domain: Domain, root: Path, count: int) -> Pictures:
    """Training pictures: at least `count` renders, drawn now where they are missing, or all photographs."""
    if domain.renderer is not None:
        return drawn(domain, root, count)
    if training.first_process():
        photographs.make(domain, Path(root))
    training.wait_for_first()
    return Photographs(domain, root)


def drawn(domain: Domain, root: Path, count: int, people: int | None = None) -> Renders:
    """At least `count` training pictures whose people are known, rendered now where they are missing; see `Renders`."""
    if domain.renderer is None:
        raise InputError(f"domain '{domain.name}' draws no pictures of its own, and nobody knows what photographs show")
    if training.first_process():
        renders.make(Path(root), domain.resolution, count, os.cpu_count() or 1, people)
    training.wait_for_first()
    return Renders(Path(root), domain.resolution, people)


def unseen(domain: Domain, root: Path, count: int = photographs.UNSEEN) -> Tensor:
    """Pictures [N,3,R,R], `count` at most, that no training meets."""
    if domain.renderer is not None:
        return renders.unseen(count, domain.resolution)
    photographs.make(domain, Path(root))
    return photographs.unseen(domain, root)[:count]


def follow(steps: Iterable[tuple[int, Metrics, nn.Module]], total: int, label: str, grids: Path | None = None) -> None:
    """Run a training with progress lines and MLflow curves; with `grids`, a generator's samples as PNG now and then."""
    if not training.first_process():
        deque(steps, maxlen=0)
        return training.wait_for_first()
    with tracking.stage(f"pretrain-{label}", "pretraining", {"images": total}) as run:
        reported, every, drawn = 0, max(REPORT_EVERY, total // REPORTS), 0
        for seen, metrics, network in progress.track(steps, None, label):
            if seen - reported >= every or seen >= total:
                reported = seen
                figures = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                print(f"{label}: {seen:,} of {total:,} images  {figures}", flush=True)
                run.log(step=seen, **metrics)
            if grids is not None and isinstance(network, Generator) and seen - drawn >= GRID_EVERY:
                drawn = seen
                draw(network, grids.with_name(f"{grids.name}-{seen // 1000:06d}k.png"))
    training.wait_for_first()  # whose state the others may read now


@torch.no_grad()
def draw(generator: Generator, path: Path, rows: int = 5, columns: int = 12) -> None:
    """A grid of fixed samples."""
    z = torch.randn(rows * columns, generator.style_dim, generator=torch.Generator().manual_seed(1))
    pictures = generator(generator.repeat(generator.mapping(z.to(generator.w_mean.device)))).clamp(-1, 1).cpu()
    images.save_png(path, images.grid([list(row) for row in pictures.split(columns)]))


def averaged(domain: Domain, root: Path, name: str) -> tuple[dict[str, Tensor], int]:
    """The averaged weights in a training state, and its finished steps."""
    content = _content(domain, root, name)
    return dict(content["ema"]), int(content["step"])


def part(domain: Domain, root: Path, name: str, of: str) -> dict[str, Tensor]:
    """The weights of one network in a training state."""
    return dict(_content(domain, root, name)[of])


def _content(domain: Domain, root: Path, name: str) -> dict[str, Any]:
    path = state_file(domain, root, name)
    if not path.exists():
        raise InputError(f"{path} is missing: run `deltaspace pretrain {domain.name} {name}`")
    return torch.load(path, weights_only=True, map_location="cpu")


def publish(
    domain: Domain, root: Path, name: str, tensors: Mapping[str, Tensor], model: Mapping[str, Any], **meta: Any
) -> Path:
    """Write the weights that the pipeline reads, as float16 with the numbers that build the network again."""
    path = promoted(domain, root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(path, tensors, {"network": name, "domain": domain.name, "model": dict(model), **meta})
    return path
