"""Generator, CLIP, spread of s -> data/<domain>/relevance.safetensors: what a style channel does, in CLIP's words."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline import relevance
from pipeline.runtime import processes, progress
from pipeline.storage import weights
from stages._stage import Networks, Stage, run


class Job(NamedTuple):
    """A shard, the unit of resuming."""

    networks: Networks
    params: relevance.RelevanceParams
    part: relevance.Part


@functools.cache
def probe(networks: Networks, params: relevance.RelevanceParams) -> relevance.Probe:
    nets = networks.load()
    return relevance.probe(nets.generator, nets.clip, nets.s_mean, nets.s_std, params)


def write(job: Job, path: Path) -> None:
    part = relevance.compute(probe(job.networks, job.params), job.part)
    weights.save(path, {"relevance": part}, {}, half=False)


def main(stage: Stage) -> None:
    params = stage.params(relevance.RelevanceParams)
    first = probe(stage.networks, params)
    jobs = [Job(stage.networks, params, part) for part in relevance.parts(first)]
    with stage.tracked(params), stage.work(params) as unit:
        tell_cost(first, jobs, stage.processes)
        names = processes.fill(unit, "rows", write, jobs, stage.processes, ".safetensors")
        found = [weights.load(unit.path(name))[0]["relevance"] for name in names]
        matrix = relevance.joined(first, found)  # [S,E]
        weights.save(unit.path("relevance"), {"relevance": matrix}, stage.meta(params, "generator", "clip", "s_stats"))
        unit.mark("relevance")
        unit.publish({"relevance": stage.files.relevance})


def tell_cost(first: relevance.Probe, jobs: Sequence[Job], processes: int) -> None:
    """What the whole matrix costs, from one channel of some pictures, or from one picture."""
    part = jobs[len(jobs) // 2].part
    if first.params.method == "reverse":
        one, units = replace(part, pictures=part.pictures[:1]), [len(job.part.pictures) for job in jobs]
        what = "pictures"
    else:
        one, units = replace(part, channels=part.channels[:1]), [len(job.part.channels) for job in jobs]
        what = f"channels x {len(part.pictures)} pictures"
        relevance.compute(first, one)  # what these pictures cost once
    start, processes = time.perf_counter(), min(processes, len(jobs))
    relevance.compute(first, one)
    left = progress.duration((time.perf_counter() - start) * sum(units) / processes)
    print(f"relevance: {sum(units)} {what}, about {left} with {processes} processes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
