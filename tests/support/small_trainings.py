"""The tiny domain with a plan for every training, over few small images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny_project
import yaml
from torch import nn

from pipeline import sampling
from pipeline.networks import Networks
from pipeline.storage import domains
from pipeline.storage.domains import Domain
from pretrain import clip, datasets, encoder
from pretrain import denoiser as pretrain_denoiser
from pretrain import generator as gan
from pretrain.common import Training

R, D, BATCH, CHUNK, PEOPLE = tiny_project.R, tiny_project.D, 8, 24, 5
PARTS = ("generator", "clip", "identity", "oracle", "encoder", "denoiser", "oracle2")  # later ones need earlier ones
GAN = {
    "size": R,
    "style_dim": D,
    "n_mlp": 2,
    "widths": {4: 8, 8: 7, 16: 6},
    "split": [2, 4],
    "discriminator": {16: 4, 8: 6, 4: 9},
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # numbers that build the network, options of its training
    "generator": (GAN, {"images_half_size": 21}),  # 21 is no multiple of the batch
    "clip": (tiny_project.CLIP, {}),
    "identity": ({"widths": [6, 8], "dim": 9, "landmarks": 4, "hidden": 7}, {"people": PEOPLE}),
    "oracle": ({"widths": [6, 8]}, {}),
    "oracle2": ({"size": R, "stem": [5, 8], "layers": 2, "heads": 2, "hidden": 9}, {"people": PEOPLE}),
    "encoder": (tiny_project.ENCODER, {"progressive": [8, 8]}),
    "denoiser": ({"channels": 8, "mult": [1, 2], "attention": [], "time_dim": 16, "style_dim": 12}, {}),
}


@pytest.fixture(scope="module", autouse=True)
def small_chunks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small chunks of renders, a short vocabulary, and another project folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "RENDER_CHUNK", CHUNK)
        patch.setattr(clip, "vocabulary", functools.partial(clip.vocabulary, 200))
        draw = datasets.unseen_renders
        patch.setattr(datasets, "unseen_renders", lambda count, resolution: draw(min(count, 16), resolution))
        patch.setenv("DELTASPACE_ROOT", str(tmp_path_factory.mktemp("nowhere")))
        yield


def domain_at(root: Path, **changes: Any) -> Domain:
    """The tiny domain with a plan for every training, written into `root`."""
    plans = {
        name: {"model": model, "images": 2 * BATCH + 3, "renders": CHUNK + 1, "batch": BATCH, **options}
        for name, (model, options) in MODELS.items()
    }
    (root / "domains").mkdir(parents=True, exist_ok=True)
    content = {**tiny_project.DOMAIN, "defaults": {"pretrain": plans}, **changes}
    (root / "domains/tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return domains.load("tiny", root)


def job_of(name: str, root: Path, domain: Domain | None = None, **options: Any) -> Training:
    """Training of a network of the tiny domain, or of `domain`."""
    return Training(domain or domain_at(root), root, name, **options)


def module_of(name: str) -> Any:
    """Module of pretrain that trains a network."""
    return import_module(f"pretrain.{'oracle' if name == 'oracle2' else name}")


def loop_of(name: str, root: Path, state: Path, seconds: float | None = None) -> Iterator[tuple[int, Any, nn.Module]]:
    """Four steps of a training on the networks of `root`, with its state in `state`."""
    job = job_of(name, root, images=4 * BATCH)
    plan, images, networks = job.plan, 4 * BATCH, Networks(job.domain, root)
    data = datasets.Renders(root, R, PEOPLE if name == "identity" else None)
    options: dict[str, Any] = {"batch": BATCH, "seconds": seconds}
    if name == "generator":
        smaller = root / "data/pretraining/tiny/generator-half.pt"
        return gan.steps(plan.model, data, state, images, smaller=smaller, settle=2 * BATCH, **options)
    if name == "encoder":
        nets = networks.generator, encoder.discriminator_of(job), networks.identity
        return encoder.steps(plan.model, *nets, data, state, images, progressive=(BATCH, BATCH), **options)
    if name == "denoiser":
        spread = sampling.measured_stats(networks.generator)
        nets = networks.encoder, networks.generator
        return pretrain_denoiser.steps(plan.model, data, *nets, *spread, state, images, **options)
    people = {"people": PEOPLE} if name == "identity" else {}
    return module_of(name).steps(plan.model, data, state, images, **people, **options)
