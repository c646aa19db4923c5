"""Common parts of all trainings: plan, resumable state, training images, progress, promoted weights."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import training
from pipeline.models.stylegan2 import Generator
from pipeline.runtime import files, progress, tracking
from pipeline.runtime.errors import InputError
from pipeline.storage import images, weights
from pipeline.storage.artefacts import DomainPaths
from pipeline.storage.domains import NETWORKS, ORACLES, Domain
from pipeline.training import Metrics
from pretrain import datasets
from pretrain.datasets import ImageChunks, Photographs, Renders

NEED_LABELS = ("clip", "identity", "oracle", "oracle2")  # networks trained on what the renderer knows of its images
REPORT_EVERY, GRID_EVERY = 8_192, 32_000  # images
MAX_REPORTS = 200  # lines
RENAMED_OPTIONS = {  # of a plan: old name -> new name
    "images_copied": "images_supervised",
    "amplified": "trait_gain",
    "taught": "direct_attributes",
    "drawn_weight": "geometry_weight",
    "told": "known_code_share",
    "made": "generated_share",
    "led": "show_original",
}


@dataclass(frozen=True)
class Plan:
    """Content of `defaults.pretrain.<name>` of a domain file.

    model: numbers that build the network.
    images: images to see in all.
    renders: different renders to draw for it.
    options: further arguments of the training's `steps`.
    """

    model: dict[str, Any]
    images: int
    renders: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """One training of one network: `deltaspace pretrain DOMAIN NAME`.

    root: the project's folder.
    name: network, also the name of its state file.
    minutes: time limit; None for no limit.
    images: images to see in all; None for the plan's.
    resume: go on from an earlier state; otherwise that state is put aside.
    """

    domain: Domain
    root: Path
    name: str
    minutes: float | None = None
    images: int | None = None
    resume: bool = True
    device: str = "cpu"

    @property
    def plan(self) -> Plan:
        """The domain's plan. Raises InputError where it has none, or has an option by its old name."""
        section = dict(self.domain.defaults.get("pretrain", {}).get(self.name) or {})
        where = f"defaults.pretrain.{self.name}"
        if not section:
            raise InputError(f"domains/{self.domain.name}.yaml has no {where}: add its sizes there")
        for old in section.keys() & RENAMED_OPTIONS.keys():
            new = RENAMED_OPTIONS[old]
            raise InputError(f"domains/{self.domain.name}.yaml, {where}: {old} is now {new}: rename it")
        model, total, count = section.pop("model"), section.pop("images"), section.pop("renders", 0)
        if self.name in ("generator", "encoder"):  # built level by level
            model = {"split": list(self.domain.level_split), **model}  # a plan's own split wins
        return Plan(model, self.images or total, count, section)

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds."""
        return None if self.minutes is None else 60 * self.minutes

    @property
    def state_path(self) -> Path:
        """File of the training's state, ignored by git."""
        return Path(self.root) / "data" / "pretraining" / self.domain.name / f"{self.name}.pt"

    def state(self, networks: Mapping[str, str] | None = None) -> Path:
        """Prepare the state file, and return its path.

        networks: part of the state -> network whose promoted weights replace a lost state. Optimisers then start anew,
            at the step at which the weights were promoted.
        """
        path = self.state_path
        if training.first_process():
            if not self.resume and path.exists():
                os.replace(path, path.with_suffix(".pt.old"))
            if self.resume and networks and not path.exists():
                self._state_from_weights(networks)
        training.wait_for_first()
        return path

    def _state_from_weights(self, networks: Mapping[str, str]) -> None:
        """Write a state of promoted weights, unless one is missing or of other sizes than the plan."""
        numbers, content = json.loads(json.dumps(self.plan.model)), {}
        for part, network in networks.items():
            file = self.promoted(network)
            if not file.exists():
                return
            tensors, meta = weights.load(file)
            model = meta.get("model", {})
            if "steps" not in meta or any(model[key] != value for key, value in numbers.items() if key in model):
                print(f"{file} has other sizes than domains/{self.domain.name}.yaml asks for: {self.name} starts anew")
                return
            tensors.pop("w_mean", None)  # not in the state dict
            content |= {part: tensors, "step": meta["steps"]}
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(self.state_path) as partial:
            torch.save({**content, "whole": False}, partial)
        print(f"{self.name}: no training state, going on from the weights of step {content['step']}")

    def named(self, name: str) -> Training:
        """The same call for another state, such as a stage of a training."""
        return replace(self, name=name)

    def promoted(self, name: str | None = None) -> Path:
        """File of a network's weights; networks that only trainings read are kept beside the generator."""
        name = name or self.name
        if name in NETWORKS:
            return Path(self.root) / self.domain.weights(name).path
        return Path(self.root) / Path(self.domain.generator.path).with_name(f"{name}.safetensors")

    # ------------------------------------------------------------ images

    def training_images(self, count: int) -> ImageChunks:
        """At least `count` renders, drawn now where they are missing; or all photographs of the domain."""
        if self.domain.renderer is not None:
            return self.renders(count)
        if training.first_process():
            datasets.make_photographs(self.domain, Path(self.root))
        training.wait_for_first()
        return Photographs(self.domain, self.root)

    def renders(self, count: int, people: int | None = None) -> Renders:
        """At least `count` renders with known parameters, drawn now where they are missing.

        people: number of different persons; None: every render shows another one.
        Raises InputError for a domain of photographs.
        """
        if self.domain.renderer is None:
            raise InputError(
                f"domain '{self.domain.name}' has no renderer: {self.name} needs images with known parameters"
            )
        if training.first_process():
            datasets.make_renders(Path(self.root), self.domain.resolution, count, os.cpu_count() or 1, people)
        training.wait_for_first()
        return Renders(Path(self.root), self.domain.resolution, people)

    def unseen_images(self, count: int = datasets.VALIDATION) -> Tensor:
        """At most `count` images [N,3,R,R] that no training uses."""
        if self.domain.renderer is not None:
            return datasets.unseen_renders(count, self.domain.resolution)
        datasets.make_photographs(self.domain, Path(self.root))
        return datasets.unseen_photographs(self.domain, self.root)[:count]

    # ------------------------------------------------------------ results

    def averaged(self) -> tuple[dict[str, Tensor], int]:
        """Averaged weights of the state, and its finished steps."""
        content = self._content()
        return dict(content["ema"]), int(content["step"])

    def part(self, name: str) -> dict[str, Tensor]:
        """Weights of one network of the state."""
        return dict(self._content()[name])

    def finished_steps(self) -> int:
        """Finished steps of the state; 0 when there is none."""
        if not self.state_path.exists():
            return 0
        return int(torch.load(self.state_path, weights_only=True, map_location="cpu")["step"])

    def _content(self) -> dict[str, Any]:
        if not self.state_path.exists():
            raise InputError(f"{self.state_path} is missing: run `deltaspace pretrain {self.domain.name} {self.name}`")
        return torch.load(self.state_path, weights_only=True, map_location="cpu")

    def publish(
        self, tensors: Mapping[str, Tensor], model: Mapping[str, Any], name: str | None = None, **meta: Any
    ) -> Path:
        """Write promoted weights as float16 with the numbers that build the network.

        tensors: state dict.
        model: numbers for the header.
        name: network, where it is not the training's.
        """
        path = self.promoted(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"network": name or self.name, "domain": self.domain.name, "model": dict(model), **meta}
        weights.save(path, tensors, header)
        return path

    def publish_average(self, model: Mapping[str, Any] | None = None, **meta: Any) -> Path:
        """Write the averaged weights of the state. model: numbers for the header; None for the plan's."""
        tensors, done = self.averaged()
        return self.publish(tensors, self.plan.model if model is None else model, steps=done, **meta)

    def follow(
        self,
        steps: Iterable[tuple[int, Metrics, nn.Module]],
        total: int,
        label: str | None = None,
        grids: Path | None = None,
        evaluate: Callable[[nn.Module], Metrics] | None = None,
    ) -> None:
        """Run the steps of a training with progress lines and MLflow curves.

        steps: (images seen, metrics, averaged network) of each step.
        total: images in all.
        label: for messages; None for the network's name.
        grids: path beside which sample grids of a generator are written; None for no grids.
        evaluate: further metrics of the averaged network, measured at every report.
        """
        if not training.first_process():
            deque(steps, maxlen=0)
            return training.wait_for_first()
        label = label or self.name
        name = f"pretrain-{label}"
        timing = DomainPaths("pretraining", self.root).timing(name)
        with tracking.stage(name, "pretraining", {"images": total}, self.root, timing) as run:
            reported, every, drawn = 0, max(REPORT_EVERY, total // MAX_REPORTS), 0
            for seen, metrics, network in progress.track(steps, None, label):
                if seen - reported >= every or seen >= total:
                    reported = seen
                    metrics = {**metrics, **(evaluate(network) if evaluate else {})}
                    values = "  ".join(f"{key} {value:.3f}" for key, value in metrics.items())
                    print(f"{label}: {seen:,} of {total:,} images  {values}", flush=True)
                    run.log(step=seen, **metrics)
                if grids is not None and isinstance(network, Generator) and seen - drawn >= GRID_EVERY:
                    drawn = seen
                    save_samples(network, grids.with_name(f"{grids.name}-{seen // 1000:06d}k.png"))
        training.wait_for_first()  # the other processes may read the state now


def skip_reason(call: Training) -> str | None:
    """Reason not to train a network when all missing ones are asked for; None where it is to be trained."""
    domain, name, path = call.domain, call.name, call.promoted()
    if domain.renderer is not None:
        return None
    if path.exists() and "steps" not in weights.read_meta(path):
        return f"imported before, in {domain.weights(name).path}"
    if name not in NEED_LABELS:
        return None
    instead = "" if name in ORACLES else f"; for photographs: deltaspace import {name} FILE --domain {domain.name}"
    return f"needs images of known content{instead}"


def learning_rate(lr: float, images: int, batch: int, step: int, warmup: int) -> float:
    """Learning rate of a step: `lr` after `warmup` steps, falling as a cosine until `images` were seen."""
    fraction = min(1.0, step * batch / images)
    return lr * max(1e-3, 0.5 + 0.5 * math.cos(math.pi * fraction)) * min(1.0, (step + 1) / (warmup + 1))


@torch.no_grad()
def save_samples(generator: Generator, path: Path, rows: int = 5, columns: int = 12) -> None:
    """Write a grid of fixed samples as PNG."""
    z = torch.randn(rows * columns, generator.style_dim, generator=torch.Generator().manual_seed(1))
    samples = generator(generator.repeat(generator.mapping(z.to(generator.w_mean.device)))).clamp(-1, 1).cpu()
    images.save_png(path, images.grid([list(row) for row in samples.split(columns)]))
