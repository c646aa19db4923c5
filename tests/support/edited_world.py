"""Small random networks, five portraits, and any editor at work on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline import editors, portraits
from pipeline.models.stylespace import w_plus_layout
from pipeline.networks import Networks
from pipeline.storage import domains, params, weights
from pipeline.values import Direction, Edited, ImagePair, Inversion, Source, TextPair

PEOPLE = 5
PROMPT = TextPair("face", "face with red hair", {"hair_color": "red"})


@pytest.fixture(scope="module")
def project(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with what its DAG would add: statistics of s, mappers and a relevance matrix, at random.

    The denoiser gets random weights as well: an untrained one begins with zeros and does not listen to s.
    """
    from pipeline import denoiser_training
    from pipeline.delta_mapper import DeltaMapper, numbers
    from pipeline.models import unet

    root = tmp_path_factory.mktemp("editors")
    shutil.copytree(tiny / "domains", root / "domains")
    shutil.copytree(tiny / "data/pretrained", root / "data/pretrained")
    shutil.copy(tiny / "params.yaml", root)
    torch.manual_seed(5)
    networks = Networks(domains.load("tiny", root), root)
    layout, dim = networks.generator.layout, networks.clip.dim
    with torch.no_grad():
        s = networks.generator.styles(networks.generator.repeat(networks.generator.mapping(torch.randn(256, 12))))
    folder = root / "data/pretrained/tiny"
    statistics = {"mean": s.mean(dim=0), "std": s.std(dim=0).clamp(min=0.05)}
    weights.save(folder / "s_stats.safetensors", statistics, {}, half=False)
    relevance = F.normalize(torch.randn(layout.size, dim), dim=1)
    weights.save(folder / "relevance.safetensors", {"relevance": relevance}, {}, half=False)
    network = networks.denoiser
    for parameter in network.parameters():
        parameter.normal_(std=0.1)
    denoiser_training.save(folder / "denoiser.safetensors", network)
    rows = w_plus_layout(networks.generator.num_ws, networks.generator.style_dim)
    for name, codes in (("mapper", layout), ("mapper_wplus", rows)):
        meta = {"model": numbers(codes, dim)}
        weights.save(folder / f"{name}.safetensors", DeltaMapper(codes, dim).state_dict(), meta, half=False)
    other = unet.Denoiser(**network.spec | denoiser_training.network_sizes(networks.generator, "w_plus"))
    for parameter in other.requires_grad_(False).parameters():
        parameter.normal_(std=0.1)
    denoiser_training.save(folder / "denoiser_wplus.safetensors", other)
    return root


@pytest.fixture(scope="module")
def world(project: Path) -> Networks:
    return Networks(domains.load("tiny", project), project)


@pytest.fixture(scope="module")
def source(world: Networks) -> Source:
    people = tuple(portraits.sample(row) for row in range(PEOPLE))
    drawn = np.stack([portraits.render(person, world.domain.resolution) for person in people])
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        w_plus = world.encoder(images)
        return Source(
            images, Inversion(w_plus), world.generator.styles(w_plus), world.clip.embed_images(images), people
        )


def editor_of(name: str, world: Networks) -> Any:
    return editors.load(name, world_of(name, world), settings_of(name, world))


def world_of(name: str, world: Networks) -> Networks:
    """Networks with a denoiser of the space that the editor moves."""
    if name != "deltaedit_d_wplus":
        return world
    from pipeline import denoiser_training

    other = Networks(world.domain, world.root, world.device)
    path = world.shipped("denoiser").with_name("denoiser_wplus.safetensors")
    other.__dict__["denoiser"] = denoiser_training.load(path, world.device)
    return other


def settings_of(name: str, world: Networks) -> Any:
    """The editor's own section of params.yaml, in that of the stage that runs it."""
    module = editors.module(name)
    return params.section(module.Params, world.root, f"edit_{module.KIND}.{name}", domain=world.domain)


def edited(name: str, world: Networks, source: Source, condition: TextPair | ImagePair, strength: float) -> Edited:
    editor = editor_of(name, world)
    return apply(editor, source, editor.fit(condition), strength)


def apply(editor: Any, source: Source, direction: Direction, strength: float) -> Edited:
    """An edit of a source that has not been prepared."""
    return editor.edit(editor.prepare(source), direction, strength)
