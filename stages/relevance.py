"""Generator, CLIP, s_stats -> data/<domain>/relevance.safetensors: effect of every style channel in CLIP's space."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from pipeline import relevance
from pipeline.runtime import processes
from pipeline.storage import weights
from stages._stage import NetworkSpec, Stage, run


class Job(NamedTuple):
    """One shard, the unit of resuming."""

    networks: NetworkSpec
    params: relevance.RelevanceParams
    part: relevance.Part


@functools.cache
def probe(spec: NetworkSpec, params: relevance.RelevanceParams) -> relevance.Probe:
    """Images on which channels are changed, the same in all processes."""
    networks = spec.load()
    return relevance.probe(networks.generator, networks.clip, *networks.s_stats, params)


def write(job: Job, path: Path) -> None:
    """Compute one shard."""
    rows = relevance.compute(probe(job.networks, job.params), job.part)
    weights.save(path, {"relevance": rows}, {}, half=False)


def main(stage: Stage) -> None:
    """Compute the shards, then join them."""
    params = stage.params(relevance.RelevanceParams)
    whole = probe(stage.networks, params)
    jobs = [Job(stage.networks, params, part) for part in relevance.parts(whole)]
    with stage.tracked(params), stage.work(params) as work:
        names = processes.fill(work, "rows", write, jobs, stage.processes, ".safetensors")
        matrix = relevance.joined(whole, [weights.load(work.path(name))[0]["relevance"] for name in names])
        weights.save(work.path("relevance"), {"relevance": matrix}, stage.meta(params, "generator", "clip", "s_stats"))
        work.mark("relevance")
        work.publish({"relevance": stage.paths.relevance})


if __name__ == "__main__":
    run(main)
