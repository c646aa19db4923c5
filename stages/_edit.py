"""What the three edit stages share: test people in blocks, one shard of edits per block."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import editors, sampling, sources
from pipeline.runtime import processes
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, params
from pipeline.values import Direction
from stages._stage import Networks, Stage

BLOCK = 12  # people per shard, the unit of resuming; 24, who are edited by diffusion, keep two workers busy
BLOCK_ON_GPU = 128 * 64**2  # pixels: on a GPU, starting an operation costs more than twelve small pictures in it
MOST_ON_CPU = 12 * 256**2  # pixels: every worker holds its own
FITTED = "fitted.pt"  # piece of the unfinished work


class Tool(NamedTuple):
    """An editor by name and parameters, so that a worker process can build its own."""

    networks: Networks
    name: str
    params: Any

    def load(self) -> editors.Editor:
        """The same one for the same names in one process."""
        return _editor(self)


@functools.cache
def _editor(tool: Tool) -> editors.Editor:
    return editors.load(tool.name, tool.networks.load(), tool.params)


def fit(tool: Tool, path: Path) -> None:
    """Fit every prompt of the domain, minutes of work for some editors, and write what was found for all workers."""
    editor, conditions = tool.load(), sources.conditions(tool.networks.load().domain)
    torch.save([editor.fit(condition) for condition in conditions], path)


@functools.cache
def fitted(path: Path, device: str) -> list[Direction]:
    """What `fit` wrote, there or on another device."""
    directions: list[Direction] = torch.load(path, map_location=device, weights_only=False)
    return directions


class Job(NamedTuple):
    """Some people, of one shard of pictures and its shard of inversions; where `fit` wrote what they are edited by."""

    tool: Tool
    fitted: Path
    pictures: Path
    codes: Path
    ids: tuple[int, ...]
    meta: dict[str, Any]


def write(job: Job, path: Path) -> None:
    nets, editor, directions = job.tool.networks.load(), job.tool.load(), fitted(job.fitted, job.tool.networks.device)
    chosen = {"id": job.ids}
    pictures = artefacts.read(job.pictures, "images", ["id", "image", "params"], chosen)
    w_plus = artefacts.read(job.codes, "reals", ["w_plus"], chosen)["w_plus"].unflatten(1, (nets.generator.num_ws, -1))
    detail, known = sources.details(nets, job.ids), sources.people_of(pictures["params"])
    people = sources.source(nets, sampling.decoded(pictures["image"]), w_plus, detail, known)
    columns = sources.rows(editor, pictures["id"].tolist(), people, directions, job.tool.params.strength)
    artefacts.write_shard(path, "edits", columns, job.meta)


def leave_out(meta: dict[str, Any], path: Path) -> None:
    artefacts.write_shard(path, "edits", sources.NOBODY, meta)


def people(module: Any, scale: sources.Scale) -> int:
    """How many test people an editor's module edits: as many as its kind does, unless it says otherwise."""
    return getattr(module, "PEOPLE", {}).get(scale, sources.PEOPLE[scale][module.KIND])


def block_of(networks: Networks, resolution: int) -> int:
    """People per shard."""
    if networks.device == "cpu":
        return max(1, min(BLOCK, MOST_ON_CPU // resolution**2))
    return max(BLOCK, BLOCK_ON_GPU // resolution**2)


def shared_out(stage: Stage, tool: Tool, found: Path, meta: dict[str, Any], left: int, block: int) -> list[Job]:
    """The first `left` test people in blocks."""
    jobs, files = [], stage.files
    for pictures, codes in zip(artefacts.shards(files.images), artefacts.shards(files.reals), strict=True):
        ids = artefacts.read(pictures, "images", ["id"], {"split": "test"})["id"].tolist()[:left]
        left -= len(ids)
        blocks = [tuple(ids[start : start + block]) for start in range(0, len(ids), block)]
        jobs += [Job(tool, found, pictures, codes, block, meta) for block in blocks]
    return jobs


def edit(stage: Stage) -> None:
    """Edit the first test people with the stage's editor; `evaluate.scale` says how many.

    An editor of drawn people alone edits nobody where there are none, so that the workflow can go on.
    """
    assert stage.editor
    if not stage.domain.prompts:
        raise InputError(f"domains/{stage.domain.name}.yaml has no prompts: say what to edit towards")
    files, module = stage.files, editors.module(stage.editor)
    section = params.section(module.Params, stage.root, f"{stage.name}.{stage.editor}", domain=stage.domain)
    scale = params.section(sources.EvaluateParams, stage.root, "evaluate", domain=stage.domain).scale
    drawn = getattr(module, "DRAWN", False)
    networks = stage.networks._replace(device="cpu") if drawn else stage.networks  # drawing is a processor's work
    tool, block = Tool(networks, stage.editor, section), block_of(networks, stage.domain.resolution)
    meta = stage.meta(section, "generator", "clip", *module.NEEDS)
    with stage.tracked(section) as tracked, stage.work({**asdict(section), "scale": scale, "block": block}) as unit:
        if stage.domain.renderer is None and drawn:
            print(f"{stage.editor}: left out, it edits people whose parameters are known", file=sys.stderr, flush=True)
            processes.fill(unit, "edits", leave_out, [meta], 1)
        else:
            with tracked.part("fit"):
                if not unit.done(FITTED):
                    fit(tool, unit.path(FITTED))
                    unit.mark(FITTED)
            with tracked.part("edit"):
                jobs = shared_out(stage, tool, unit.path(FITTED), meta, people(module, scale), block)
                processes.fill(unit, "edits", write, jobs, processes.count() if drawn else stage.processes)
        unit.publish({"edits": files.edits(stage.editor)})
