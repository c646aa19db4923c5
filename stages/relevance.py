"""Generator, CLIP, spread of s -> data/<domain>/relevance.safetensors: what a style channel does, in CLIP's words."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from pipeline import relevance, weights, workers
from stages._run import Networks, Stage, run

CHANNELS = 32  # rows per shard, the unit of resuming


class Job(NamedTuple):
    """Some rows of the matrix."""

    networks: Networks
    params: relevance.RelevanceParams
    channels: range


@functools.cache
def probe(networks: Networks, params: relevance.RelevanceParams) -> relevance.Probe:
    nets = networks.load()
    return relevance.probe(nets.generator, nets.clip, nets.s_mean, nets.s_std, params)


def write(job: Job, path: Path) -> None:
    rows = relevance.rows(probe(job.networks, job.params), job.channels)
    weights.save(path, {"relevance": rows}, {}, half=False)


def main(stage: Stage) -> None:
    import torch

    params = stage.params(relevance.RelevanceParams)
    size = stage.networks.load().generator.layout.size
    starts = range(0, size, CHANNELS)
    jobs = [Job(stage.networks, params, range(start, min(start + CHANNELS, size))) for start in starts]
    with stage.tracked(params), stage.work(params) as unit:
        names = workers.fill(unit, "rows", write, jobs, stage.processes, ".safetensors")
        matrix = torch.cat([weights.load(unit.path(name))[0]["relevance"] for name in names])  # [S,E]
        weights.save(unit.path("relevance"), {"relevance": matrix}, stage.meta(params, "generator", "clip", "s_stats"))
        unit.mark("relevance")
        unit.publish({"relevance": stage.files.relevance})


if __name__ == "__main__":
    run(main)
