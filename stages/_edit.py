"""Code shared by the three edit stages: test images in blocks, one shard of edits per block."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import editors, sources
from pipeline.runtime import processes
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, params
from pipeline.values import Direction
from stages._stage import NetworkSpec, Stage

BLOCK = 12  # images per shard, the unit of resuming; the 24 that diffusion edits keep two workers busy
BLOCK_ON_GPU = 128 * 64**2  # pixels: on a GPU, starting an operation costs more than twelve small images in it
MOST_ON_CPU = 12 * 256**2  # pixels: every worker has its own in memory
DIRECTIONS = "directions.pt"  # piece of the unfinished work


class EditorSpec(NamedTuple):
    """An editor by name and parameters, so that a worker process can build its own."""

    networks: NetworkSpec
    name: str
    params: Any

    def load(self) -> editors.Editor:
        """The editor; the same one for the same names in one process."""
        return _editor(self)


@functools.cache
def _editor(spec: EditorSpec) -> editors.Editor:
    return editors.load(spec.name, spec.networks.load(), spec.params)


def fit(spec: EditorSpec, path: Path) -> None:
    """Fit every prompt of the domain, minutes of work for some editors, and write the directions for all workers."""
    editor, conditions = spec.load(), sources.conditions(spec.networks.load().domain)
    torch.save([editor.fit(condition) for condition in conditions], path)


@functools.cache
def fitted(path: Path, device: str) -> list[Direction]:
    """Directions that `fit` wrote, on this device or another."""
    directions: list[Direction] = torch.load(path, map_location=device, weights_only=False)
    return directions


class Job(NamedTuple):
    """One block of test images to edit along all directions."""

    editor: EditorSpec
    directions: Path
    block: sources.Block
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    """Edit a block and write its shard."""
    spec = job.editor
    source = sources.read(spec.networks.load(), job.block)
    directions = fitted(job.directions, spec.networks.device)
    columns = sources.edit(spec.load(), job.block.ids, source, directions, spec.params.strength)
    artefacts.write_shard(path, "edits", columns, job.meta)


def write_none(meta: dict[str, Any], path: Path) -> None:
    """Write a shard without edits."""
    artefacts.write_shard(path, "edits", sources.NO_EDITS, meta)


def test_images(module: Any, scale: sources.Scale) -> int:
    """Number of test images that an editor's module edits: its own TEST_IMAGES, else that of its kind."""
    return getattr(module, "TEST_IMAGES", {}).get(scale, sources.TEST_IMAGES[scale][module.KIND])


def block_size(device: str, resolution: int) -> int:
    """Images per block."""
    if device == "cpu":
        return max(1, min(BLOCK, MOST_ON_CPU // resolution**2))
    return max(BLOCK, BLOCK_ON_GPU // resolution**2)


def edit(stage: Stage) -> None:
    """Edit the first test images with the stage's editor; `evaluate.scale` sets their number.

    An editor of drawn portraits writes an empty table in a domain of photographs, so that the workflow can go on.
    Raises InputError for a domain without prompts.
    """
    assert stage.editor
    if not stage.domain.prompts:
        raise InputError(f"domains/{stage.domain.name}.yaml has no prompts: say what to edit towards")
    module = editors.module(stage.editor)
    section = params.section(module.Params, stage.root, f"{stage.name}.{stage.editor}", domain=stage.domain)
    scale = params.section(sources.EvaluateParams, stage.root, "evaluate", domain=stage.domain).scale
    drawn = getattr(module, "DRAWN", False)
    networks = stage.networks._replace(device="cpu") if drawn else stage.networks  # rendering needs no GPU
    spec, size = EditorSpec(networks, stage.editor, section), block_size(networks.device, stage.domain.resolution)
    meta = stage.meta(section, "generator", "clip", *module.NEEDS)
    with stage.tracked(section) as tracked, stage.work({**asdict(section), "scale": scale, "block": size}) as work:
        if stage.domain.renderer is None and drawn:
            print(f"{stage.editor}: no edits, the renderer's parameters are not known", file=sys.stderr, flush=True)
            processes.fill(work, "edits", write_none, [meta], 1)
        else:
            with tracked.part("fit"):
                if not work.done(DIRECTIONS):
                    fit(spec, work.path(DIRECTIONS))
                    work.mark(DIRECTIONS)
            with tracked.part("edit"):
                chosen = sources.blocks(stage.paths, test_images(module, scale), size)
                jobs = [Job(spec, work.path(DIRECTIONS), block, meta) for block in chosen]
                processes.fill(work, "edits", write, jobs, processes.count() if drawn else stage.processes)
        work.publish({"edits": stage.paths.edits(stage.editor)})
